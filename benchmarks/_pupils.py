"""Cells of transfer_quality: a student is taught once and examined; a finished cell is a file and is not done again."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import psutil
import torch

from benchmarks._halves import Exam, Result, crossed, examined, halves
from benchmarks.data_selection import content_of
from supertiny.core.files import hash_of, read_json, read_rows, write_json, write_rows
from supertiny.core.methods import build
from supertiny.core.progress import Progress
from supertiny.core.records import Example
from supertiny.core.scoring import plain_call
from supertiny.core.student import Student
from supertiny.core.task import Task
from supertiny.engines._huggingface import huggingface_folder
from supertiny.engines._torch_engine import TorchEngine
from supertiny.engines.torch import Torch
from supertiny.formats._answerer import ModelAnswerer
from supertiny.training.lessons import Lesson, collate, encode_lessons, encode_prompts
from supertiny.training.loop import Step, steps_of
from supertiny.training.practice import Practice, Sample
from supertiny.training.pupil import Pupil
from supertiny.training.rollout import roll_out

FORMAT = "compact"
LONGEST = 512  # tokens of a lesson
MAX_TOKENS = 96  # of an answer
CHECKPOINT_STEPS = 100
AT_ONCE = 64  # rows of an exam
SURE = 0.5  # mean probability of an answer on which a committee agrees, from which on it is a lesson


@dataclass(frozen=True)
class Cell:
    """One training of the student."""

    task: Task
    student: str
    seed: int
    learner: Mapping[str, Any]
    rows: Sequence[Example]
    """Examples with the answers that are learned."""
    start: Path | None = None
    """Folder of the cell on whose student it is built; the student itself where it is None."""
    unanswered: Sequence[Example] = ()
    """Requests without a trusted answer."""
    teachers: tuple[Path, ...] = ()
    """Folders of cells whose students teach together; what they agree on among `unanswered` is learned too."""
    adapter: str = "full"
    exams: int = 4
    """Times that it is measured on valid, evenly spread."""
    keeps: bool = False
    """Whether the last student stays, for others to be built on: no row of valid has chosen it."""

    @cached_property
    def key(self) -> str:
        return hash_of(
            [self.task.name, self.task.hash, self.student, FORMAT, self.seed, dict(self.learner), self.adapter,
             self.exams, content_of(self.rows), [row.request.id for row in self.unanswered],
             [row.request.id for row in self.task.valid], self.start and self.start.name,
             [folder.name for folder in self.teachers]]
        )  # fmt: skip


@dataclass
class Committee(Pupil):
    """Several students as one teacher: the mean of their probabilities."""

    members: tuple[Pupil, ...] = ()

    @classmethod
    def of(cls, folders: Sequence[Path]) -> Committee:
        members = tuple(Pupil.open(folder) for folder in folders)
        for member in members:
            member.model.eval()
        first = members[0]
        return cls(first.model, first.tokenizer, first.device, members=members)

    def logits_at(self, ids: torch.Tensor, mask: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        """Log-probabilities (positions, vocabulary), up to a constant."""
        said = [torch.log_softmax(member.logits_at(ids, mask, wanted), dim=-1) for member in self.members]
        return torch.stack(said).logsumexp(dim=0)

    def agreed(self, prompts: Sequence[Lesson], practice: Practice, seed: int) -> list[Example]:
        """Requests to which all members give one answer that the verifier does not fail, and that they are sure of."""
        written = [roll_out(member, prompts, practice, 1, seed, 0.0) for member in self.members]
        found = []
        for prompt, samples in zip(prompts, zip(*written, strict=True), strict=True):
            one = _one_answer([sample for (sample,) in samples], practice)
            if one is not None and prompt.example is not None:
                found.append(replace(prompt.example, answer=one.answer, verdict=one.verdict))
        return found


def _one_answer(samples: Sequence[Sample], practice: Practice) -> Sample | None:
    tools = {tool.name: tool for tool in practice.tools}
    said = {
        None if s.answer is None else tuple(sorted(plain_call(call, tools) for call in s.answer.calls)) for s in samples
    }
    sure = sum(float(torch.tensor(sample.logprobs).sum().exp()) for sample in samples) / len(samples)
    right = all(sample.verdict.outcome != "fail" for sample in samples)
    return samples[0] if len(said) == 1 and None not in said and right and sure >= SURE else None


def place_of(cell: Cell, folder: Path) -> Path:
    return folder / "cells" / cell.key


def done(cell: Cell, folder: Path, progress: Progress, title: str) -> Result:
    """Teaches and measures, or reads what was measured before."""
    exams, more = exams_of(cell, folder, progress, title)
    return crossed(exams, halves(cell.task.valid), more)


def exams_of(cell: Cell, folder: Path, progress: Progress, title: str) -> tuple[dict[str, Exam], Mapping[str, Any]]:
    """(exams by step, seconds and the like). Step 0 is the student that it was built on."""
    place = place_of(cell, folder)
    path = place / "result.json"
    if not path.is_file() or (cell.keeps and not (place / "student").is_dir()):
        _teach(cell, place, progress, title)
    kept = read_json(path)
    return {step: Exam.from_json(row) for step, row in kept["exams"].items()}, kept["more"]


def _teach(cell: Cell, place: Path, progress: Progress, title: str) -> None:
    place.mkdir(parents=True, exist_ok=True)
    begin = cell.start / "student" if cell.start else huggingface_folder(cell.student, "--student")
    pupil = Pupil.open(begin)
    pupil.note = progress.note
    pupil.adapter = build("adapters", cell.adapter)
    pupil.model = pupil.adapter.wrap(pupil.model, cell.seed)
    trainable = pupil.trainable
    exams: dict[str, Any] = read_json(place / "exams.json") if (place / "exams.json").is_file() else _begun(cell)
    peak = PeakMemory(pupil.device)
    for step in _steps(cell, place, pupil, peak, progress, title):
        if step.step in spread(step.of, cell.exams) and str(step.step) not in exams:
            exams[str(step.step)] = _exam(cell, pupil, progress, f"{title}, step {step.step} of {step.of}").to_json()
            write_json(place / "exams.json", exams)
    rows = list({row["step"]: row for row in read_rows(place / "steps.jsonl")}.values())
    more = {
        "seconds": sum(row["seconds"] for row in rows), "tokens": sum(row["tokens"] for row in rows),
        "steps": len(rows), "peak_gb": peak.bytes / 1e9, "trainable": trainable,
        "lessons": len(_lessons_known(cell, place)), "loss_on_valid": _loss(cell, pupil),
    }  # fmt: skip
    if cell.keeps:
        fresh = place / ".student"
        shutil.rmtree(fresh, ignore_errors=True)
        pupil.save(fresh)
        Student(fresh, FORMAT, cell.student, cell.seed).save_card()
        shutil.rmtree(place / "student", ignore_errors=True)
        fresh.rename(place / "student")
    known = {step: Exam.from_json(row) for step, row in exams.items()}
    measured = crossed(known, halves(cell.task.valid), more).to_json()
    about = {"task": cell.task.name, "title": title, "seed": cell.seed, "learner": dict(cell.learner)}
    write_json(place / "result.json", {**about, **measured, "more": more, "exams": exams})
    for left in (place / "exams.json", *place.glob("checkpoint*")):
        left.unlink(missing_ok=True)


def _begun(cell: Cell) -> dict[str, Any]:
    """The exam of the student that it starts with: a training that only harms buys nothing."""
    if cell.start is None:
        return {}
    known = read_json(cell.start / "result.json")["exams"]
    return {"0": known[max(known, key=int)]}


def _steps(cell: Cell, place: Path, pupil: Pupil, peak: PeakMemory, progress: Progress, title: str) -> Iterator[Step]:
    """The learner's steps, each with its memory watched; goes on from its checkpoint."""
    learner, form, task = build("learners", cell.learner), build("formats", FORMAT), cell.task
    prompts = encode_prompts(cell.unanswered, form, task.tools, pupil.tokenizer, LONGEST)
    practice = Practice(form, task.tools, task.verify, prompts, MAX_TOKENS)
    supplied: dict[str, Any] = {"practice": practice} if "practice" in getattr(learner, "needs", ()) else {}
    if cell.teachers:
        supplied["teacher"] = Committee.of([folder / "student" for folder in cell.teachers])
        _agree(supplied["teacher"], prompts, practice, cell, place, progress)
    rows = _lessons_known(cell, place)
    lessons = encode_lessons(rows, form, task.tools, pupil.tokenizer, LONGEST, note=progress.note)
    asked = len(lessons) + (len(prompts) if cell.learner["method"] == "reject" else 0)
    steps = learner.fit(pupil, lessons, cell.seed, place / "checkpoint.safetensors", CHECKPOINT_STEPS, **supplied)
    logged, before = place / "steps.jsonl", 0
    with (
        progress.task(title, steps_of(asked, learner.rows, learner.passes), "steps") as tick,
        logged.open("a", encoding="utf-8", buffering=1) as lines,
    ):
        while True:
            with peak:
                step = next(steps, None)
            if step is None:
                return
            told = {"step": step.step, "loss": step.loss, "seconds": step.seconds, "tokens": step.tokens, **step.more}
            lines.write(json.dumps(told) + "\n")
            tick(step.step - before)
            before = step.step
            yield step


def _agree(
    committee: Committee, prompts: Sequence[Lesson], practice: Practice, cell: Cell, place: Path, progress: Progress
) -> None:
    """Writes `agreed.jsonl`: what the committee says of requests that nobody has answered."""
    path = place / "agreed.jsonl"
    if not path.is_file():
        found = committee.agreed(prompts, practice, cell.seed)
        progress.note(
            f"  a committee of {len(committee.members)} is sure of {len(found)} of {len(prompts)} more answers"
        )
        write_rows(path, [row.to_json() for row in found])


def _lessons_known(cell: Cell, place: Path) -> list[Example]:
    agreed = place / "agreed.jsonl"
    return [*cell.rows, *(map(Example.from_json, read_rows(agreed)) if agreed.is_file() else ())]


def spread(total: int, times: int) -> set[int]:
    """Steps, evenly spread, the last one among them."""
    return {max(1, round(total * (place + 1) / times)) for place in range(times)}


def _exam(cell: Cell, pupil: Pupil, progress: Progress, title: str) -> Exam:
    """Greedy answers to valid without a grammar."""
    pupil.model.eval()
    form, task = build("formats", FORMAT), cell.task
    engine = TorchEngine(Torch(max_batch=AT_ONCE), Path(), "pupil", pupil.model, pupil.tokenizer)
    answerer = ModelAnswerer("pupil", engine, form, task.tools, MAX_TOKENS, constrained=False)
    answers = answerer.answer([row.request for row in task.valid])
    pupil.model.train()
    exam = examined(answers, task.valid, task)
    progress.note(f"  {title}: {sum(exam.hits)} of {len(exam.hits)} exact")
    return exam


@torch.inference_mode()
def _loss(cell: Cell, pupil: Pupil) -> float:
    """Mean cross-entropy of the gold answers' tokens on valid, in nats."""
    pupil.model.eval()
    rows = [row for row in cell.task.valid if row.answer is not None]
    lessons = encode_lessons(rows, build("formats", FORMAT), cell.task.tools, pupil.tokenizer, LONGEST)
    lessons.sort(key=lambda lesson: len(lesson.ids))
    total, tokens = 0.0, 0
    for start in range(0, len(lessons), AT_ONCE):
        batch = collate(lessons[start : start + AT_ONCE], pupil.pad_id).to(pupil.device)
        logits = pupil.logits_at(batch.ids, batch.mask, batch.wanted)
        total += float(torch.nn.functional.cross_entropy(logits, batch.targets, reduction="sum"))
        tokens += batch.targets.numel()
    return total / max(1, tokens)


class PeakMemory:
    """While it is entered, watches memory: what tensors take on a GPU, what the process has in RAM elsewhere."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.bytes = 0
        self._stop = threading.Event()
        self._watcher: threading.Thread | None = None

    def __enter__(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            return
        self._stop.clear()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()

    def __exit__(self, *error: object) -> None:
        if self._watcher is None:
            self.bytes = max(self.bytes, torch.cuda.max_memory_allocated(self.device))
            return
        self._stop.set()
        self._watcher.join()

    def _watch(self) -> None:
        process = psutil.Process()
        while True:
            self.bytes = max(self.bytes, process.memory_info().rss)
            if self._stop.wait(0.005):
                return
