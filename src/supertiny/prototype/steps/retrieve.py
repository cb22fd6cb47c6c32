"""Shows the nearest labelled examples with the request.

Paper: Liu et al., What Makes Good In-Context Examples for GPT-3?, 2021, arXiv:2101.06804; `diversity` is the maximal
marginal relevance of Carbonell and Goldstein, 1998.
Use when: there are labelled rows; nearest ones beat fixed ones by far on narrow tasks, in every language.
Differs from the paper: nearest by TF-IDF unless another measure is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Annotated, Any, Literal

from pydantic import Field

from supertiny.core.records import Example
from supertiny.prototype.bench import Bench, StepCost, Trace
from supertiny.prototype.steps._embeddings import Embedder, embedded
from supertiny.prototype.steps._neighbours import latent, ranked


@dataclass(frozen=True)
class Retrieve:
    """Nearest by TF-IDF of words and characters; the nearest stands last, next to the request.

    A labelled row is never shown with itself.
    """

    examples: int = 8
    """Examples shown with each request."""
    by: Literal["tfidf", "lsa", "embeddings"] = "tfidf"
    """Measure: words in common; their latent topics (SVD of TF-IDF over labelled and unlabelled texts, without a
    model); or vectors of an embedding model behind an OpenAI-compatible server."""
    dimensions: Annotated[int, Field(ge=2)] = 128
    """Topics of `lsa`, at most."""
    embedder: Embedder | None = None
    """Server of `embeddings`: `{model, base_url, api_key_env, ...}`."""
    diversity: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Weight of being unlike the examples already chosen, against being like the request; 0 takes the nearest."""
    order: Literal["nearest_last", "nearest_first", "random"] = "nearest_last"
    """Order in which they are shown."""

    def __post_init__(self) -> None:
        if self.by == "embeddings" and self.embedder is None:
            raise ValueError("embeddings need `embedder: {model: NAME, base_url: ADDRESS}`; lsa needs no server")

    @property
    def calls_per_request(self) -> float:
        return 1.0 if self.by == "embeddings" else 0.0

    def run(self, traces: Sequence[Trace], bench: Bench) -> list[Trace]:
        by = self.by if bench.spends or self.by != "embeddings" else "tfidf"
        if not traces or not bench.nearest.examples:
            return list(traces)
        if by == "tfidf" and self.diversity == 0:
            found = bench.nearest.nearest([trace.request.text for trace in traces], self.examples + 1)
            places = [[place for place, _ in row] for row in found]
        else:
            traces, queries, rows = self._vectors(by, traces, bench)
            places = ranked(queries, rows, self.examples + 1, self.diversity)
        return [self._shown(trace, row, bench) for trace, row in zip(traces, places, strict=True)]

    def _shown(self, trace: Trace, places: Sequence[int], bench: Bench) -> Trace:
        labelled = bench.nearest.examples
        own = trace.request.id or None
        other = [labelled[place] for place in places if labelled[place].request.id != own]
        rows: list[Example] = other[: self.examples]
        if self.order == "nearest_last":
            rows.reverse()
        elif self.order == "random":
            Random(f"{bench.seed} {trace.request.id} {trace.request.text}").shuffle(rows)
        return replace(trace, examples=tuple(rows))

    def _vectors(self, by: str, traces: Sequence[Trace], bench: Bench) -> tuple[list[Trace], Any, Any]:
        """The traces with their price, their vectors (traces, d), and those of the labelled rows (examples, d)."""
        texts = [trace.request.text for trace in traces]
        nearest = bench.nearest
        if by == "tfidf":
            return list(traces), nearest.vectors(texts), nearest.vectors()
        if by == "lsa":
            known = [example.request.text for example in (*nearest.examples, *bench.task.unlabelled)]
            topics = bench.shelf.once(
                f"lsa {self.dimensions}", lambda: latent(nearest.vectors(known), self.dimensions, bench.seed)
            )
            return list(traces), topics(nearest.vectors(texts)), topics(nearest.vectors())
        assert self.embedder is not None
        engine = bench.wrap(bench.shelf.owned(f"embedder {self.embedder}", self.embedder.open))
        at = replace(bench, engine=engine)

        def embedded_rows() -> Any:
            blank = [Trace(example.request) for example in nearest.examples]
            paid, vectors = embedded(blank, at)
            bench.shelf.pay("retrieve: embedding the labelled rows", sum((t.spent for t in paid), StepCost()))
            return vectors

        rows = bench.shelf.once(f"embedded {self.embedder}", embedded_rows)
        paid, queries = embedded(traces, at)
        return paid, queries, rows
