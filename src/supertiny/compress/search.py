"""`supertiny compress`: measures what the student can spare, tries plans within a budget, and draws the front."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from supertiny.compress.budget import Budget, rounded_up, written
from supertiny.compress.plans import Plan, Shape, baselines, chosen, nearest, plans
from supertiny.compress.recovery import Recovery
from supertiny.compress.sensitivity import Sensitivity, looks
from supertiny.compress.settings import Settings
from supertiny.compress.stage import explore
from supertiny.core.errors import UserError
from supertiny.core.files import hash_of, read_json, read_rows, sha256_of, write_json
from supertiny.core.methods import build
from supertiny.core.records import Example
from supertiny.core.run import Run
from supertiny.core.student import Student
from supertiny.training.named_files import named_files
from supertiny.training.pupil import Pupil

FOLDER = "compress_search"
_ROWS = 64  # on which sensitivity is measured
_VERSION = 2  # of what the plans of a name do, and how they are measured: older points are not comparable
_SLACK = 1.3  # how far above the limit an expected latency may lie: it is scaled from one that was measured
_FIGURES = ("type", "bytes", "parameters", "exact", "low", "high", "n", "p50_seconds", "same_as_student", "gate")


def search(
    settings: Settings, run: Run, budget: Budget, count: int = 6, minutes: float | None = None
) -> dict[str, Any]:
    """Writes RUN/compress_search/search.json and a point for each plan that was run; gives what is written.

    A point is a folder `points/NAME` with `compress/artifact`. What was measured before is not measured again. After
    `minutes` no further plan is begun. Raises UserError where no plan can keep the budget, and names the nearest.
    """
    return _Search(settings, run, budget).go(count, minutes)


class _Search:
    def __init__(self, settings: Settings, run: Run, budget: Budget) -> None:
        self.settings = settings
        self.run = run
        self.budget = budget
        self.folder = run.folder / FOLDER
        self.student = Student.open(run.folder / "transfer" / "student")
        self.shape = Shape.of(self.student.folder)
        self.weights = weights = [sha256_of(path) for path in sorted(self.student.folder.glob("*.safetensors"))]
        asked = {name: value for name, value in asdict(settings).items() if name != "steps"}
        files = named_files(settings, "compress")
        self.key = hash_of([_VERSION, weights, run.task.hash, run.seed, asked, *([files] if files else [])])

    def go(self, count: int, minutes: float | None) -> dict[str, Any]:
        began = time.monotonic()
        self._take_folder()
        sensitivity = self._sensitivity()
        trains_on_grid = self.settings.recovery is not None and self.settings.quantization_aware
        offered = plans(self.shape, sensitivity, trains_on_grid)
        self._refuse_what_nobody_keeps(offered)
        points = [self._point(plan) for plan in baselines(self.shape)]
        fitting = self._fitting(offered, points)
        for number, plan in enumerate(chosen(fitting, count), 1):
            if minutes is not None and time.monotonic() - began > 60 * minutes:
                self.run.progress.note(f"  {minutes:g} minutes are over: run again with more to go on")
                break
            self.run.progress.note(f"plan {number} of {min(count, len(fitting))}: {plan.name}")
            points.append(self._point(plan))
        points += self._of_earlier_searches({point["name"] for point in points})
        outcome = self._outcome(sensitivity, offered, points)
        write_json(self.folder / "search.json", outcome)
        written_so: dict[str, Any] = read_json(self.folder / "search.json")
        return written_so

    def _take_folder(self) -> None:
        """Points of another student, task or settings say nothing of this one.

        Nor do those without a key: they are what is left where this was killed.
        """
        mark = self.folder / "key.json"
        if self.folder.exists() and not (mark.is_file() and read_json(mark) == self.key):
            shutil.rmtree(self.folder)
        write_json(mark, self.key)

    def _sensitivity(self) -> Sensitivity:
        path = self.folder / "sensitivity.json"
        known = Sensitivity.known(path, self.key)
        if known is not None:
            return known
        examples = [Example.from_json(row) for row in read_rows(self.run.folder / "prototype" / "train.jsonl")]
        form = build("formats", self.student.format, "transfer.format")
        recovery = Recovery(self.settings, self.run, form, self.student.folder, examples, self.folder / ".none")
        pupil = Pupil.open(self.student.folder)
        batches = recovery.batches(recovery.lessons(pupil, _ROWS), pupil)
        with self.run.progress.task("what the task can spare", looks(pupil.model), "looks") as tick:
            found = Sensitivity.measured(pupil, batches, tick)
        found.save(path, self.key)
        return found

    def _refuse_what_nobody_keeps(self, offered: Sequence[Plan]) -> None:
        """By sizes alone, which are known without running anything; a file holds a little more."""
        sizes = Budget(bytes=self.budget.bytes, parameters=self.budget.parameters)
        if all(sizes.excess(plan.figures()) for plan in offered):
            hint = "raise the limit above that: the tokenizer comes on top; or begin with a smaller student"
            self._refuse(nearest(offered, self.budget), {}, hint)

    def _refuse(self, plan: Plan, more: Mapping[str, float], hint: str) -> None:
        figures = {**plan.figures(), **more}
        shown = {name: figures.get(name) for name in self.budget.limits() if figures.get(name)}
        told = ", ".join(
            f"{name} about {written(name, rounded_up(float(value or 0)))}" for name, value in shown.items()
        )
        raise UserError(
            f"no plan keeps the budget {self.budget.told()}; the nearest is {plan.name}: {told}",
            hint,
        )

    def _fitting(self, offered: Sequence[Plan], points: Sequence[Mapping[str, Any]]) -> list[Plan]:
        """Plans that are expected to keep the budget. Raises UserError where none is."""
        measured = {point["type"]: point for point in points if "failed" not in point}
        expected = [self._expected(plan, measured) for plan in offered]
        loose = replace(self.budget, drop=None, p50=self.budget.p50 and _SLACK * self.budget.p50)
        known = [replace(loose, p50=None) if figures["p50"] is None else loose for figures in expected]
        fitting = [p for p, figures, own in zip(offered, expected, known, strict=True) if not own.excess(figures)]
        keeps = [point for point in points if "failed" not in point and point["meets"]]
        if not fitting and not keeps:
            over = [sum(own.excess(figures).values()) for figures, own in zip(expected, known, strict=True)]
            place = over.index(min(over))
            told = {name: value for name, value in expected[place].items() if value}
            self._refuse(offered[place], told, "raise the limit to that, or begin with a smaller student")
        return [plan for plan in fitting if plan.name not in {point["name"] for point in points}]

    def _expected(self, plan: Plan, measured: Mapping[str, Mapping[str, Any]]) -> dict[str, float | None]:
        """Figures scaled from those of the whole student in the same type: time goes with what is read of memory."""
        whole = measured.get(plan.type)
        if whole is None:
            return plan.figures()
        beside = max(0.0, whole["bytes"] - self.shape.bytes(plan.type)) * plan.vocabulary / self.shape.vocabulary
        seconds = whole["p50_seconds"]
        share = plan.bytes / self.shape.bytes(plan.type)
        return plan.figures(beside, None if seconds is None else seconds * share)

    def _point(self, plan: Plan) -> dict[str, Any]:
        """Runs a plan, or reads back what it gave; a plan that cannot be done is told, and the search goes on.

        It is tried again by the next search. Raises UserError where not even the student could be measured.
        """
        place = self.folder / "points" / plan.name
        known = place / "point.json"
        if not known.is_file():
            work = place / "compress"
            work.mkdir(parents=True, exist_ok=True)
            point: dict[str, Any] = {"name": plan.name, "steps": list(plan.steps), "expected_rise": plan.rise}
            try:
                record = explore(replace(self.settings, steps=plan.steps), self.run, work, self.folder / "student.json")
                point |= {name: record[name] for name in _FIGURES}
            except UserError as error:
                self.run.progress.note(f"  {plan.name} cannot be had: {error}")
                shutil.rmtree(work)
                if not (self.folder / "student.json").is_file():
                    raise
                return {**point, "failed": str(error)}
            write_json(known, point)
        return self._judged(read_json(known))

    def _of_earlier_searches(self, names: set[str]) -> list[dict[str, Any]]:
        """Points that a search with another budget made; they belong to the front too."""
        known = sorted(self.folder.glob("points/*/point.json"))
        return [self._judged(read_json(path)) for path in known if path.parent.name not in names]

    def _judged(self, point: dict[str, Any]) -> dict[str, Any]:
        """With its drop against the student, and how far it lies above the budget."""
        if "failed" in point:
            return point
        point["drop"] = read_json(self.folder / "student.json")["exact"] - point["exact"]
        figures = {"bytes": point["bytes"], "parameters": point["parameters"], "p50": point["p50_seconds"]}
        over = self.budget.excess({**figures, "drop": point["drop"]})
        point |= {"over": {name: min(value, 1e9) for name, value in over.items()}, "meets": not over}
        point["promoted"] = point["gate"]["promoted"]
        return point

    def _outcome(
        self, sensitivity: Sensitivity, offered: Sequence[Plan], points: Sequence[dict[str, Any]]
    ) -> dict[str, Any]:
        done = [point for point in points if "failed" not in point]
        best = front(done)
        for point in done:
            point["on_front"] = point["name"] in best
        meeting = [point for point in done if point["meets"] and point["promoted"]]
        taken = max(meeting, key=lambda point: (point["exact"], -point["bytes"]), default=None)
        close = min(done, key=lambda point: (sum(point["over"].values()), -point["exact"]), default=None)
        student = read_json(self.folder / "student.json")
        return {
            "budget": self.budget.told(),
            "limits": self.budget.limits(),
            "student_sha256": self.weights,
            "student": {name: student[name] for name in ("exact", "low", "high", "n", "p50_seconds", "parameters")},
            "sensitivity": asdict(sensitivity),
            "plans": [asdict(plan) for plan in offered],
            "points": list(points),
            "chosen": taken and taken["name"],
            "nearest": None if taken or close is None else close["name"],
        }


def front(points: Sequence[Mapping[str, Any]]) -> set[str]:
    """Names of the points that no other is at least as good as in exact calls, bytes and latency, and better in one."""

    def measures(point: Mapping[str, Any]) -> tuple[float, float, float]:
        return -point["exact"], point["bytes"], point["p50_seconds"] or 0.0

    best = set()
    for point in points:
        own = measures(point)
        others = [measures(other) for other in points]
        if not any(all(a <= b for a, b in zip(o, own, strict=True)) and o != own for o in others):
            best.add(point["name"])
    return best


def point_folders(folder: Path, outcome: Mapping[str, Any]) -> dict[str, Path]:
    """The folders of the points that were made, by name."""
    return {point["name"]: folder / "points" / point["name"] for point in outcome["points"] if "failed" not in point}
