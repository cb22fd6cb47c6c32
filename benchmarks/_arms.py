"""The arms of transfer_quality: what each learns, by which learner, on top of which other arm."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks._halves import Result, crossed, examined, halves
from benchmarks._teachers import Taught
from supertiny.core.errors import UserError
from supertiny.core.methods import build, cards
from supertiny.core.progress import Progress
from supertiny.core.records import Example
from supertiny.core.task import Task
from supertiny.report.floor import TfidfFloor

if TYPE_CHECKING:
    from benchmarks._pupils import Cell

STUDENT = "smollm2-135m-instruct-q4_1"
IMITATE = {"method": "imitate", "learning_rate": 3e-4, "passes": 3, "rows": 16}
SUBSTITUTE = {"method": "substitute", "copies": 6}
EXAMS = 4  # of each student, evenly spread
QUICK = {"passes": 1, "rows": 8, "asked": 2, "samples": 2, "redraws": 0}  # of a learner's settings, where it has them


@dataclass(frozen=True)
class Arm:
    """One way of teaching."""

    name: str
    learner: Mapping[str, Any] = field(default_factory=dict)
    """Nothing where nobody is taught."""
    lessons: str = "verified"
    """Answers beside those of the labelled rows: none, unverified or verified ones of the pool.

    `substituted` are verified ones and the rows that other values in the place of theirs make of all.
    """
    on: str = ""
    """The arm whose student of the same seed it goes on with; the untaught student where it is empty."""
    taught_by: str = ""
    """The arm whose students of several seeds teach together; what they agree on of other requests is learned too."""
    as_long_as: str = ""
    """The arm that sees as many rows: fewer lessons are seen more often, so that steps do not make the difference."""
    needs: tuple[str, ...] = ("pool",)
    """Of the teacher's answers."""

    @property
    def parents(self) -> tuple[str, ...]:
        return tuple(name for name in (self.on, self.taught_by) if name)


ARMS = (
    Arm("tfidf"),
    Arm("labelled_only", {**IMITATE, "passes": 12}, lessons="none", needs=()),
    Arm("teacher", needs=("valid",)),
    Arm("unverified", IMITATE, lessons="unverified"),
    Arm("verified", IMITATE, as_long_as="unverified"),
    # The rows of the recipes of `examples`: a pipeline's last step costs no call and is no way of learning.
    Arm("substitute", IMITATE, lessons="substituted"),
    Arm("reject", {"method": "reject", "passes": 2, "rows": 16, "samples": 4}, on="verified"),
    # Scores of a large model would have to be aligned span by span, and its pipeline, not it, is the good teacher.
    # Students of other seeds cut words alike, err in other places, and are there already.
    Arm(
        "distil",
        {"method": "distil", "passes": 3, "rows": 16, "learning_rate": 2e-4},
        on="verified",
        taught_by="verified",
    ),
    Arm(
        "reinforce",
        # No request is refused for want of signal: a student that learned by heart then simply stays what it is.
        {"method": "reinforce", "rows": 16, "samples": 4, "learning_rate": 2e-5, "redraws": 1, "least_signal": 0.0},
        on="verified",
    ),
    Arm(
        "hybrid",
        {"method": "hybrid", "passes": 2, "rows": 16, "asked": 4, "samples": 4, "learning_rate": 5e-5, "redraws": 0},
        on="verified",
        taught_by="verified",
    ),
)
BY_NAME = {arm.name: arm for arm in ARMS}
BUILT_ON = {parent for arm in ARMS for parent in arm.parents} | {"labelled_only"}  # divergences start from that
Results = dict[str, dict[int, Result]]
"""Arm -> seed of the training -> what it is worth; an arm that nobody trains has seed 0 alone."""


@dataclass(frozen=True)
class Place:
    """Where a task's cells are taught."""

    task: Task
    taught: Taught
    seeds: Sequence[int]
    folder: Path
    student: str = STUDENT
    quick: bool = False
    progress: Progress = field(default_factory=Progress)
    methods: Sequence[str] = ()
    """Of the tables of divergences and of adapters, these alone; all, where it is empty."""

    @property
    def committee(self) -> Sequence[int]:
        """Seeds whose students teach together: two at least, since a single one would be taught by itself."""
        return self.seeds if len(self.seeds) > 1 or self.quick else (*self.seeds, self.seeds[0] + 1)

    def rows(self, lessons: str) -> list[Example]:
        """Labelled rows, and others as the arm's `lessons` say."""
        if lessons == "substituted":
            curator = build("curators", SUBSTITUTE)
            made: list[Example] = curator.curate(self.rows("verified"), self.task, self.seeds[0])
            return made
        more = {"none": [], "unverified": self.taught.unverified, "verified": self.taught.verified}
        return [*self.task.labelled, *more[lessons]]

    def learner_of(self, arm: Arm) -> dict[str, Any]:
        """The arm's learner, with as many passes as make it last as long as another arm."""
        if not arm.as_long_as or self.quick:
            return self.learner(arm.learner)
        other = BY_NAME[arm.as_long_as]
        visits = other.learner["passes"] * len(self.rows(other.lessons))
        return {**self.learner(arm.learner), "passes": max(1, round(visits / len(self.rows(arm.lessons))))}

    def learner(self, block: Mapping[str, Any]) -> dict[str, Any]:
        """The block as it is; where things must be quick, with less of all that takes time."""
        if not self.quick:
            return dict(block)
        known = cards("learners")[block["method"]].load().__dataclass_fields__
        return {**block, **{name: value for name, value in QUICK.items() if name in known}}


def wanted(names: Sequence[str]) -> list[Arm]:
    """These arms (all, where none is named) and those that they are built on, in order."""
    chosen = set(names or BY_NAME)
    chosen |= {parent for name in chosen for parent in BY_NAME[name].parents}
    return [arm for arm in ARMS if arm.name in chosen]


def needed(arms: Sequence[Arm]) -> list[str]:
    """Parts of the task that the teacher must answer for these arms."""
    return [part for part in ("pool", "valid") if any(part in arm.needs for arm in arms)]


def measured(place: Place, arms: Sequence[Arm]) -> tuple[Results, dict[str, str]]:
    """(results of the arms, arm -> why it has none)."""
    results: Results = {}
    without: dict[str, str] = {}
    for arm in arms:
        lost = [parent for parent in arm.parents if parent in without]
        if lost:
            without[arm.name] = f"it is built on {lost[0]}"
            continue
        try:
            results[arm.name] = _results(place, arm)
        except UserError as error:  # such as no signal to learn from: the other arms are measured none the less
            without[arm.name] = str(error)
            place.progress.note(f"  {place.task.name}, {arm.name}: {error}")
    return results, without


def _results(place: Place, arm: Arm) -> dict[int, Result]:
    if not arm.learner:
        return {0: _UNTAUGHT[arm.name](place)}
    from benchmarks._pupils import done

    title = f"{place.task.name}, {arm.name}, seed"
    if arm.taught_by:
        for seed in place.committee:
            teacher = cell_of(place, BY_NAME[arm.taught_by], seed)
            done(teacher, place.folder, place.progress, f"{place.task.name}, {arm.taught_by}, seed {seed}")
    cells = {seed: cell_of(place, arm, seed) for seed in place.seeds}
    return {seed: done(cell, place.folder, place.progress, f"{title} {seed}") for seed, cell in cells.items()}


def cell_of(place: Place, arm: Arm, seed: int) -> Cell:
    """The training of an arm; the cells that it is built on are those of their arms."""
    # torch comes with it, and the floors do without.
    from benchmarks._pupils import Cell, place_of

    def student_of(name: str, seed: int) -> Path:
        return place_of(cell_of(place, BY_NAME[name], seed), place.folder)

    return Cell(
        place.task,
        place.student,
        seed,
        place.learner_of(arm),
        place.rows(arm.lessons),
        student_of(arm.on, seed) if arm.on else None,
        place.taught.unanswered if arm.on else (),
        tuple(student_of(arm.taught_by, other) for other in place.committee) if arm.taught_by else (),
        exams=1 if place.quick else EXAMS,
        keeps=arm.name in BUILT_ON,
    )


def _floor(place: Place) -> Result:
    """As the report has it: the calls of the nearest row that a student may learn from."""
    valid = place.task.valid
    answers = TfidfFloor(place.rows("verified")).answer([row.request for row in valid])
    return crossed({"": examined(answers, valid, place.task)}, halves(valid), {"lessons": len(place.rows("verified"))})


def _teacher(place: Place) -> Result:
    valid = place.task.valid
    answers = [row.answer for row in place.taught.valid if row.answer is not None]
    seconds = sum(answer.cost.seconds for answer in answers)
    return crossed({"": examined(answers, valid, place.task)}, halves(valid), {"seconds": seconds})


_UNTAUGHT: Mapping[str, Callable[[Place], Result]] = {"tfidf": _floor, "teacher": _teacher}
