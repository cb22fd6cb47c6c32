"""A pupil's own answers, many at once: each prompt is read once and shared by all samples of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn.utils import parametrize

from supertiny.core.errors import UserError
from supertiny.engines._torch_reading import begun, forward, padded
from supertiny.training.lessons import Lesson
from supertiny.training.practice import Practice, Sample
from supertiny.training.pupil import Pupil

_AT_ONCE = 128  # sequences that are written side by side


@dataclass
class _Line:
    """One answer on its way."""

    place: int
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    ended: bool = False


def roll_out(
    pupil: Pupil,
    prompts: Sequence[Lesson],
    practice: Practice,
    samples: int,
    seed: int,
    temperature: float = 1.0,
    at_once: int = _AT_ONCE,
) -> list[list[Sample]]:
    """`samples` answers to each prompt, in order, read and judged; temperature 0 takes the likeliest token.

    A prompt is a lesson's `ids` up to `answer_start`. Same weights, prompts and seed, same answers.
    """
    stop = pupil.id_of(practice.form.stop)
    generator = torch.Generator(device=pupil.device).manual_seed(seed)
    # Prompts of like length together, longest first.
    order = sorted(range(len(prompts)), key=lambda place: (-prompts[place].answer_start, place))
    found: list[list[Sample]] = [[] for _ in prompts]
    each = max(1, at_once // samples)
    with _answering(pupil):
        for start in range(0, len(order), each):
            chosen = order[start : start + each]
            ids = [list(prompts[place].ids[: prompts[place].answer_start]) for place in chosen]
            for line in _written(pupil, ids, samples, stop, practice.max_tokens, temperature, generator):
                place = chosen[line.place]
                found[place].append(_judged(pupil, prompts[place], practice, line, stop))
    return found


def _judged(pupil: Pupil, prompt: Lesson, practice: Practice, line: _Line, stop: int) -> Sample:
    if prompt.example is None:
        raise ValueError("a lesson without its example cannot be practised on")
    words = [token for token in line.ids if token != stop]
    text = pupil.tokenizer.decode(words, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    # A runtime may stop at another special token: an answer that goes on after one is none.
    whole = line.ended and not set(words) & set(pupil.tokenizer.all_special_ids)
    return practice.judged(prompt.example.request, line.ids, line.logprobs, text, whole)


@contextmanager
def _answering(pupil: Pupil) -> Iterator[None]:
    was_training = pupil.model.training
    pupil.model.eval()
    try:
        # Weights that are seen rounded are rounded once, not at every token.
        with torch.inference_mode(), parametrize.cached():
            yield
    finally:
        pupil.model.train(was_training)


def _written(
    pupil: Pupil,
    prompts: Sequence[Sequence[int]],
    samples: int,
    stop: int,
    max_tokens: int,
    temperature: float,
    generator: torch.Generator,
) -> list[_Line]:
    """Lines in the order of prompts, `samples` of each one after the other."""
    model, cache, virtual = begun(pupil.model, len(prompts))
    ids, mask = padded(prompts, pupil.pad_id, virtual, pupil.device)
    logits = _next(model, ids, mask, cache)
    lines = [_Line(place) for place in range(len(prompts)) for _ in range(samples)]
    cache.batch_repeat_interleave(samples)
    logits, mask = logits.repeat_interleave(samples, 0), mask.repeat_interleave(samples, 0)
    open_lines = list(lines)
    for _ in range(max_tokens):
        tokens = _chosen(open_lines, logits, temperature, generator)
        for line in open_lines:
            line.ended = line.ids[-1] == stop
        going = [place for place, line in enumerate(open_lines) if not line.ended]
        if not going:
            break
        if len(going) < len(open_lines):
            kept = torch.tensor(going, device=mask.device)
            cache.batch_select_indices(kept)
            open_lines, tokens, mask = [open_lines[place] for place in going], tokens[kept], mask[kept]
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
        logits = _next(model, tokens, mask, cache)
    return lines


def _chosen(
    lines: Sequence[_Line], logits: torch.Tensor, temperature: float, generator: torch.Generator
) -> torch.Tensor:
    """The next token of each line, (lines, 1); notes it and its log-probability."""
    if not torch.isfinite(logits).all():
        raise UserError("the student's probabilities are no longer finite", "lower the learning rate")
    logprobs = torch.log_softmax(logits / temperature if temperature > 0 else logits, dim=-1)
    if temperature > 0:
        # By the inverse of the distribution: `multinomial` draws a number for every token of the vocabulary.
        heights = logprobs.exp().cumsum(-1)
        drawn = torch.rand(len(lines), 1, generator=generator, device=logits.device) * heights[:, -1:]
        tokens = torch.searchsorted(heights, drawn, right=True).clamp_(max=logits.shape[-1] - 1)
    else:
        tokens = logprobs.argmax(-1, keepdim=True)
    own = logprobs.gather(-1, tokens)[:, 0].tolist()
    for line, token, logprob in zip(lines, tokens[:, 0].tolist(), own, strict=True):
        line.ids.append(token)
        line.logprobs.append(logprob)
    return tokens


def _next(model: Any, ids: torch.Tensor, mask: torch.Tensor, cache: Any) -> torch.Tensor:
    """Logits (rows, vocabulary) in float32 of what comes next."""
    return forward(model, ids, mask, cache, 1)[:, -1].float()
