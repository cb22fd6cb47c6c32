"""Feeds a continuous-batching pipeline: prompts that share a prefix wait until the first of them has computed it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from supertiny.core.errors import UserError
from supertiny.core.protocols import Done
from supertiny.core.records import Completion, Sampling

_BLOCK_TOKENS = 32  # the pipeline's cache keeps whole blocks of this many tokens


@dataclass(frozen=True, eq=False)
class Job:
    """One prompt on its way: its place in the batch, token ids, generation settings, and what it shares."""

    index: int
    ids: list[int]
    config: Any
    family: str
    """Equal for prompts with the same shared part; empty for a prompt that shares nothing."""


@dataclass(eq=False)
class _Flight:
    job: Job
    handle: Any
    started: float
    cached: int
    tokens: list[int] = field(default_factory=list)
    logprob: float = 0.0
    finish: str = ""


class Queue:
    """Runs jobs to their end, at most `window` of them at once."""

    def __init__(self, pipeline: Any, window: int, decode: Callable[[list[int]], str]) -> None:
        self.pipeline = pipeline
        self.window = window
        self.decode = decode
        self.ids_sent = 0

    def run(self, jobs: Sequence[Job], sampling: Sampling, done: Done | None) -> list[Completion]:
        """One completion per job, in the order of `jobs`' indices. Leaves the pipeline empty, whatever happens."""
        waiting = _in_families(jobs)
        leaders: dict[str, _Flight] = {}
        flying: list[_Flight] = []
        finished: dict[int, Completion] = {}
        try:
            while waiting or flying:
                self._send(waiting, flying, leaders)
                self.pipeline.step()
                for flight in [flight for flight in flying if self._read(flight)]:
                    flying.remove(flight)
                    completion = self._completion(flight, sampling)
                    finished[flight.job.index] = completion
                    if done is not None:
                        done(flight.job.index, completion)
        finally:
            self._drain(flying)
        return [finished[index] for index in sorted(finished)]

    def _send(self, waiting: deque[Job], flying: list[_Flight], leaders: dict[str, _Flight]) -> None:
        held = []
        while waiting and len(flying) < self.window:
            job = waiting.popleft()
            leader = leaders.get(job.family) if job.family else None
            if leader is not None and not leader.tokens and not leader.finish:
                held.append(job)
                continue
            cached = _common(leader.job.ids, job.ids) // _BLOCK_TOKENS * _BLOCK_TOKENS if leader else 0
            flight = _Flight(job, self._add(job), time.perf_counter(), cached)
            flying.append(flight)
            if job.family and leader is None:
                leaders[job.family] = flight
        waiting.extendleft(reversed(held))

    def _add(self, job: Job) -> Any:
        import numpy as np
        import openvino

        self.ids_sent += 1
        return self.pipeline.add_request(
            self.ids_sent, openvino.Tensor(np.array([job.ids], dtype=np.int64)), job.config
        )

    def _read(self, flight: _Flight) -> bool:
        """Takes what is new of a request; true when it has ended."""
        from openvino_genai import GenerationStatus

        status = flight.handle.get_status()
        while flight.handle.can_read():
            for output in flight.handle.read().values():
                flight.tokens.extend(output.generated_ids)
                flight.logprob += sum(output.generated_log_probs)
                flight.finish = output.finish_reason.name
        if status == GenerationStatus.IGNORED:
            raise UserError(
                f"a prompt of {len(flight.job.ids)} tokens does not fit into the engine's cache",
                "raise cache_gigabytes or shorten the prompt",
            )
        return bool(status != GenerationStatus.RUNNING)

    def _completion(self, flight: _Flight, sampling: Sampling) -> Completion:
        text = self.decode(flight.tokens)
        finish: Literal["stop", "length"] = "length" if flight.finish == "LENGTH" else "stop"
        cuts = [place for place in (text.find(stop) for stop in sampling.stop if stop) if place >= 0]
        if cuts:
            text, finish = text[: min(cuts)], "stop"
        seconds = time.perf_counter() - flight.started
        return Completion(text, len(flight.job.ids), len(flight.tokens), flight.cached, seconds, flight.logprob, finish)

    def _drain(self, flying: list[_Flight]) -> None:
        for flight in flying:
            flight.handle.cancel()
        while flying and self.pipeline.has_non_finished_requests():
            self.pipeline.step()


def _in_families(jobs: Sequence[Job]) -> deque[Job]:
    """Jobs with the first of every family ahead of its followers, families kept together, order kept otherwise."""
    first: dict[str, int] = {}
    for job in jobs:
        first.setdefault(job.family or f"\0{job.index}", job.index)
    return deque(sorted(jobs, key=lambda job: (first[job.family or f"\0{job.index}"], job.index)))


def _common(left: list[int], right: list[int]) -> int:
    """Length of the common beginning."""
    same = 0
    for a, b in zip(left, right, strict=False):
        if a != b:
            break
        same += 1
    return same
