"""student -> artifact: the recipe's steps in order, each measured; a parity gate at the end."""

from __future__ import annotations

import math
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from supertiny.compress.examining import Paper, Room
from supertiny.compress.exporters.gguf import Gguf
from supertiny.compress.reshapers._tokenizer import cut_rows, places_in
from supertiny.compress.settings import Settings
from supertiny.core.artifact import Artifact
from supertiny.core.errors import UserError
from supertiny.core.files import read_json, read_rows, write_json
from supertiny.core.methods import build
from supertiny.core.records import Answer, Call, Example
from supertiny.core.run import Run
from supertiny.core.student import Student
from supertiny.training.grid import on_grid, settle
from supertiny.training.lessons import Lesson, collate, encode_lessons
from supertiny.training.pupil import Precision, Pupil

_SHOWN_ROWS = 10


def run(settings: Settings, run: Run, folder: Path) -> dict[str, Any]:
    """Makes `student/`, `artifact/` and `steps.json`; gives the artifact's type, bytes and agreement."""
    return _Work(settings, run, folder).do()


class _Work:
    """One run of the stage. A step that was finished before a kill is read back, not done again."""

    def __init__(self, settings: Settings, run: Run, folder: Path) -> None:
        self.settings = settings
        self.run = run
        self.folder = folder
        self.original = Student.open(run.folder / "transfer" / "student")
        self.form = build("formats", self.original.format, "transfer.format")
        self.room = Room(run.task, self.form, settings.max_tokens, settings.valid_rows)
        self.examples = [Example.from_json(row) for row in read_rows(run.folder / "prototype" / "train.jsonl")]

    def do(self) -> dict[str, Any]:
        student = self.original.folder
        records = [self._measured("student", student, {})]
        *shaping, last = self.settings.steps
        for number, block in enumerate(shaping):
            place = self.folder / f".step-{number}"
            if not (place / "supertiny.json").exists():
                self._reshape(number, block, student, place)
            student = place
            records.append(self._measured(_title(block), student, {"method": _name(block)}))
        export = self._export(last, student)
        records.append({**export, "name": _title(last), "method": _name(last)})
        self._settle(student)
        write_json(self.folder / "steps.json", records)
        names = ("type", "bytes", "parameters", "exact", "agreement")
        return {"steps": len(records) - 1, "source": self.original.base, **{name: export[name] for name in names}}

    def _settle(self, student: Path) -> None:
        place = self.folder / "student"
        beside = self.folder / ".student"
        shutil.rmtree(beside, ignore_errors=True)
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(student, beside, ignore=shutil.ignore_patterns("training.json"))
        beside.rename(place)
        for left in (*self.folder.glob(".step-*"), *self.folder.glob(".measured-*")):
            shutil.rmtree(left) if left.is_dir() else left.unlink()

    def _reshape(self, number: int, block: Any, before: Path, place: Path) -> None:
        """Reshapes, and where that shrank the student teaches it again; writes a whole folder or none."""
        pupil = self._reshaped(number, block, before, "auto")
        if pupil.parameters < Student.open(before).parameters:
            self._recover(number, _title(block), pupil)
            settle(pupil.model.float(), self._grid())
        else:  # what it computes shall stay as it is, and points of a grid have more digits than bfloat16 keeps
            pupil = self._reshaped(number, block, before, "float32")
        beside = self.folder / f".step-{number}.new"
        shutil.rmtree(beside, ignore_errors=True)
        pupil.save(beside, torch.float32)
        Student(beside, self.original.format, self.original.base, self.original.seed).save_card()
        beside.rename(place)

    def _reshaped(self, number: int, block: Any, before: Path, precision: Precision) -> Pupil:
        pupil = Pupil.open(before, precision)
        reshaper = build("reshapers", block, f"compress.steps.{number}")
        words = "tokenizer" in getattr(reshaper, "needs", ())  # then every row counts: any may have a word of its own
        rows = None if words else self.settings.calibration_rows
        calibration = self._batches(self._lessons(pupil, rows), pupil)
        pupil.model.eval()
        if words:
            pupil.model, pupil.tokenizer = reshaper.reshape(pupil.model, calibration, tokenizer=pupil.tokenizer)
        else:
            pupil.model = reshaper.reshape(pupil.model, calibration)
        return pupil

    def _recover(self, number: int, title: str, pupil: Pupil) -> None:
        learner = build("learners", self.settings.recovery, "compress.recovery")
        lessons = self._lessons(pupil, self.settings.recovery_rows)
        needs = {word for need in getattr(learner, "needs", ()) for word in need.split("|")}
        teacher = {"teacher": self._teacher(pupil)} if "live_teacher" in needs else {}
        total = math.ceil(len(lessons) / learner.rows) * learner.passes
        checkpoint = self.folder / f".recovery-{number}.safetensors"
        with self.run.progress.task(f"recovering after {title}", total, "steps") as tick:
            done = 0
            with on_grid(pupil.model, self._grid()):
                for step in learner.fit(pupil, lessons, self.run.seed, checkpoint, 25, **teacher):
                    tick(step.step - done)
                    done = step.step
        checkpoint.unlink(missing_ok=True)

    def _teacher(self, pupil: Pupil) -> Pupil:
        """The student before the first step; where a step trimmed the vocabulary, with the same tokens left."""
        teacher = Pupil.open(self.original.folder)
        if len(teacher.tokenizer) != len(pupil.tokenizer):
            teacher.model = cut_rows(teacher.model, places_in(teacher.tokenizer, pupil.tokenizer))
            teacher.tokenizer = pupil.tokenizer
        return teacher

    def _grid(self) -> str:
        """The exported type whose rounding the recovery trains with; "" where it shall not."""
        last = self.settings.steps[-1]
        type = last.get("type", Gguf().type) if isinstance(last, dict) else Gguf().type
        return str(type) if self.settings.quantization_aware else ""

    def _lessons(self, pupil: Pupil, rows: int | None) -> list[Lesson]:
        examples = list(self.examples)
        random.Random(self.run.seed).shuffle(examples)
        tools, longest = self.run.task.tools, self.settings.longest_tokens
        setting, note = "compress.longest_tokens", self.run.progress.note
        return encode_lessons(examples[:rows], self.form, tools, pupil.tokenizer, longest, setting, note)

    def _batches(self, lessons: Sequence[Lesson], pupil: Pupil) -> list[Any]:
        pad = pupil.tokenizer.pad_token_id
        pad = int(pupil.tokenizer.eos_token_id if pad is None else pad)
        ordered = sorted(lessons, key=lambda lesson: len(lesson.ids))
        return [collate(ordered[start : start + 32], pad) for start in range(0, len(ordered), 32)]

    def _measured(self, title: str, student: Path, more: dict[str, Any]) -> dict[str, Any]:
        """A student on the artifact's engine, as f16: so that every step is measured by the same means."""
        known = self.folder / f".measured-{student.name.strip('.')}.json"
        if not known.exists():
            work = self.folder / ".measured"
            Gguf("f16").export(student, work)
            engine = self.room.open(self.settings.engine, work / "model.gguf")
            paper = self.room.examine(engine)
            engine.close()
            shutil.rmtree(work)
            card = Student.open(student)
            said = [[call.to_json() for call in answer.calls] for answer in paper.answers]
            write_json(known, {"parameters": card.parameters, "bytes": card.bytes, **paper.figures, "said": said})
        record = {"name": title, **more, **read_json(known)}
        record["same_as_student"] = self._same_as_student(_answers(record.pop("said")))
        self._note(record)
        return record

    def _same_as_student(self, answers: Sequence[Answer]) -> float:
        """Share of rows that are answered as the student of the stage before answers them, on the same engine."""
        known = read_json(self.folder / f".measured-{self.original.folder.name}.json")
        return 1 - len(self.room.differing(_answers(known["said"]), answers)) / max(1, len(answers))

    def _export(self, block: Any, student: Path) -> dict[str, Any]:
        """The first type that holds parity. Raises UserError with the rows that differ where none does."""
        reference = self.room.open({"method": "torch", "precision": "float32"}, student)
        expected = self.room.examine(reference)
        tokenizer = Pupil.open(student).tokenizer
        reference.close()
        exporter = build("exporters", block, f"compress.steps.{len(self.settings.steps) - 1}")
        tried: dict[str, float] = {}
        differing: list[str] = []
        for candidate in (exporter, *getattr(exporter, "larger", list)()):
            place = self.folder / "artifact"
            told = candidate.export(student, place)
            artifact = Artifact.of(place, self.original.format, told["type"], told["parameters"], self.original.base)
            paper = self._gated(artifact, tokenizer, getattr(exporter, "restore", None))
            differing = self.room.differing(expected.answers, paper.answers)
            agreement = 1 - len(differing) / max(1, paper.figures["n"])
            tried[told["type"]] = agreement
            record = {"type": artifact.type, "bytes": artifact.bytes, "parameters": artifact.parameters}
            record |= {**paper.figures, "agreement": agreement, "student_exact": expected.figures["exact"]}
            record["same_as_student"] = self._same_as_student(paper.answers)
            self._note({"name": f"artifact {artifact.type}", **record})
            if agreement >= self.settings.parity:
                artifact.save_card()
                return {**record, "tried": tried, "differing_rows": differing}
        shares = ", ".join(f"{name} {share:.3f}" for name, share in tried.items())
        shown = ", ".join(differing[:_SHOWN_ROWS]) + (" ..." if len(differing) > _SHOWN_ROWS else "")
        asked = self.settings.parity
        raise UserError(
            f"artifact and student agree too rarely on valid ({shares}; asked: {asked}), not on rows {shown}",
            "train the student longer, or lower compress.parity if these rows do not matter",
        )

    def _gated(self, artifact: Artifact, tokenizer: Any, restore: Any = None) -> Paper:
        """What the artifact answers; one that no engine here opens is read back into plain weights first."""
        plain = self.folder / ".restored"
        if restore is None:
            engine = self.room.open(self.settings.engine, artifact.model)
        else:
            engine = self.room.open({"method": "torch", "precision": "float32"}, restore(artifact.folder, plain))
        try:
            self.room.check_prompts(engine, tokenizer)
            return self.room.examine(engine)
        finally:
            engine.close()
            shutil.rmtree(plain, ignore_errors=True)

    def _note(self, record: dict[str, Any]) -> None:
        size, share = record["bytes"] / 1e6, record["exact"]
        same = f", {record['same_as_student']:.3f} answered as by the student"
        parity = f", parity {record['agreement']:.3f}" if "agreement" in record else ""
        self.run.progress.note(
            f"  {record['name']}: {size:.1f} MB, {share:.3f} exact on {record['n']} rows{same}{parity}"
        )


def _answers(said: Sequence[Any]) -> list[Answer]:
    return [Answer(tuple(Call.from_json(call) for call in calls)) for calls in said]


def _name(block: Any) -> str:
    return block if isinstance(block, str) else str(block["method"])


def _title(block: Any) -> str:
    if isinstance(block, str):
        return block
    settings = ", ".join(f"{key} {value}" for key, value in block.items() if key != "method")
    return f"{block['method']} ({settings})" if settings else str(block["method"])
