"""Shows the nearest labelled examples with the request.

Paper: Liu et al., What Makes Good In-Context Examples for GPT-3?, 2021, arXiv:2101.06804; `diversity` is the maximal
marginal relevance of Carbonell and Goldstein, 1998.
Use when: there are labelled rows; nearest ones beat fixed ones by far on narrow tasks, in every language.
Differs from the paper: nearest by TF-IDF unless embeddings are asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

from pydantic import Field

from supertiny.prototype.bench import Bench, StepCost, Trace
from supertiny.prototype.steps._embeddings import Embedder, embedded
from supertiny.prototype.steps._neighbours import ranked


@dataclass(frozen=True)
class Retrieve:
    """Nearest by TF-IDF of words and characters; the nearest stands last, next to the request.

    A labelled row is never shown with itself.
    """

    examples: Annotated[int, Field(ge=1)] = 8
    """Examples shown with each request."""
    embedder: Embedder | None = None
    """Embedding model behind an OpenAI-compatible server, `{model, base_url, api_key_env, ...}`; TF-IDF without."""
    diversity: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Weight of being unlike the examples already chosen, against being like the request; 0 takes the nearest."""

    @property
    def calls_per_request(self) -> float:
        return 1.0 if self.embedder else 0.0

    def run(self, traces: Sequence[Trace], bench: Bench) -> list[Trace]:
        done, nearest, count = list(traces), bench.nearest, self.examples + 1  # one may be the request itself
        if not done or not nearest.examples:
            return done
        texts = [trace.request.text for trace in done]
        if self.embedder is not None and bench.spends:
            done, queries, rows = _embedded(self.embedder, done, bench)
            places = ranked(queries, rows, count, self.diversity)
        elif self.diversity:
            places = ranked(nearest.vectors(texts), nearest.vectors(), count, self.diversity)
        else:
            places = [[place for place, _ in row] for row in nearest.nearest(texts, count)]
        return [self._shown(trace, row, bench) for trace, row in zip(done, places, strict=True)]

    def _shown(self, trace: Trace, places: Sequence[int], bench: Bench) -> Trace:
        rows = [bench.nearest.examples[place] for place in places]
        other = [row for row in rows if not row.request.id or row.request != trace.request][: self.examples]
        return replace(trace, examples=tuple(reversed(other)))


def _embedded(embedder: Embedder, traces: Sequence[Trace], bench: Bench) -> tuple[list[Trace], Any, Any]:
    """The traces with their price, their vectors (traces, d), and those of the labelled rows (examples, d)."""
    engine = bench.wrap(bench.shelf.owned(f"embedder {embedder}", embedder.open))
    at = replace(bench, engine=engine)

    def embedded_rows() -> Any:
        paid, vectors = embedded([Trace(example.request) for example in bench.nearest.examples], at)
        bench.shelf.pay("retrieve: embedding the labelled rows", sum((trace.spent for trace in paid), StepCost()))
        return vectors

    rows = bench.shelf.once(f"embedded {embedder}", embedded_rows)
    paid, queries = embedded(traces, at)
    return paid, queries, rows
