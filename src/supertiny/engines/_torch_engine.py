"""The engine that engines/torch.py opens."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from supertiny.core.errors import UserError
from supertiny.core.protocols import Done
from supertiny.core.records import Completion, Grammar, Price, Prompt, Sampling, TokenScores
from supertiny.engines._token_grammars import TokenGrammars

if TYPE_CHECKING:
    import torch

    from supertiny.engines.torch import Torch as Settings


@dataclass(eq=False)
class _Row:
    """One prompt on its way."""

    index: int
    ids: list[int]
    matcher: Any | None
    generator: torch.Generator | None
    tokens: list[int] = field(default_factory=list)
    logprob: float = 0.0
    text: str = ""
    finish: Literal["", "stop", "length"] = ""


class TorchEngine:
    """Runs a stock Hugging Face folder; safe to call from several threads, which wait for each other."""

    def __init__(self, settings: Settings, folder: Path, name: str, model: Any, tokenizer: Any) -> None:
        self.settings = settings
        self.folder = folder
        self.name = name
        self.bytes = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        self.price = Price(dollars_per_hour=settings.dollars_per_hour)
        self.model = model
        self.tokenizer = tokenizer
        stops = model.generation_config.eos_token_id
        stops = stops if isinstance(stops, list) else [stops]
        self._stop_ids = {int(token) for token in [*stops, tokenizer.eos_token_id] if token is not None}
        self._filler = min(self._stop_ids, default=0)
        self._grammars: TokenGrammars | None = None
        self._lock = threading.Lock()

    def complete(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        grammar: Sequence[Grammar | None] | None = None,
        done: Done | None = None,
    ) -> list[Completion]:
        """One completion per prompt, in order; prompts of like length are worked on together.

        `logprob` is the model's own, before temperature and grammar. Shared parts are computed with every prompt.
        """
        grammars = grammar or [None] * len(prompts)
        finished: dict[int, Completion] = {}
        with self._lock:
            rows = [
                _Row(index, self.tokens(prompt), self._matcher(form), self._generator(sampling))
                for index, (prompt, form) in enumerate(zip(prompts, grammars, strict=True))
            ]
            for batch in self._batches(rows):
                started = time.perf_counter()
                for row in self._write(batch, sampling):
                    seconds = time.perf_counter() - started
                    finished[row.index] = Completion(
                        row.text, len(row.ids), len(row.tokens), 0, seconds, row.logprob, row.finish or "length"
                    )
                    if done is not None:
                        done(row.index, finished[row.index])
        return [finished[index] for index in range(len(prompts))]

    def score(self, prompts: Sequence[Prompt], continuations: Sequence[str], top: int = 1) -> list[TokenScores]:
        """(T, top) best tokens at each place of each continuation; `top` may be the whole vocabulary, and 0."""
        import torch

        from supertiny.engines._torch_reading import begun, forward, padded

        rows = [_Row(index, self.tokens(prompt), None, None) for index, prompt in enumerate(prompts)]
        for row, text in zip(rows, continuations, strict=True):
            row.tokens = self._encode(text)
        scores: dict[int, TokenScores] = {}
        with self._lock, torch.inference_mode():
            for batch in self._batches(rows):
                keep = max(len(row.tokens) for row in batch) + 1
                model, cache, virtual = begun(self.model, len(batch))
                ids, mask = padded([row.ids + row.tokens for row in batch], self._filler, virtual, self.model.device)
                logits = forward(model, ids, mask, cache if virtual else None, keep)
                for place, row in enumerate(batch):
                    last = logits.shape[1] - 1
                    logprobs = logits[place, last - len(row.tokens) : last].float().log_softmax(-1)
                    scored = _scores_of(logprobs, row.tokens, top)
                    scores[row.index] = replace(scored, tokens_in=len(row.ids) + len(row.tokens))
        return [scores[index] for index in range(len(rows))]

    def close(self) -> None:
        self.model = None
        self._grammars = None

    def _write(self, rows: list[_Row], sampling: Sampling) -> Iterator[_Row]:
        """Decodes a batch; gives each row when it has ended."""
        import torch

        from supertiny.engines._torch_reading import begun, forward, padded

        if sampling.max_tokens < 1:
            yield from rows
            return
        with torch.inference_mode():
            model, cache, virtual = begun(self.model, len(rows))
        ids, mask = padded([row.ids for row in rows], self._filler, virtual, self.model.device)
        while rows:
            with torch.inference_mode():
                logits = forward(model, ids, mask, cache, 1)[:, -1].float()
                ids = self._choose(rows, logits, sampling)
                mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
                ended = [row for row in rows if row.finish]
                if ended:
                    kept = torch.tensor([place for place, row in enumerate(rows) if not row.finish], dtype=torch.long)
                    kept = kept.to(ids.device)
                    rows = [row for row in rows if not row.finish]
                    ids, mask = ids[kept], mask[kept]
                    cache.batch_select_indices(kept)
            yield from ended

    def _choose(self, rows: list[_Row], logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
        """Next token of each row, (rows, 1); notes it in the row."""
        import torch

        logprobs = logits.log_softmax(-1)
        if any(row.matcher is not None for row in rows) and self._grammars is not None:
            self._grammars.mask(logits, [row.matcher for row in rows])
        chosen = logits.argmax(-1).tolist()
        for place, row in enumerate(rows):
            if row.generator is not None:
                shares = (logits[place] / sampling.temperature).softmax(-1)
                chosen[place] = int(torch.multinomial(shares, 1, generator=row.generator))
            row.tokens.append(chosen[place])
            row.logprob += float(logprobs[place, chosen[place]])
            if row.matcher is not None:
                row.matcher.accept_token(chosen[place])
            self._judge(row, sampling)
        return torch.tensor(chosen, device=logits.device)[:, None]

    def _judge(self, row: _Row, sampling: Sampling) -> None:
        ended = row.tokens[-1] in self._stop_ids
        if sampling.stop or ended or len(row.tokens) >= sampling.max_tokens:
            written = row.tokens[:-1] if ended else row.tokens
            row.text = self.tokenizer.decode(written, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            cuts = [place for place in (row.text.find(stop) for stop in sampling.stop if stop) if place >= 0]
            if cuts:
                row.text, ended = row.text[: min(cuts)], True
            row.finish = "stop" if ended else "length" if len(row.tokens) >= sampling.max_tokens else ""

    def _batches(self, rows: list[_Row]) -> Iterator[list[_Row]]:
        """Rows of like length together, longest first, so that a lack of memory shows at once."""
        ordered = sorted(rows, key=lambda row: (-len(row.ids) - len(row.tokens), row.index))
        for start in range(0, len(ordered), self.settings.max_batch):
            yield ordered[start : start + self.settings.max_batch]

    def tokens(self, prompt: Prompt) -> list[int]:
        """What the model reads of a prompt. Raises UserError for an empty one."""
        text = prompt.text
        if prompt.messages:
            history = [dict(message) for message in prompt.messages]
            text = self.tokenizer.apply_chat_template(history, tokenize=False, add_generation_prompt=True) + text
        if not text:
            raise UserError("a prompt is empty", "an engine needs at least one character to continue")
        return self._encode(text)

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)

    def _matcher(self, form: Grammar | None) -> Any | None:
        if form is None:
            return None
        if self._grammars is None:
            vocabulary = self.model.config.vocab_size
            self._grammars = TokenGrammars(self.tokenizer, vocabulary, sorted(self._stop_ids))
        return self._grammars.matcher(form)

    def _generator(self, sampling: Sampling) -> torch.Generator | None:
        if sampling.temperature <= 0:
            return None
        import torch

        return torch.Generator(device=self.model.device).manual_seed(sampling.seed)


def _scores_of(logprobs: torch.Tensor, tokens: list[int], top: int) -> TokenScores:
    import numpy as np

    best = logprobs.topk(min(top, logprobs.shape[-1]), dim=-1)
    own = logprobs.cpu().numpy()[np.arange(len(tokens)), tokens] if tokens else np.empty(0, np.float32)
    return TokenScores(np.array(tokens, dtype=np.int64), best.indices.cpu().numpy(), best.values.cpu().numpy(), own)
