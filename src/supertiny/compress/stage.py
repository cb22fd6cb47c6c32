"""student -> artifact: the recipe's steps in order, each measured; a gate of parity and one of promotion at the end."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from supertiny.compress.answered import FIGURES, PLAIN, Answered, paper_of
from supertiny.compress.changing import change_by, reshaped
from supertiny.compress.examining import Paper, Room
from supertiny.compress.exporters.compressed_tensors import CompressedTensors
from supertiny.compress.exporters.gguf import Gguf
from supertiny.compress.gate import Sitting
from supertiny.compress.recovery import Recovery, trained_through
from supertiny.compress.settings import Settings
from supertiny.compress.steps import Step, name_of, steps_of, title_of
from supertiny.compress.trust import probes
from supertiny.core.artifact import Artifact
from supertiny.core.errors import UserError
from supertiny.core.files import read_json, read_rows, write_json
from supertiny.core.methods import build
from supertiny.core.records import Answer, Example
from supertiny.core.run import Run
from supertiny.core.student import Student
from supertiny.training.pupil import Precision, Pupil

_SHOWN_ROWS = 10
_FLOAT32 = {"method": "torch", "precision": "float32"}


def run(settings: Settings, run: Run, folder: Path) -> dict[str, Any]:
    """Makes `student/`, `artifact/` and `steps.json`; gives the artifact's type, bytes, agreement and promotion.

    An artifact that the gate does not promote gives way to a larger type, and where none is promoted to the student of
    the stage before, unshortened, as q8_0; steps.json and the progress say so.
    """
    return _Work(settings, run, folder).do()


def explore(settings: Settings, run: Run, folder: Path, known: Path) -> dict[str, Any]:
    """The same for a search: the artifact is the one that was asked for, whatever the gates say; no student stays.

    What the student of the stage before answers stands in the file `known`, or is written there. Gives the last record
    of steps.json.
    """
    return _Work(settings, run, folder, known).do()


class _Work:
    """One run of the stage. A step that was finished before a kill is read back, not done again."""

    def __init__(self, settings: Settings, run: Run, folder: Path, known: Path | None = None) -> None:
        self.settings = settings
        self.run = run
        self.folder = folder
        self.exploring = known is not None
        self.steps = steps_of(settings.steps)
        self.original = Student.open(run.folder / "transfer" / "student")
        self.form = build("formats", self.original.format, "transfer.format")
        self.room = Room(run.task, self.form, settings.max_tokens, settings.valid_rows)
        questions = probes(run.task, self.room.valid, settings.gate.trust_rows, run.seed)
        self.answered = Answered(folder, self.room, questions, self.original.folder, known)
        self.examples = [Example.from_json(row) for row in read_rows(run.folder / "prototype" / "train.jsonl")]

    def do(self) -> dict[str, Any]:
        student = self.original.folder
        records = [self._measured("student", student, {})]
        *shaping, last = self.settings.steps
        finished = [n for n in range(len(shaping)) if (self._place(n) / "supertiny.json").exists()]
        for number, block in enumerate(shaping):
            place = self._place(number)
            if number > max(finished, default=-1):
                self._shape(number, student, place)
            records.append(self._measured(title_of(block), place, {"method": name_of(block)}))
            if number:
                shutil.rmtree(student, ignore_errors=True)  # measured, and the step after it stands
            student = place
        export, student = self._export(last, student)
        records.append({"name": title_of(last), "method": name_of(last), **export})
        self._settle(student)
        write_json(self.folder / "steps.json", records)
        if self.exploring:
            return records[-1]
        names = ("type", "bytes", "parameters", "exact", "agreement")
        known = {**{name: export[name] for name in names}, "promoted": export["gate"]["promoted"]}
        return {"steps": len(records) - 1, "source": self.original.base, **known, "fell_back": export["fell_back"]}

    def _place(self, number: int) -> Path:
        return self.folder / f".step-{number}"

    def _settle(self, student: Path) -> None:
        place = self.folder / "student"
        beside = self.folder / ".student"
        shutil.rmtree(beside, ignore_errors=True)
        shutil.rmtree(place, ignore_errors=True)
        if not self.exploring:
            shutil.copytree(student, beside, ignore=shutil.ignore_patterns("training.json"))
            beside.rename(place)
        for left in self.folder.glob(".step-*/supertiny.json"):
            left.unlink()  # first: after a kill a folder that is half removed must not pass for a finished step
        for left in (*self.folder.glob(".step-*"), *self.folder.glob(".measured*")):
            shutil.rmtree(left) if left.is_dir() else left.unlink()

    def _shape(self, number: int, before: Path, place: Path) -> None:
        """Does a step, and where it took something from the student teaches that again; a whole folder or none."""
        step, checkpoint = self.steps[number], self.folder / f".recovery-{number}.safetensors"
        recovery = Recovery(self.settings, self.run, self.form, self.original.folder, self.examples, checkpoint)
        # What is not taught again stays as it is, and points of a grid have more digits than bfloat16 keeps.
        precision: Precision = "auto" if self._recovers(step) and step.family != "quantizers" else "float32"
        pupil = self._changed(number, before, precision, recovery)
        shrunk = step.family != "reshapers" or pupil.parameters < Student.open(before).parameters
        if self._recovers(step) and shrunk:
            pruned = any(done.family == "pruners" for done in self.steps[: number + 1])
            recovery.teach(title_of(self.settings.steps[number]), pupil, step, self._grid(), pruned)
        elif precision != "float32":
            pupil = self._changed(number, before, "float32", recovery)
        beside = self.folder / f".step-{number}.new"
        shutil.rmtree(beside, ignore_errors=True)
        pupil.save(beside, torch.float32)
        Student(beside, self.original.format, self.original.base, self.original.seed).save_card()
        shutil.rmtree(place, ignore_errors=True)
        self.answered.forget(place)  # a kill while all was tidied up may have left the cards of another
        beside.rename(place)

    def _recovers(self, step: Step) -> bool:
        """Whether something is taught after the step, if it shrinks the student.

        A quantizer without a training of its own has fitted weights to a grid, which training would leave; a trimmed
        vocabulary takes nothing from what the remaining tokens mean.
        """
        if self.settings.recovery is None:
            return False
        return step.trains or step.family == "pruners" or (step.family == "reshapers" and "tokenizer" not in step.needs)

    def _changed(self, number: int, before: Path, precision: Precision, recovery: Recovery) -> Pupil:
        """The student before with the step done, not taught yet."""
        step, pupil = self.steps[number], Pupil.open(before, precision)
        words = "tokenizer" in step.needs  # then every row counts: any may have a word of its own
        rows = None if words else self.settings.calibration_rows
        calibration = recovery.batches(recovery.lessons(pupil, rows), pupil)
        pupil.model.eval()
        title = title_of(self.settings.steps[number])
        if words:
            pupil.model, pupil.tokenizer = step.method.reshape(pupil.model, calibration, tokenizer=pupil.tokenizer)
        elif step.family == "reshapers":
            pupil.model = reshaped(step.method, pupil.model, calibration, self.run.progress, title)
        elif not step.trains or (step.family == "pruners" and not self._recovers(step)):
            pruners = [done for done in self.steps[:number] if done.family == "pruners"]
            with self.run.progress.share(title, pupil.model.config.num_hidden_layers, "blocks") as advance:
                change_by(step, pupil.model, calibration, self.run.seed, pruners, advance)
        elif not self._recovers(step):
            with trained_through(step, pupil.model, self.run.seed):
                pass  # what the method begins with is what it leaves
        return pupil

    def _grid(self) -> str:
        """The exported type whose rounding the recovery trains with; "" where it shall not.

        A quantizer fits to a grid of its own, and single types of matrices are not the one that is trained with.
        """
        last = self.steps[-1].method
        if not self.settings.quantization_aware or any(step.family == "quantizers" for step in self.steps):
            return ""
        if isinstance(last, Gguf):
            return "" if last.types else last.type
        # The same grid under another name.
        return "q4_0" if isinstance(last, CompressedTensors) and (last.type, last.group) == ("int4", 32) else ""

    def _measured(self, title: str, student: Path, more: dict[str, Any]) -> dict[str, Any]:
        """A student on the artifact's engine, as f16."""
        card, whole = self.answered.card(student), student == self.original.folder
        known = self.answered.read(card)
        if not known or (whole and "sitting" not in known):
            work = self.folder / ".measured"
            PLAIN.export(student, work)
            engine = self.room.open(self.settings.engine, work / "model.gguf")
            try:
                paper = self.answered.paper(engine, card, student)
                if whole:
                    self.answered.sitting(engine, card, paper)
            finally:
                engine.close()
            shutil.rmtree(work)
            known = read_json(card)
        record = {"name": title, **more, **{name: known[name] for name in ("parameters", "bytes", *FIGURES)}}
        record["same_as_student"] = self._same_as_student(paper_of(known).answers)
        self._note(record)
        return record

    @property
    def _student_paper(self) -> dict[str, Any]:
        """The card of the student of the stage before, which is measured first."""
        known: dict[str, Any] = read_json(self.answered.card(self.original.folder))
        return known

    def _same_as_student(self, answers: Sequence[Answer]) -> float:
        """Share of rows that are answered as the student of the stage before answers them, on the same engine."""
        return 1 - len(self.room.differing(paper_of(self._student_paper).answers, answers)) / max(1, len(answers))

    def _judged(self, sitting: Sitting) -> dict[str, Any]:
        student = Sitting.from_json(self._student_paper["sitting"])
        return self.settings.gate.judge(student, sitting, self.run.seed)

    def _spoilt(self, student: Path) -> list[str]:
        """What of exact calls the steps before the export broke by themselves, and no larger type brings back."""
        known = paper_of(read_json(self.answered.card(student)))
        broke: list[str] = self._judged(Sitting(self.room.hits(known.answers)))["broke"]
        return broke

    def _export(self, block: Any, student: Path) -> tuple[dict[str, Any], Path]:
        """The first type that holds parity and is promoted, and the student that it was made from.

        Raises UserError with the rows that differ where no type holds parity.
        """
        expected = self._expected(student)
        exporter = self.steps[-1].method
        tried: dict[str, float] = {}
        refused: list[dict[str, Any]] = []
        differing: list[str] = []
        larger: Sequence[Any] = () if self.exploring else getattr(exporter, "larger", tuple)()
        parity = 0.0 if self.exploring else self.settings.parity
        for number, candidate in enumerate((exporter, *larger)):
            record, differing = self._tried(candidate, student, expected, parity)
            tried[record["type"]] = record["agreement"]
            holds, promoted = record["agreement"] >= parity, record["gate"]["promoted"]
            if self.exploring or (holds and promoted):
                told = {"tried": tried, "refused": refused, "differing_rows": differing, "fell_back": False}
                return self._kept(record, told), student
            spoilt = [] if promoted else self._spoilt(student)
            if not promoted and (holds or spoilt):
                refused.append({"type": record["type"], "broke": record["gate"]["broke"]})
            if spoilt:
                refused += self._left_out([other.type for other in larger[number:]], spoilt)
                break
        if refused:
            return self._fallen_back(tried, refused), self.original.folder
        shares = ", ".join(f"{name} {share:.3f}" for name, share in tried.items())
        shown = ", ".join(differing[:_SHOWN_ROWS]) + (" ..." if len(differing) > _SHOWN_ROWS else "")
        asked = self.settings.parity
        raise UserError(
            f"artifact and student agree too rarely on valid ({shares}; asked: {asked}), not on rows {shown}",
            "train the student longer, or lower compress.parity if these rows do not matter",
        )

    def _left_out(self, types: Sequence[str], spoilt: Sequence[str]) -> list[dict[str, Any]]:
        """Why larger types are not tried, as an entry of those that are refused."""
        if not types:
            return []
        told = f"not tried, since the steps before the export alone broke it: {'; '.join(spoilt)}"
        self.run.progress.note(f"    {', '.join(types)}: {told}")
        return [{"type": ", ".join(types), "broke": [told]}]

    def _expected(self, student: Path) -> Paper:
        """What an export is expected to answer: as the weights themselves do, and as their f16 where that must do."""
        if self.exploring or (student == self.original.folder and len(self.steps) > 1):
            return paper_of(read_json(self.answered.card(student)))
        card = self.answered.card(student, None)
        if known := self.answered.read(card):
            return paper_of(known)
        reference = self.room.open(_FLOAT32, student)
        try:
            return self.answered.paper(reference, card, student, timed=False)
        finally:
            reference.close()

    def _fallen_back(self, tried: dict[str, float], refused: list[dict[str, Any]]) -> dict[str, Any]:
        """The student of the stage before, as q8_0, and as f16 where even that is not promoted."""
        self.run.progress.note("  nothing compressed so is promoted: the student itself takes its place, as q8_0")
        expected, record = self._expected(self.original.folder), dict[str, Any]()
        for candidate in (Gguf("q8_0"), Gguf("f16")):
            record, differing = self._tried(candidate, self.original.folder, expected, 0.0)
            if record["gate"]["promoted"]:
                break
        told = {"tried": tried, "refused": refused, "differing_rows": differing, "fell_back": True}
        return self._kept(record, told)

    def _kept(self, record: dict[str, Any], told: dict[str, Any]) -> dict[str, Any]:
        """The record of the artifact that stays, whose card is written."""
        source = self.original
        Artifact.of(
            self.folder / "artifact", source.format, record["type"], record["parameters"], source.base
        ).save_card()
        return {**record, **told}

    def _tried(self, exporter: Any, student: Path, expected: Paper, parity: float) -> tuple[dict[str, Any], list[str]]:
        """What an export of the student answers, and the rows on which that is not what is expected.

        Where it misses parity it cannot stay, whatever can be trusted in it: the gate then looks at exact calls alone.
        """
        place = self.folder / "artifact"
        shutil.rmtree(place, ignore_errors=True)
        told = exporter.export(student, place)
        artifact = Artifact.of(place, self.original.format, told["type"], told["parameters"], self.original.base)
        tokenizer = AutoTokenizer.from_pretrained(student, trust_remote_code=False)
        card = self.answered.card(student, exporter)
        with self._opened(artifact, exporter) as engine:
            self.room.check_prompts(engine, tokenizer)
            paper = self.answered.paper(engine, card, student)
            differing = self.room.differing(expected.answers, paper.answers)
            agreement = 1 - len(differing) / max(1, len(paper.answers))
            sitting = (
                self.answered.sitting(engine, card, paper)
                if agreement >= parity
                else Sitting(self.room.hits(paper.answers))
            )
        record = {"type": artifact.type, "bytes": artifact.bytes, "parameters": artifact.parameters, **paper.figures}
        record |= {"agreement": agreement, "student_exact": expected.figures["exact"]}
        record["same_as_student"] = self._same_as_student(paper.answers)
        record["gate"] = self._judged(sitting)
        self._note({"name": f"artifact {artifact.type}", **record})
        for broken in record["gate"]["broke"]:
            self.run.progress.note(f"    not promoted: {broken}")
        return record, differing

    @contextmanager
    def _opened(self, artifact: Artifact, exporter: Any) -> Iterator[Any]:
        """The engine of an artifact; one that no engine here opens is read back into plain weights first."""
        plain, restore = self.folder / ".restored", getattr(exporter, "restore", None)
        if restore is None:
            engine = self.room.open(self.settings.engine, artifact.model)
        else:
            engine = self.room.open(_FLOAT32, restore(artifact.folder, plain))
        try:
            yield engine
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
