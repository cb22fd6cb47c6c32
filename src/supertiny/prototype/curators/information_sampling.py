"""Draws fewer rows, those more often that add information: rows that are unlike most others.

Paper: Khera et al., Efficient Alignment of Large Language Models via Data Sampling, 2024, arXiv:2411.10545.
Use when: training on all rows takes too long. It stands behind `verified`, as wrong rows are unlike others, too.
Differs from the paper: known to us by its abstract and summaries: preference pairs, a mixture of two Gaussians, and
sampling by entropy. Here requests and answers are sampled, by features of our own; a row's information is what the
set's entropy would lose without it; the number of rows is given, not read from a plateau of test runs.
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

_LEAST_ROWS = 8  # from which a mixture of two says anything
_LEAST_WEIGHT = 0.05  # of the greatest, so that the middle of a cluster is drawn too


@dataclass(frozen=True)
class InformationSampling:
    """Features: loss of the answer, loss of the request, and the first components of the requests' TF-IDF."""

    share: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of the rows that were not labelled by a person which is kept; labelled rows always stay."""
    rows: Annotated[int, Field(ge=0)] | None = None
    """Their number instead."""
    components: Annotated[int, Field(ge=0)] = 4
    """Components of the requests' TF-IDF beside the two losses."""
    engine: Any = field(default_factory=lambda: STUDENT, metadata={"family": "engines"})
    """What scores: best the student's base model."""
    format: Any = field(default="compact", metadata={"family": "formats"})
    """How the student reads requests and writes calls."""

    needs: ClassVar[tuple[str, ...]] = ("token_scores",)

    def curate(self, examples: Sequence[Example], task: Task, seed: int, *, bench: CuratorBench) -> list[Example]:
        made = [row for row in examples if not is_labelled(row) and row.answer is not None]
        wanted = min(len(made), self.rows if self.rows is not None else round(self.share * len(made)))
        if wanted == len(made) or len(made) < _LEAST_ROWS:
            return list(examples)
        information = _information(self._features(made, task, bench, seed), seed)
        weights = information - information.min()
        weights = np.maximum(weights, _LEAST_WEIGHT * max(float(weights.max()), 1e-9))
        drawn = np.random.default_rng(seed).choice(len(made), wanted, replace=False, p=weights / weights.sum())
        dropped = set(range(len(made))) - set(drawn.tolist())
        for place in sorted(dropped):
            left_out(made[place], f"not drawn; information {information[place]:.3f} nats")
        gone = {made[place].request.id for place in dropped}
        return [row for row in examples if row.request.id not in gone]

    def _features(self, made: Sequence[Example], task: Task, bench: CuratorBench, seed: int) -> np.ndarray:
        """(rows, features), each with mean 0 and deviation 1."""
        from sklearn.decomposition import TruncatedSVD  # type: ignore[import-untyped, unused-ignore]
        from sklearn.feature_extraction.text import TfidfVectorizer  # type: ignore[import-untyped, unused-ignore]

        form: Format = build("formats", self.format)
        pairs = [*answer_pairs(made, task, form), *request_pairs(made)]
        losses = np.array(losses_of(pairs, bench, self.engine))  # one batch for both
        columns = [losses[: len(made)], losses[len(made) :]]
        texts = [row.request.text for row in made]
        if self.components and len(set(texts)) > 1:
            table = TfidfVectorizer(analyzer="char", ngram_range=(1, 4)).fit_transform(texts)
            size = min(self.components, min(table.shape) - 1)
            columns += list(TruncatedSVD(size, random_state=seed).fit_transform(table).T) if size > 0 else []
        features = np.stack(columns, axis=1)
        deviation = features.std(axis=0)
        return np.asarray((features - features.mean(axis=0)) / np.where(deviation > 1e-9, deviation, 1.0))


def _information(features: np.ndarray, seed: int) -> np.ndarray:
    """(rows,) negative log-density under a mixture of two Gaussians, in nats.

    The set's entropy is the mean of these. Under the same mixture it falls, without a row, by the row's own less the
    mean, over the number of the other rows: the order of the rows is that of these.
    """
    from sklearn.mixture import GaussianMixture  # type: ignore[import-untyped, unused-ignore]

    if len(np.unique(features, axis=0)) < 2:
        return np.zeros(len(features))
    mixture = GaussianMixture(2, covariance_type="diag", reg_covar=1e-3, n_init=3, random_state=seed)
    return -np.asarray(mixture.fit(features).score_samples(features))
