"""Teaches one student through its learners: checkpoints, measurements on valid, the best one kept."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from supertiny.core.errors import UserError
from supertiny.core.files import hash_of, read_json, read_rows, write_json, write_rows, write_text
from supertiny.core.methods import build
from supertiny.core.records import Example
from supertiny.core.run import Run
from supertiny.core.scoring import is_exact, wilson_interval
from supertiny.core.student import Student
from supertiny.engines._torch_engine import TorchEngine
from supertiny.engines.torch import Torch
from supertiny.formats._answerer import ModelAnswerer
from supertiny.training.grid import on_grid, settled
from supertiny.training.lessons import Lesson, encode_lessons
from supertiny.training.loop import Step
from supertiny.training.pupil import Pupil
from supertiny.transfer.settings import Settings
from supertiny.transfer.supplies import Supplies


class Course:
    """The lessons of one student, from its base to the folder where it will stand."""

    def __init__(
        self, settings: Settings, run: Run, folder: Path, name: str, base: Path, unanswered: Sequence[Example] = ()
    ) -> None:
        self.settings = settings
        self.run = run
        self.name = name
        self.base = base
        self.place = folder / name
        self.work = folder / f".{name}"
        self.history = folder / "history.jsonl"
        self.form = build("formats", settings.format, "transfer.format")
        self.supplies = Supplies(settings, run, self.form, self.work, unanswered)

    def teach(self, examples: Sequence[Example], learners: Sequence[Any]) -> dict[str, Any]:
        """Runs the learners in order; gives what each bought on valid. A finished part is not done again."""
        bought = self.work / "bought.json"
        if (self.place / "supertiny.json").exists():
            shutil.rmtree(self.work, ignore_errors=True)
            summary: dict[str, Any] = read_json(self.place / "training.json")
            return summary
        self.work.mkdir(parents=True, exist_ok=True)
        results: list[dict[str, Any]] = read_json(bought) if bought.exists() else []
        for number in range(len(results), len(learners)):
            results.append(self._learn(number, learners[number], examples))
            write_json(bought, results)
        last = self.work / f"after-{len(learners) - 1}"
        if not learners:
            shutil.copytree(self.base, last, dirs_exist_ok=True)
        summary = {"rows": len(examples), "learners": results, "lessons_hash": hash_of([e.to_json() for e in examples])}
        write_json(last / "training.json", summary)
        Student(last, self.settings.format, self.settings.student, self.run.seed).save_card()
        last.rename(self.place)
        shutil.rmtree(self.work)
        return summary

    def _learn(self, number: int, block: Any, examples: Sequence[Example]) -> dict[str, Any]:
        after = self.work / f"after-{number}"
        exams = self.work / f"scores-{number}.json"
        before = read_json(self.work / "bought.json")[number - 1]["valid_exact"] if number else None
        if not after.exists():
            self._train(number, block, examples, exams, before)
            scores: dict[str, float] = read_json(exams)
            best = max(scores, key=_rank(scores))
            (self.work / f"best-{number}-{best}").rename(after)
        self._clear(number)
        for left in self.work.glob("learner-*"):
            left.unlink()
        scores = read_json(exams)
        logged = [row for row in self._logged() if row["learner"] == number and row["student"] == self.name]
        n = len(self._exam_rows())
        low, high = wilson_interval(round(max(scores.values()) * n), n)
        return {
            "learner": _title(block), "lessons": len(examples), "valid_exact": max(scores.values()),
            "low": low, "high": high, "n": n, "measured": scores, "before": before,
            "seconds": sum(row["seconds"] for row in logged), "tokens": sum(row["tokens"] for row in logged),
        }  # fmt: skip

    def _train(self, number: int, block: Any, examples: Sequence[Example], exams: Path, before: float | None) -> None:
        """Goes through the learner's steps; the best students so far stand in `best-NUMBER-STEP`, scores in `exams`.

        The student as the learner before left it is one of them, step 0: a learner that only harms buys nothing.
        """
        start = self.work / f"after-{number - 1}" if number else self.base
        pupil = Pupil.open(start, self.settings.precision)
        pupil.note = self.run.progress.note
        pupil.adapter = build("adapters", self.settings.adapter, "transfer.adapter")
        pupil.model = pupil.adapter.wrap(pupil.model, self.run.seed)
        longest, note = self.settings.longest_tokens, self.run.progress.note
        lessons = encode_lessons(examples, self.form, self.run.task.tools, pupil.tokenizer, longest, note=note)
        scores: dict[str, float] = read_json(exams) if exams.exists() else {}
        if before is not None and not scores:
            fresh = self.work / f".best-{number}-0"
            shutil.copytree(start, fresh, dirs_exist_ok=True)
            fresh.rename(self.work / f"best-{number}-0")
            scores["0"] = before
            write_json(exams, scores)
        with on_grid(pupil.model, self.settings.quantization_aware):
            for step in self._steps(number, block, pupil, lessons):
                if step.step not in self._exams(step.of):
                    continue
                if str(step.step) not in scores:
                    self._score(number, step.step, pupil, scores)
                    write_json(exams, scores)  # after the student that it speaks of stands whole
                    self._clear(number, max(scores, key=_rank(scores)))
                if self._is_stuck({key: share for key, share in scores.items() if 0 < int(key) <= step.step}):
                    times = self.settings.patience
                    self.run.progress.note(f"  {self.name}: no better for {times} measurements, stopping")
                    break

    def _score(self, number: int, step: int, pupil: Pupil, scores: dict[str, float]) -> None:
        """Measures the pupil as it would be kept, and keeps it where none was better."""
        rounded = self.settings.quantization_aware
        kept = _as_saved(pupil) if rounded == "none" else replace(pupil, model=settled(pupil.model, rounded))
        share = self._examine(kept)
        if share >= max(scores.values(), default=0.0):
            # Points of the grid have more digits than bfloat16 keeps.
            _keep(kept, self.work / f"best-{number}-{step}", torch.bfloat16 if rounded == "none" else torch.float32)
        scores[str(step)] = share
        pupil.model.train()

    def _clear(self, number: int, best: str = "") -> None:
        """Removes the students that were the best once."""
        for folder in self.work.glob(f"best-{number}-*"):
            if folder.name != f"best-{number}-{best}":
                shutil.rmtree(folder)

    def _steps(self, number: int, block: Any, pupil: Pupil, lessons: Sequence[Lesson]) -> Any:
        learner = build("learners", block, f"transfer.learners.{number}")
        checkpoint = self.work / f"learner-{number}.safetensors"
        supplied = self.supplies.of(learner, pupil, lessons)
        steps = learner.fit(pupil, lessons, self.run.seed, checkpoint, self.settings.checkpoint_steps, **supplied)
        first = next(steps, None)  # only the learner knows how many there are: it may pass over rows, or ask more
        if first is None:
            return
        with self.run.progress.task(f"{self.name}: {_title(block)} on {len(lessons)} rows", first.of, "steps") as tick:
            begun = 0
            for step in chain((first,), steps):
                if not begun:
                    self._forget(number, step.step)
                tick(step.step - begun)
                begun = step.step
                self._log(number, step)
                yield step

    def _exams(self, total: int) -> set[int]:
        times = self.settings.evaluations
        return {max(1, round(total * (place + 1) / times)) for place in range(times)}

    def _exam_rows(self) -> Sequence[Example]:
        return self.run.task.valid[: self.settings.valid_rows]

    def _examine(self, pupil: Pupil) -> float:
        """Share of valid that the pupil answers exactly."""
        pupil.model.eval()
        rows = self._exam_rows()
        engine = TorchEngine(Torch(), self.work, "pupil", pupil.model, pupil.tokenizer)
        answerer = ModelAnswerer("pupil", engine, self.form, self.run.task.tools, constrained=False)
        answers = answerer.answer([row.request for row in rows])
        gold = [row.answer.calls if row.answer else () for row in rows]
        right = [is_exact(a, g, self.run.task.tool_map) for a, g in zip(answers, gold, strict=True)]
        share = sum(right) / max(1, len(right))
        self.run.progress.note(f"  {self.name}: {share:.3f} exact on {len(right)} rows of valid")
        return share

    def _is_stuck(self, scores: dict[str, float]) -> bool:
        in_order = [scores[key] for key in sorted(scores, key=int)]
        since_best = len(in_order) - 1 - in_order.index(max(in_order))
        # Who is right nowhere yet has not begun to learn what is measured.
        return max(in_order) > 0 and since_best >= self.settings.patience

    def _log(self, number: int, step: Step) -> None:
        try:
            with self.history.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps({"student": self.name, "learner": number, **asdict(step)}) + "\n")
        except OSError as error:
            hint = "free some disk space and run the same command to go on"
            raise UserError(f"cannot write {self.history}: {error.strerror or error}", hint) from error

    def _logged(self) -> list[dict[str, Any]]:
        if not self.history.exists():
            return []
        text = self.history.read_text(encoding="utf-8")
        if text and not text.endswith("\n"):  # a line that a kill or a full disk cut short
            write_text(self.history, text[: text.rfind("\n") + 1])
        return read_rows(self.history)

    def _forget(self, number: int, step: int) -> None:
        """Takes out the records of steps that are done again after a kill."""
        place = (self.name, number)
        rows = [r for r in self._logged() if (r["student"], r["learner"]) != place or r["step"] < step]
        write_rows(self.history, rows)


def _as_saved(pupil: Pupil) -> Pupil:
    """The pupil with its adapter merged and its weights rounded to bfloat16, in its own precision."""
    stock = pupil.stock
    if stock is pupil.model:
        if next(stock.parameters()).dtype == torch.bfloat16:
            return pupil
        stock = copy.deepcopy(stock)
    for weight in stock.parameters():  # not the buffers: rotary frequencies are float32 in every model
        weight.data = weight.data.bfloat16().to(weight.dtype)
    return replace(pupil, model=stock, adapter=None)


def _keep(pupil: Pupil, best: Path, dtype: torch.dtype) -> None:
    """Saves the pupil, whole or not at all."""
    fresh = best.with_name(f".{best.name}")
    for stale in (fresh, best):
        shutil.rmtree(stale, ignore_errors=True)
    pupil.save(fresh, dtype)
    fresh.rename(best)


def _rank(scores: Mapping[str, float]) -> Callable[[str], tuple[float, int]]:
    """The best score first; of equal ones the later."""
    return lambda step: (scores[step], int(step))


def _title(block: Any) -> str:
    return block if isinstance(block, str) else str(block["method"])
