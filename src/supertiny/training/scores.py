"""What a teacher says of lessons, asked once and kept in a file: its best tokens, or how likely spans of text are."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from supertiny.core.errors import UserError
from supertiny.core.files import hash_of, written_whole
from supertiny.core.protocols import Engine
from supertiny.core.records import Prompt
from supertiny.training.align import Tokenizers, common_cuts, compared, text_of
from supertiny.training.asking import TEXT_LEVEL, ScoreRows, answer_of, own_lesson, read_scores
from supertiny.training.lessons import Batch, Lesson
from supertiny.training.pupil import Pupil

_KINDS = {
    "ids": (torch.int32,),
    "logprobs": (torch.float16, torch.float32),
    "offsets": (torch.int64,),
    "span_ends": (torch.int32,),
    "span_logprobs": (torch.float32,),
    "span_offsets": (torch.int64,),
}
_FORM = 1
_GIVE_TOKENIZER = "give the teacher's own tokenizer, so that answers can be aligned by their text"
_AGAIN = "remove it to have the teacher asked again"


@dataclass(frozen=True)
class BatchScores:
    """What the teacher says of a batch's answer tokens, as the functions of training.align take it."""

    places: torch.Tensor
    """(n,) positions of which it gave its best tokens."""
    ids: torch.Tensor
    """(n, k)"""
    logprobs: torch.Tensor
    """(n, k + 1), the last of the rest"""
    spans: torch.Tensor
    """(m, longest) positions of the tokens of each span, -1 where there are no more."""
    span_logprobs: torch.Tensor
    """(m,)"""


@dataclass(frozen=True, eq=False)
class Scores:
    """A teacher's scores of the answers of lessons, in the order of the lessons; about 6 bytes a token and rank.

    Of a lesson that was cut into tokens alike by both: its answer tokens' rows of `ids` and `logprobs`, from the first.
    Of one that was not: `span_ends`, counted in its answer tokens, and `span_logprobs`. Of one in which no text is
    common: nothing.
    """

    lessons: Sequence[Lesson]
    ids: torch.Tensor
    """(positions, k) int32; -1 is a token that the student lacks."""
    logprobs: torch.Tensor
    """(positions, k + 1) float16 or float32, natural; the last is that of all other tokens together."""
    offsets: torch.Tensor
    """(lessons + 1,) where each lesson's positions begin."""
    span_ends: torch.Tensor
    """(spans,) int32"""
    span_logprobs: torch.Tensor
    """(spans,) float32"""
    span_offsets: torch.Tensor
    """(lessons + 1,)"""
    teacher: str
    """Its name: an engine's, or any that tells it from others."""
    tokenizers: Tokenizers
    asked: str
    """Hash of the lessons and of the prompts that the teacher saw."""

    @property
    def top_k(self) -> int:
        return self.ids.shape[1]

    @property
    def covered(self) -> float:
        """Share of the answer tokens of which the teacher says something."""
        counts = self.offsets[1:] - self.offsets[:-1]
        filled = self.span_offsets[1:] > self.span_offsets[:-1]
        in_spans = int(self.span_ends[self.span_offsets[1:][filled] - 1].sum())
        return (int(counts.sum()) + in_spans) / max(1, sum(_length(lesson) for lesson in self.lessons))

    @classmethod
    def of_engine(
        cls,
        engine: Engine,
        lessons: Sequence[Lesson],
        tokenizer: Any,
        teacher_tokenizer: Any = None,
        top_k: int = 64,
        prompts: Sequence[Prompt] | None = None,
        at_once: int = 64,
        kept: Path | None = None,
    ) -> Scores:
        """Asks an engine that serves scores, `at_once` lessons a call.

        What each call gave is kept in a part beside `kept`, and read back by who goes on; `parts_of` finds the parts.
        `prompts` are what the teacher reads, one per lesson; without them it reads the student's own. Without a
        `teacher_tokenizer` the teacher must cut every answer as the student does. Raises UserError where it does not,
        or where no answer can be aligned.
        """
        kind = "same" if teacher_tokenizer is None else compared(teacher_tokenizer, tokenizer)
        said = prompts or [Prompt(text=text_of(tokenizer, lesson.ids[: lesson.answer_start])) for lesson in lessons]
        known = _known(tokenizer)
        top = 0 if kind == "different" else min(top_k, known - 1)

        def ask(group: Sequence[Lesson], shown: Sequence[Prompt]) -> ScoreRows:
            made = ScoreRows(top)
            answers = [answer_of(lesson, tokenizer, kind) for lesson in group]
            scored = engine.score(shown, [text_of(tokenizer, answer) for answer in answers], top)
            for answer, one in zip(answers, scored, strict=True):
                if top and one.tokens.tolist() == answer:
                    made.add_best(one, known)
                elif teacher_tokenizer is None:
                    raise UserError(f"{engine.name} does not cut answers into the student's tokens", _GIVE_TOKENIZER)
                else:
                    cuts = common_cuts(teacher_tokenizer, one.tokens.tolist(), tokenizer, answer)
                    made.add_spans(cuts, one.token_logprobs)
            return made

        parts = [ScoreRows(top).tensors()]
        for start in range(0, len(lessons), at_once):
            group, shown = lessons[start : start + at_once], said[start : start + at_once]
            path = kept and kept.with_name(f"{kept.stem}-part-{start}{kept.suffix}")
            if path is None or not path.exists():
                asked = _asked(group, shown)
                part = cls(group, teacher=engine.name, tokenizers=kind, asked=asked, **ask(group, shown).tensors())
                if path is not None:
                    part.save(path)
            else:
                part = cls.open(path, group, engine.name, shown)
            parts.append({name: getattr(part, name) for name in _KINDS})
        return cls._made(_joined(parts), lessons, engine.name, kind, prompts)

    @classmethod
    def of_pupil(
        cls,
        teacher: Pupil,
        name: str,
        lessons: Sequence[Lesson],
        tokenizer: Any,
        top_k: int = 64,
        prompts: Sequence[Prompt] | None = None,
        at_once: int = 16,
    ) -> Scores:
        """Asks a loaded model, `at_once` lessons a batch; `name` tells it from other teachers.

        `prompts` as in `of_engine`, and only where the tokenizers differ. Raises UserError where no answer can be
        aligned.
        """
        kind = compared(teacher.tokenizer, tokenizer)
        answers = [answer_of(lesson, tokenizer, kind) for lesson in lessons]
        seen, known = lessons, _known(tokenizer)
        if kind == "different":
            said = prompts or [Prompt(text=text_of(tokenizer, lesson.ids[: lesson.answer_start])) for lesson in lessons]
            seen = [
                own_lesson(teacher.tokenizer, prompt, text_of(tokenizer, answer))
                for prompt, answer in zip(said, answers, strict=True)
            ]
        made = ScoreRows(0 if kind == "different" else min(top_k, known - 1))
        for answer, one in zip(
            answers,
            read_scores(teacher, seen, made.top_k, at_once, None if kind == "different" else known),
            strict=True,
        ):
            if kind == "different":
                cuts = common_cuts(teacher.tokenizer, one.tokens.tolist(), tokenizer, answer)
                made.add_spans(cuts, one.token_logprobs)
            else:
                made.add_best(one, known)
        return cls._made(made.tensors(), lessons, name, kind, prompts)

    @classmethod
    def _made(
        cls,
        rows: Mapping[str, torch.Tensor],
        lessons: Sequence[Lesson],
        teacher: str,
        kind: Tokenizers,
        prompts: Sequence[Prompt] | None,
    ) -> Scores:
        asked = _asked(lessons, prompts)
        scores = cls(tuple(lessons), teacher=teacher, tokenizers=kind, asked=asked, **rows)
        if not scores.covered:
            raise UserError(f"no answer reads the same in the tokens of {teacher} and of the student", TEXT_LEVEL)
        return scores

    @classmethod
    def open(
        cls,
        path: Path,
        lessons: Sequence[Lesson],
        teacher: str | None,
        prompts: Sequence[Prompt] | None = None,
    ) -> Scores:
        """Reads what `save` wrote; whoever's where no `teacher` is given.

        Raises UserError for a broken file, and for one of other lessons or teachers.
        """
        try:
            with safe_open(path, "pt") as file:
                about = json.loads((file.metadata() or {})["scores"])
                tensors = {name: file.get_tensor(name) for name in _KINDS}
            form, named, kind, asked = (about[key] for key in ("form", "teacher", "tokenizers", "asked"))
        except FileNotFoundError:
            raise UserError(f"{path} is not there") from None
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} holds no teacher's scores: {error}", _AGAIN) from None
        if form != _FORM or kind not in ("same", "padded", "different"):
            raise UserError(f"{path} is of another version", _AGAIN)
        if teacher not in (None, named):
            raise UserError(f"{path} has the scores of {named!r}, not of {teacher!r}", _AGAIN)
        if asked != _asked(lessons, prompts):
            raise UserError(f"{path} has the scores of other lessons or prompts", _AGAIN)
        scores = cls(lessons, teacher=named, tokenizers=kind, asked=asked, **tensors)
        if (mistake := _mistake(scores)) is not None:
            raise UserError(f"{path} holds no teacher's scores: {mistake}", _AGAIN)
        return scores

    def save(self, path: Path) -> None:
        """One safetensors file, whole or not there."""
        about = {"form": _FORM, "teacher": self.teacher, "tokenizers": self.tokenizers, "asked": self.asked}
        with written_whole(path) as beside:
            try:
                save_file({name: getattr(self, name) for name in _KINDS}, beside, {"scores": json.dumps(about)})
            except SafetensorError as error:
                raise UserError(f"cannot write {path}: {error}", "free some disk space or check rights") from error

    def best(self, top_k: int) -> Scores:
        """The same of fewer tokens; those that are left out join the rest."""
        if top_k >= self.top_k:
            return self
        rest = self.logprobs[:, top_k:].float().logsumexp(dim=-1, keepdim=True).to(self.logprobs.dtype)
        return replace(self, ids=self.ids[:, :top_k], logprobs=torch.cat([self.logprobs[:, :top_k], rest], dim=1))

    def check(self, lessons: Sequence[Lesson], vocabulary: int) -> None:
        """Raises UserError where the scores do not serve these lessons, or a model of so many tokens."""
        if any(_key(lesson) not in self._places for lesson in lessons):
            raise UserError("the teacher's scores are of other lessons", "make them of the lessons of this run")
        most = int(self.ids.max()) if self.ids.numel() else -1
        if most >= vocabulary or self.top_k >= vocabulary:
            raise UserError(
                f"the teacher's scores name token {most} of {self.top_k}, and the student has {vocabulary}", TEXT_LEVEL
            )

    def of(self, batch: Batch) -> BatchScores:
        """What the teacher says of the answer tokens of a batch, on its device."""
        places, rows, spans, span_rows = [], [], [], []
        begin = 0
        for lesson in batch.rows:
            index = self._places[_key(lesson)]
            first, last = self.offsets[index : index + 2].tolist()
            places.append(torch.arange(begin, begin + last - first))
            rows.append(torch.arange(first, last))
            first, last = self.span_offsets[index : index + 2].tolist()
            ends = [0, *self.span_ends[first:last].tolist()]
            spans += [torch.arange(begin + start, begin + end) for start, end in pairwise(ends)]
            span_rows.append(torch.arange(first, last))
            begin += _length(lesson)
        table = torch.empty((0, 1), dtype=torch.long)
        if spans:
            table = torch.nn.utils.rnn.pad_sequence(spans, batch_first=True, padding_value=-1)
        chosen, spoken = torch.cat(rows), torch.cat(span_rows)
        found = torch.cat(places), self.ids[chosen], self.logprobs[chosen], table, self.span_logprobs[spoken]
        return BatchScores(*(tensor.to(batch.ids.device) for tensor in found))

    @cached_property
    def _places(self) -> dict[tuple[tuple[int, ...], int], int]:
        return {_key(lesson): place for place, lesson in enumerate(self.lessons)}


def parts_of(kept: Path) -> list[Path]:
    """The files that `Scores.of_engine` has left beside `kept`; no longer needed where that stands."""
    return sorted(kept.parent.glob(f"{kept.stem}-part-*{kept.suffix}"))


def _joined(parts: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The tensors of several groups of lessons, one after the other."""
    whole = {}
    for name in _KINDS:
        pieces = [part[name] for part in parts]
        if name.endswith("offsets"):
            counts = torch.cat([offsets.diff() for offsets in pieces])
            whole[name] = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
        else:
            whole[name] = torch.cat(pieces)
    return whole


def _known(tokenizer: Any) -> int:
    return int(max(tokenizer.get_vocab().values())) + 1


def _key(lesson: Lesson) -> tuple[tuple[int, ...], int]:
    return lesson.ids, lesson.answer_start


def _length(lesson: Lesson) -> int:
    return len(lesson.ids) - lesson.answer_start


def _asked(lessons: Sequence[Lesson], prompts: Sequence[Prompt] | None) -> str:
    digest = hashlib.sha256()
    for lesson in lessons:
        digest.update(np.array([len(lesson.ids), lesson.answer_start, *lesson.ids], dtype="<i8").tobytes())
    return hash_of([digest.hexdigest(), [[prompt.messages, prompt.text] for prompt in prompts or ()]])


def _mistake(scores: Scores) -> str | None:
    """What is wrong with tensors that a file holds; None where nothing is."""
    lengths = torch.tensor([_length(lesson) for lesson in scores.lessons])
    if any(getattr(scores, name).dtype not in kinds for name, kinds in _KINDS.items()):
        return "a tensor has another type"
    if scores.ids.dim() != 2 or scores.logprobs.shape != (len(scores.ids), scores.top_k + 1):
        return "ids and logprobs do not belong together"
    if scores.span_ends.dim() != 1 or scores.span_ends.shape != scores.span_logprobs.shape:
        return "spans and their logprobs do not belong together"
    counts = []
    for offsets, last in ((scores.offsets, len(scores.ids)), (scores.span_offsets, len(scores.span_ends))):
        whole = offsets.shape == (len(lengths) + 1,) and offsets[0] == 0 and offsets[-1] == last
        if not whole or bool(((offsets.diff() < 0) | (offsets.diff() > lengths)).any()):
            return "the offsets are not those of the lessons"
        counts.append(offsets.diff())
    if bool((counts[0] * counts[1]).any()):
        return "a lesson has both best tokens and spans"
    for logprobs in (scores.logprobs, scores.span_logprobs):
        if not bool(torch.isfinite(logprobs).all()) or bool((logprobs > 0).any()):
            return "a log-probability is above 0 or no number"
    if scores.ids.numel() and int(scores.ids.min()) < -1:
        return "a token has a negative id"
    for length, ends in zip(lengths.tolist(), torch.split(scores.span_ends, counts[1].tolist()), strict=True):
        steps = ends.diff(prepend=ends.new_zeros(1))
        if bool((steps <= 0).any()) or (len(ends) and int(ends[-1]) > length):
            return "a span ends outside its answer"
    return None
