"""What learners need beside lessons: rules for the student's own answers, and a teacher's token probabilities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from supertiny.core.files import hash_of
from supertiny.core.methods import build
from supertiny.core.models import catalogue, path_of
from supertiny.core.nearest import NearestExamples
from supertiny.core.protocols import Engine, Format
from supertiny.core.records import Answer, Example, Prompt
from supertiny.core.run import Run
from supertiny.engines._gguf_to_hf import tokenizer_of
from supertiny.engines._huggingface import huggingface_folder
from supertiny.training.lessons import Lesson, encode_prompts
from supertiny.training.practice import Practice
from supertiny.training.pupil import Pupil
from supertiny.training.scores import Scores, parts_of
from supertiny.transfer.paid import PaidEngine
from supertiny.transfer.settings import Settings


class Supplies:
    """Keywords of a learner's `fit`, by its `needs`."""

    def __init__(
        self, settings: Settings, run: Run, form: Format, folder: Path, unanswered: Sequence[Example] = ()
    ) -> None:
        self.settings = settings
        self.run = run
        self.form = form
        self.folder = folder
        self.unanswered = unanswered
        self._nearest: NearestExamples | None = None

    def of(self, learner: Any, pupil: Pupil, lessons: Sequence[Lesson]) -> dict[str, Any]:
        """`practice`, `teacher` and `scores`, as far as the learner asks for them and the recipe has them."""
        needs = {word for need in getattr(learner, "needs", ()) for word in need.split("|")}
        needs |= set(getattr(learner, "takes", ()))
        supplied: dict[str, Any] = {}
        if "practice" in needs:
            supplied["practice"] = self._practice(pupil)
        if "live_teacher" in needs and self.settings.teacher and isinstance(self.settings.teacher, str):
            supplied["teacher"] = self._teacher()
        elif "token_scores" in needs:
            supplied["scores"] = self._scores(pupil, lessons)
        return supplied

    def _practice(self, pupil: Pupil) -> Practice:
        task, longest = self.run.task, self.settings.longest_tokens
        prompts = encode_prompts(self.unanswered, self.form, task.tools, pupil.tokenizer, longest)
        opener = partial(self._open, place="transfer: the judge's engine", purpose="judging the student's answers")
        return Practice(self.form, task.tools, task.verify, prompts, self.settings.max_tokens, opener)

    def _open(self, block: Any, place: str, purpose: str) -> Engine:
        """The engine; one that somebody bills is paid through the run's ledger, within the recipe's budget.

        A provider's batches are left aside: they have no scores, and a learner cannot wait a day at every step.
        """
        opened: Engine = build("engines", block, place).open()
        engine: Engine = getattr(opened, "at_once", opened)
        return PaidEngine(self.run.ledger, engine, purpose) if engine.price.is_billed else engine

    def _teacher(self) -> Pupil:
        folder = huggingface_folder(self.settings.teacher, "transfer.teacher")
        return Pupil.open(folder, self.settings.precision)

    def _scores(self, pupil: Pupil, lessons: Sequence[Lesson]) -> Scores:
        """The stored scores of these lessons; asked for once, and read back as far as a stopped run has them."""
        prompts = [self._shown(lesson) for lesson in lessons]
        block = self.settings.teacher
        asked = hash_of([block, self.settings.top_k, [list(lesson.ids) for lesson in lessons]])
        path = self.folder.parent / f".teacher-{asked}.safetensors"
        if path.exists():
            return Scores.open(path, lessons, None, prompts)
        engine = self._open(block, "transfer.teacher", "the teacher's scores of lessons")
        try:
            own, top_k = _tokenizer_of(block), self.settings.top_k
            scores = Scores.of_engine(engine, lessons, pupil.tokenizer, own, top_k, prompts, kept=path)
        finally:
            engine.close()
        self.run.progress.note(f"  the teacher {scores.teacher} scored {scores.covered:.0%} of the answer tokens")
        scores.save(path)
        for part in parts_of(path):
            part.unlink()
        return scores

    def _shown(self, lesson: Lesson) -> Prompt:
        """The nearest labelled rows, solved in the student's own format, then the lesson's request."""
        example = lesson.example
        if example is None:
            raise ValueError("a lesson without its example has no prompt")
        if self._nearest is None:
            self._nearest = NearestExamples([row for row in self.run.task.labelled if row.answer])
        wanted = self.settings.teacher_examples
        (found,) = self._nearest.nearest([example.request.text], wanted + 1)
        rows = [self._nearest.examples[place] for place, _ in found]
        solved = [self._solved(row) for row in rows if row.request.id != example.request.id][:wanted]
        solved.reverse()  # the nearest stands next to the request
        return Prompt(text="\n\n".join([self.form.rules, *solved, self._asked(example)]))

    def _solved(self, example: Example) -> str:
        return self._asked(example) + self.form.write(example.answer or Answer())

    def _asked(self, example: Example) -> str:
        return self.form.encode(example.request, self.run.task.tools).text


def _tokenizer_of(block: Mapping[str, Any]) -> Any:
    """The teacher's own tokenizer, by which its tokens are aligned; None where the engine is a server's."""
    model = str(block.get("model", ""))
    if (Path(model) / "tokenizer.json").is_file():
        return AutoTokenizer.from_pretrained(model, trust_remote_code=False)
    if model in catalogue():
        return tokenizer_of(path_of(model))
    return tokenizer_of(Path(model)) if Path(model).is_file() else None
