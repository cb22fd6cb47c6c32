"""How a teacher is asked for its scores of lessons: its own words for them, one batch at a time, kept in few bytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from supertiny.core.errors import UserError
from supertiny.core.records import Prompt, TokenScores
from supertiny.training.align import LEAST, Tokenizers
from supertiny.training.lessons import Lesson, collate
from supertiny.training.pupil import Pupil

TEXT_LEVEL = "a teacher that cannot be aligned still teaches by its answers: take imitate or reject"
_ROUNDING = 1e-7  # what 1 - sum of float32 probabilities is off by


class ScoreRows:
    """Scores of lessons, as they come in."""

    def __init__(self, top_k: int) -> None:
        self.top_k = top_k
        self.ids = [np.empty((0, top_k), np.int32)]
        self.logprobs = [np.empty((0, top_k + 1), np.float16)]
        self.counts: list[int] = [0]
        self.span_ends: list[int] = []
        self.span_logprobs: list[float] = []
        self.span_counts: list[int] = [0]

    def add_best(self, one: TokenScores, known: int) -> None:
        """The best tokens at each place of an answer; ids from `known` on are tokens that the student lacks."""
        if one.ids.shape[1] != self.top_k:
            raise UserError(
                f"the teacher gives {one.ids.shape[1]} best tokens a place; {self.top_k} were asked for", "lower top_k"
            )
        best = one.logprobs.astype(np.float64)
        rest = np.log(np.clip(1 - np.exp(best).sum(axis=1, keepdims=True), _ROUNDING, 1))
        logprobs = np.concatenate([best, rest], axis=1)
        _refuse_nan(logprobs)
        self.ids.append(np.where(one.ids < known, one.ids, -1).astype(np.int32))
        self.logprobs.append(np.clip(logprobs, LEAST, 0).astype(np.float16))
        self.counts.append(len(best))
        self.span_counts.append(0)

    def add_spans(self, cuts: Sequence[tuple[int, int]], token_logprobs: np.ndarray) -> None:
        """The likelihood of each span of an answer, that ends after (the teacher's, the student's) tokens."""
        _refuse_nan(token_logprobs)
        starts = [0, *(end for end, _ in cuts)]
        for start, (end, own) in zip(starts, cuts, strict=False):
            self.span_ends.append(own)
            self.span_logprobs.append(float(np.clip(token_logprobs[start:end].sum(), LEAST, 0)))
        self.counts.append(0)
        self.span_counts.append(len(cuts))

    def tensors(self) -> dict[str, torch.Tensor]:
        """The fields of training.scores.Scores."""
        return {
            "ids": torch.from_numpy(np.concatenate(self.ids)),
            "logprobs": torch.from_numpy(np.concatenate(self.logprobs)),
            "offsets": torch.tensor(self.counts).cumsum(0),
            "span_ends": torch.tensor(self.span_ends, dtype=torch.int32),
            "span_logprobs": torch.tensor(self.span_logprobs, dtype=torch.float32),
            "span_offsets": torch.tensor(self.span_counts).cumsum(0),
        }


def _refuse_nan(logprobs: np.ndarray) -> None:
    if np.isnan(logprobs).any():
        raise UserError("the teacher gives a probability that is not a number", "try another precision or model file")


@torch.no_grad()
def read_scores(
    teacher: Pupil, lessons: Sequence[Lesson], top_k: int, at_once: int, known: int | None
) -> Iterator[TokenScores]:
    """The teacher's scores of the answer tokens of lessons in its own tokens, of which only the `known` first count."""
    teacher.model.eval()
    size = teacher.model.get_input_embeddings().weight.shape[0]
    if (most := max(max(lesson.ids) for lesson in lessons)) >= size:
        raise UserError(f"the teacher has {size} tokens, and the lessons use token {most}", TEXT_LEVEL)
    for start in range(0, len(lessons), at_once):
        group = lessons[start : start + at_once]
        batch = collate(group, teacher.pad_id).to(teacher.device)
        logits = teacher.logits_at(batch.ids, batch.mask, batch.wanted)
        logprobs = torch.log_softmax(logits[:, :known], dim=-1)
        best = logprobs.topk(top_k, dim=-1)
        own = logprobs.gather(-1, batch.targets[:, None]).squeeze(-1)
        parts = (batch.targets, best.indices, best.values, own)
        lengths = [len(lesson.ids) - lesson.answer_start for lesson in group]
        for one in zip(*(torch.split(part.cpu(), lengths) for part in parts), strict=True):
            yield TokenScores(*(tensor.numpy() for tensor in one))


def own_lesson(tokenizer: Any, prompt: Prompt, answer: str) -> Lesson:
    """Prompt and answer in the teacher's own tokens."""
    text = prompt.text
    if prompt.messages:
        turns = [dict(message) for message in prompt.messages]
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True) + text
    begin, end = (tokenizer.encode(part, add_special_tokens=False) for part in (text, answer))
    begin = begin or [tokenizer.eos_token_id or 0]
    return Lesson((*begin, *end), len(begin))


def answer_of(lesson: Lesson, tokenizer: Any, kind: Tokenizers) -> list[int]:
    """The answer's tokens; where the teacher has others, without the token that ends it, which is the student's own."""
    answer = list(lesson.ids[lesson.answer_start :])
    marks = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()} if kind == "different" else ()
    while answer and answer[-1] in marks:
        answer.pop()
    return answer
