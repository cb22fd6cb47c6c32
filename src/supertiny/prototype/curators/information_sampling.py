"""Draws a smaller set of rows that covers what there is: rows between two clusters are drawn most.

Paper: Khera et al., Efficient Alignment of Large Language Models via Data Sampling, 2024, arXiv:2411.10545.
Use when: training on all rows takes too long, and a tenth of them may do as well.
Differs from the paper: it fits two Gaussians to preference pairs; here they are fitted to log-probabilities and texts
of requests. A row's information is the entropy of its membership, our own choice, and the size of the set is given,
not read from a fitted plateau.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field

from supertiny.core.methods import build
from supertiny.core.protocols import Format
from supertiny.core.records import Example
from supertiny.core.task import Task
from supertiny.prototype.curators._bench import CuratorBench
from supertiny.prototype.curators._reasons import is_labelled, left_out
from supertiny.prototype.curators._scores import STUDENT, answer_pairs, losses_of, request_pairs

_LEAST = 8  # rows from which a mixture of two says anything


@dataclass(frozen=True)
class InformationSampling:
    """Features: loss of the answer, loss of the request, and the first components of the requests' TF-IDF."""

    share: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of the rows that were not labelled by a person which is kept; labelled rows always stay."""
    rows: Annotated[int, Field(ge=0)] | None = None
    """Their number instead."""
    components: Annotated[int, Field(ge=0)] = 4
    """Components of the requests' TF-IDF beside the two losses."""
    floor: Annotated[float, Field(gt=0, le=1)] = 0.05
    """Least weight of a row, as a share of the greatest, so that the middle of a cluster is drawn too."""
    engine: Any = field(default_factory=lambda: STUDENT, metadata={"family": "engines"})
    """What scores: best the student's base model."""
    format: Any = field(default="compact", metadata={"family": "formats"})
    """How the student reads requests and writes calls."""

    needs: ClassVar[tuple[str, ...]] = ("token_scores",)

    def curate(self, examples: Sequence[Example], task: Task, seed: int, *, bench: CuratorBench) -> list[Example]:
        made = [row for row in examples if not is_labelled(row) and row.answer is not None]
        wanted = min(len(made), self.rows if self.rows is not None else round(self.share * len(made)))
        if wanted == len(made) or len(made) < _LEAST:
            return list(examples)
        features = self._features(made, task, bench, seed)
        shares = _memberships(features, seed)
        information = _entropy(shares)
        chosen = _drawn(shares, information, wanted, self.floor, seed)
        dropped = {row.request.id for place, row in enumerate(made) if place not in chosen}
        for place, row in enumerate(made):
            if place not in chosen:
                left_out(row, f"not drawn; information {information[place]:.3f} nats")
        return [row for row in examples if row.request.id not in dropped]

    def _features(self, made: Sequence[Example], task: Task, bench: CuratorBench, seed: int) -> np.ndarray:
        """(rows, features), each with mean 0 and deviation 1."""
        from sklearn.decomposition import TruncatedSVD  # type: ignore[import-untyped, unused-ignore]
        from sklearn.feature_extraction.text import TfidfVectorizer  # type: ignore[import-untyped, unused-ignore]

        form: Format = build("formats", self.format)
        pairs = [*answer_pairs(made, task, form), *request_pairs(made)]
        losses = np.array(losses_of(pairs, bench.scores, self.engine))  # one batch for both
        columns = [losses[: len(made)], losses[len(made) :]]
        texts = [row.request.text for row in made]
        if self.components and len(set(texts)) > 1:
            table = TfidfVectorizer(analyzer="char", ngram_range=(1, 4)).fit_transform(texts)
            size = min(self.components, min(table.shape) - 1)
            columns += list(TruncatedSVD(size, random_state=seed).fit_transform(table).T) if size > 0 else []
        features = np.stack(columns, axis=1)
        deviation = features.std(axis=0)
        return np.asarray((features - features.mean(axis=0)) / np.where(deviation > 1e-9, deviation, 1.0))


def _memberships(features: np.ndarray, seed: int) -> np.ndarray:
    """(rows, 2) how far each row belongs to each of two Gaussians."""
    from sklearn.mixture import GaussianMixture  # type: ignore[import-untyped, unused-ignore]

    if len(np.unique(features, axis=0)) < 2:
        return np.full((len(features), 2), 0.5)
    mixture = GaussianMixture(2, covariance_type="diag", reg_covar=1e-3, n_init=3, random_state=seed)
    return np.asarray(mixture.fit(features).predict_proba(features))


def _entropy(shares: np.ndarray) -> np.ndarray:
    """(rows,) entropy of the memberships, in nats."""
    safe = np.clip(shares, 1e-12, 1.0)
    return np.asarray(-(safe * np.log(safe)).sum(axis=1))


def _drawn(shares: np.ndarray, information: np.ndarray, wanted: int, floor: float, seed: int) -> set[int]:
    """Places drawn without replacement, by entropy, from both clusters as their sizes are."""
    generator = np.random.default_rng(seed)
    weights = np.maximum(information, floor * max(float(information.max()), 1e-9))
    cluster = shares.argmax(axis=1)
    second = np.flatnonzero(cluster == 1)
    of_second = min(len(second), round(wanted * len(second) / len(cluster)))
    chosen: set[int] = set()
    for places, count in ((np.flatnonzero(cluster == 0), wanted - of_second), (second, of_second)):
        if count:
            odds = weights[places] / weights[places].sum()
            chosen |= {int(place) for place in generator.choice(places, count, replace=False, p=odds)}
    return chosen
