"""Replaces e-mail addresses, phone and card numbers, IBANs, IP addresses and given names by stable stand-ins.

Use when: rows come from real users; a small model can learn a customer's number by heart and say it to another.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from supertiny.core.errors import UserError
from supertiny.core.records import Call, Example
from supertiny.core.task import Task
from supertiny.prototype.curators._reasons import changed_by, left_out
from supertiny.prototype.curators._stand_ins import KINDS, Kind, StandIns

_OF_MESSAGES = ("role", "type", "id", "tool_call_id")  # keys of messages and of provenance that hold no user's words
_OF_PROVENANCE = ("origin", "from", "source", "by", "made_by", "changed_by", "scrubbed")
_WITHOUT_SPACES = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]")


@dataclass(frozen=True)
class Scrub:
    """One original has one stand-in within a file, in the request, its answer's arguments and the model's own words.

    It stands behind curators that ask the teacher. Found by shape: card numbers by Luhn's sum, IBANs by their check
    digits; order numbers may pass for phone numbers, versions for IP addresses; numbers that are no text are replaced
    where a text states them. Names are found by `names` and `name_pattern` alone: without them, none is. Addresses of
    houses and dates of birth are not. Stand-ins are in train.jsonl, pool.jsonl and rejected.jsonl. Ids, a row's own
    functions, valid.jsonl, review files, the ledger and the task keep what was there; so does `labelled_only`, which
    learns from the task.
    """

    kinds: tuple[Kind, ...] = KINDS
    """What is looked for."""
    names: tuple[str, ...] = ()
    """Names of people, in any case."""
    name_pattern: str = ""
    """Regular expression whose first group is a name, such as `(?:Mr|Mrs|Dr)\\.? ([A-Z]\\w+)`."""
    key_variable: str = ""
    """Environment variable whose value is mixed into the key; without it, who knows the seed can test guesses."""

    def curate(self, examples: Sequence[Example], task: Task, seed: int) -> list[Example]:
        kept = []
        for row, new in zip(examples, self.scrubbed(examples, task, seed), strict=True):
            if _fails(new) and not _fails(row):
                left_out(row, "with stand-ins the verifier fails it")
            else:
                kept.append(new)
        return kept

    def scrubbed(self, examples: Sequence[Example], task: Task, seed: int) -> list[Example]:
        """All rows with stand-ins, also those that the verifier then fails; a row without personal data is itself.

        Raises UserError where the key's variable is not set, or the pattern is none.
        """
        secret = os.environ.get(self.key_variable, "") if self.key_variable else ""
        if self.key_variable and not secret:
            raise UserError(f"scrub: the environment has no {self.key_variable}", "set it, or leave key_variable out")
        stand_ins = StandIns(f"{seed}:{secret}".encode(), self.kinds, self._patterns())
        return [_scrubbed(row, task, stand_ins) for row in examples]

    @property
    def finds_names(self) -> bool:
        """Whether it is told which names to look for, or is not to look for any."""
        return "name" not in self.kinds or bool(self.names or self.name_pattern)

    def _patterns(self) -> list[re.Pattern[str]]:
        try:
            own = [re.compile(self.name_pattern)] if self.name_pattern else []
        except re.error as error:
            raise UserError(f"scrub: name_pattern is no regular expression: {error}") from None
        longest_first = sorted((name for name in self.names if name.strip()), key=len, reverse=True)
        listed = [re.compile("|".join(map(_listed, longest_first)), re.IGNORECASE)] if longest_first else []
        return listed + own


def _listed(name: str) -> str:
    # Scripts that write no blanks between words have no ends of words to look for.
    return re.escape(name) if _WITHOUT_SPACES.search(name) else rf"(?<!\w){re.escape(name)}(?!\w)"


def _fails(row: Example) -> bool:
    return row.verdict is not None and row.verdict.outcome == "fail"


def _scrubbed(row: Example, task: Task, stand_ins: StandIns) -> Example:
    """The row itself where nothing was found."""
    counts: Counter[str] = Counter()

    def instead(value: Any, left: Sequence[str] = ()) -> Any:
        """The same plain value with stand-ins in its texts, and in whole numbers that a text gave before."""
        if isinstance(value, str):
            return in_json(value) if value.startswith(("{", "[")) else stand_ins.scrubbed(value, counts)
        if isinstance(value, Mapping):
            within = {key: () if key == "arguments" else left for key in value}
            return {key: item if key in left else instead(item, within[key]) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [instead(item, left) for item in value]
        if isinstance(value, int) and not isinstance(value, bool):
            return stand_ins.instead_of_number(value, counts)
        return value

    def in_json(text: str) -> str:
        """Arguments and results stand as JSON in texts, whose escapes would hide where a word begins."""
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return stand_ins.scrubbed(text, counts)
        new = instead(value)
        return text if new == value else json.dumps(new, ensure_ascii=False)

    messages = tuple(instead(message, _OF_MESSAGES) for message in row.request.messages)
    request, answer, verdict = replace(row.request, messages=messages), row.answer, row.verdict
    if answer is not None:
        calls = tuple(Call(call.tool, instead(call.arguments)) for call in answer.calls)
        answer = replace(answer, calls=calls, text=instead(answer.text), raw=instead(answer.raw))
    provenance = instead(row.provenance, _OF_PROVENANCE)
    if verdict is not None:
        verdict = replace(verdict, reason=instead(verdict.reason))
    if not counts:
        return row
    if verdict is not None and answer is not None and answer.readable:
        verdict = task.verify(request, answer.calls)
    counts.update(row.provenance.get("scrubbed", {}))
    new = Example(request, answer, verdict, provenance)
    return replace(new, provenance=changed_by("scrub", new, scrubbed=dict(sorted(counts.items()))))
