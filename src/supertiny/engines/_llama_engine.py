"""The engine that engines/llama_cpp.py opens."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from supertiny.core.errors import UserError
from supertiny.core.machine import usable_cores
from supertiny.core.protocols import Done
from supertiny.core.records import Completion, Grammar, Price, Prompt, Sampling, TokenScores
from supertiny.engines._families import family_of
from supertiny.engines._llama_model import LlamaModel, Piece, logprobs_of

if TYPE_CHECKING:
    from supertiny.engines.llama_cpp import LlamaCpp as Settings


@dataclass(eq=False)
class _Row:
    """One prompt on its way; `pending` are the tokens that the model has not read yet."""

    index: int
    ids: list[int]
    family: str
    rules: Any | None
    generator: np.random.Generator | None
    pending: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    logprob: float = 0.0
    text: str = ""
    finish: Literal["", "stop", "length"] = ""
    cached: int = 0
    started: float = 0.0


class LlamaEngine:
    """Runs one GGUF file; safe to call from several threads, which wait for each other."""

    def __init__(self, settings: Settings, path: Path, name: str, metadata: Mapping[str, Any]) -> None:
        self.settings = settings
        self.name = name
        self.bytes = path.stat().st_size
        self.price = Price(dollars_per_hour=settings.dollars_per_hour)
        threads = settings.threads or usable_cores()
        self._model = LlamaModel(
            path, metadata, settings.context_tokens, settings.batch_tokens, settings.max_batch + 1, threads
        )
        self._lock = threading.Lock()

    def complete(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        grammar: Sequence[Grammar | None] | None = None,
        done: Done | None = None,
    ) -> list[Completion]:
        """One completion per prompt, in order; `logprob` is the model's own, before temperature and grammar."""
        grammars = grammar or [None] * len(prompts)
        finished: dict[int, Completion] = {}
        with self._lock:
            rows = [
                _Row(
                    index,
                    self._model.tokens_of(prompt),
                    family_of(prompt),
                    self._model.rules(form) if form else None,
                    np.random.default_rng(sampling.seed) if sampling.temperature > 0 else None,
                )
                for index, (prompt, form) in enumerate(zip(prompts, grammars, strict=True))
            ]
            families: dict[str, list[_Row]] = {}
            for row in rows:
                families.setdefault(row.family, []).append(row)
            for family, members in families.items():
                self._run(members, bool(family), sampling, finished, done)
        return [finished[index] for index in range(len(prompts))]

    def score(self, prompts: Sequence[Prompt], continuations: Sequence[str], top: int = 1) -> list[TokenScores]:
        """(T, top) best tokens at each place of each continuation; `top` may be the whole vocabulary, and 0."""
        with self._lock:
            return [
                self._score(self._model.tokens_of(prompt), self._model.encode(text), top)
                for prompt, text in zip(prompts, continuations, strict=True)
            ]

    def tokens(self, prompt: Prompt) -> list[int]:
        """What the model reads of a prompt. Raises UserError for an empty one."""
        return self._model.tokens_of(prompt)

    def close(self) -> None:
        self._model.close()

    def _run(
        self, rows: list[_Row], shared: bool, sampling: Sampling, finished: dict[int, Completion], done: Done | None
    ) -> None:
        """Works through prompts with one common beginning, which sequence 0 holds."""
        self._model.forget()
        prefix = _common([row.ids for row in rows]) if shared and len(rows) > 1 else 0
        if prefix:
            self._read(rows[0].ids[:prefix], sequence=0)
            for row in rows[1:]:
                row.cached = prefix
        waiting, free = deque(rows), list(range(1, self.settings.max_batch + 1))
        active: dict[int, _Row] = {}
        while waiting or active:
            self._admit(waiting, free, active, prefix, sampling)
            for sequence in self._step(active, sampling):
                row = active.pop(sequence)
                free.append(sequence)
                self._model.forget(sequence)
                seconds = time.perf_counter() - row.started
                finished[row.index] = Completion(
                    row.text, len(row.ids), len(row.tokens), row.cached, seconds, row.logprob, row.finish or "length"
                )
                if done is not None:
                    done(row.index, finished[row.index])

    def _admit(
        self, waiting: deque[_Row], free: list[int], active: dict[int, _Row], prefix: int, sampling: Sampling
    ) -> None:
        """Starts as many prompts as slots and context allow."""

        def need(row: _Row) -> int:
            return len(row.ids) - prefix + sampling.max_tokens

        while waiting and free:
            held = prefix + sum(need(row) for row in active.values())
            if held + need(waiting[0]) > self.settings.context_tokens:
                if not active:
                    count = len(waiting[0].ids)
                    raise UserError(f"a prompt of {count} tokens does not fit", "raise context_tokens of llama_cpp")
                return
            row = waiting.popleft()
            sequence = free.pop()
            row.started = time.perf_counter()
            row.pending = row.ids[prefix:]
            if prefix:
                self._model.copy(0, sequence, prefix)
            active[sequence] = row

    def _step(self, active: dict[int, _Row], sampling: Sampling) -> list[int]:
        """One forward pass over the running prompts; gives the sequences that have ended."""
        pieces: list[Piece] = []
        whole: list[tuple[int, int]] = []
        for sequence, row in active.items():
            room = self.settings.batch_tokens - len(pieces)
            taken, row.pending = row.pending[:room], row.pending[room:]
            start = len(row.ids) + len(row.tokens) - len(row.pending) - len(taken)
            for offset, token in enumerate(taken):
                wanted = not row.pending and offset == len(taken) - 1
                pieces.append(Piece(token, start + offset, sequence, wanted))
            if taken and not row.pending:
                whole.append((sequence, len(pieces) - 1))
        self._model.decode(pieces)
        for sequence, place in whole:
            self._choose(active[sequence], self._model.logits(place), sampling)
        return [sequence for sequence, _ in whole if active[sequence].finish]

    def _choose(self, row: _Row, logits: np.ndarray, sampling: Sampling) -> None:
        logprobs = logprobs_of(logits)
        token = self._model.choose(logits, row.rules, row.generator, sampling.temperature)
        row.tokens.append(token)
        row.pending = [token]
        row.logprob += float(logprobs[token])
        ended = self._model.ends(token)
        if sampling.stop or ended or len(row.tokens) >= sampling.max_tokens:
            row.text = self._model.text_of(row.tokens[:-1] if ended else row.tokens)
            cuts = [place for place in (row.text.find(stop) for stop in sampling.stop if stop) if place >= 0]
            if cuts:
                row.text, ended = row.text[: min(cuts)], True
            row.finish = "stop" if ended else "length" if len(row.tokens) >= sampling.max_tokens else ""

    def _read(self, tokens: list[int], sequence: int) -> None:
        width = self.settings.batch_tokens
        for start in range(0, len(tokens), width):
            part = tokens[start : start + width]
            self._model.decode([Piece(token, start + place, sequence, False) for place, token in enumerate(part)])

    def _score(self, prompt: list[int], continuation: list[int], top: int) -> TokenScores:
        tokens = prompt + continuation
        self._model.forget()
        found = []
        for start in range(0, len(tokens), self.settings.batch_tokens):
            places = range(start, min(start + self.settings.batch_tokens, len(tokens)))
            pieces = [Piece(tokens[p], p, 0, len(prompt) - 1 <= p < len(tokens) - 1) for p in places]
            self._model.decode(pieces)
            found += [logprobs_of(self._model.logits(i)) for i, piece in enumerate(pieces) if piece.wanted]
        logprobs = np.stack(found) if found else np.empty((0, self._model.vocabulary), np.float32)
        ids = np.argsort(-logprobs, axis=-1, kind="stable")[:, :top]
        own = logprobs[np.arange(len(continuation)), continuation] if continuation else np.empty(0, np.float32)
        best = np.take_along_axis(logprobs, ids, -1)
        return TokenScores(np.array(continuation, np.int64), ids, best, own, len(tokens))


def _common(rows: list[list[int]]) -> int:
    """Length of the common beginning, leaving every row at least one token of its own."""
    shortest, longest = min(rows), max(rows)
    same = next((i for i, (a, b) in enumerate(zip(shortest, longest, strict=False)) if a != b), len(shortest))
    return max(0, min(same, min(len(row) for row in rows) - 1))
