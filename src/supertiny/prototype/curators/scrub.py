"""Replaces e-mail addresses, phone and card numbers, IBANs, IP addresses and given names by stable stand-ins.

Use when: rows come from real users; a small model can learn a customer's number by heart and say it to another.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from supertiny.core.errors import UserError
from supertiny.core.records import Call, Example
from supertiny.core.task import Task
from supertiny.prototype.curators._reasons import left_out
from supertiny.prototype.curators._stand_ins import StandIns

_OF_MESSAGES = ("role", "type", "id", "tool_call_id")  # keys of messages and of provenance that hold no user's words
_OF_PROVENANCE = ("origin", "from", "source", "by", "made_by")
_WITHOUT_SPACES = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]")
_Kind = Literal["email", "iban", "card", "ip", "phone", "name"]


@dataclass(frozen=True)
class Scrub:
    """One original has one stand-in within a run, in the request, its answer's arguments and the model's own words.

    Found by shape: card numbers by Luhn's sum, IBANs by their check digits; long order numbers may pass for phone
    numbers and versions for IP addresses. Names are found by `names` and `name_pattern` alone; addresses of houses and
    dates of birth are not found. Ids, pool.jsonl, rejected.jsonl, review files and the ledger keep what was there.
    """

    kinds: tuple[_Kind, ...] = ("email", "iban", "card", "ip", "phone", "name")
    """What is looked for."""
    names: tuple[str, ...] = ()
    """Names of people, in any case."""
    name_pattern: str = ""
    """Regular expression whose first group is a name, such as `(?:Mr|Mrs|Dr)\\.? ([A-Z]\\w+)`."""
    key_variable: str = ""
    """Environment variable whose value is mixed into the key; without it, who knows the seed can test guesses."""

    def curate(self, examples: Sequence[Example], task: Task, seed: int) -> list[Example]:
        secret = os.environ.get(self.key_variable, "") if self.key_variable else ""
        if self.key_variable and not secret:
            raise UserError(f"scrub: the environment has no {self.key_variable}", "set it, or leave key_variable out")
        stand_ins = StandIns(f"{seed}:{secret}".encode(), self.kinds, self._patterns())
        scrubbed = []
        for row in examples:
            new = _scrubbed(row, task, stand_ins)
            failed = new.verdict is not None and new.verdict.outcome == "fail"
            if failed and row.verdict is not None and row.verdict.outcome != "fail":
                left_out(row, "with stand-ins the verifier fails it")
            else:
                scrubbed.append(new)
        return scrubbed

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


def _scrubbed(row: Example, task: Task, stand_ins: StandIns) -> Example:
    """The row itself where nothing was found."""
    counts: Counter[str] = Counter()

    def instead(value: Any, left: Sequence[str] = ()) -> Any:
        """The same plain value with stand-ins in its texts, and in whole numbers that a text gave before."""
        if isinstance(value, str):
            return stand_ins.scrubbed(value, counts)
        if isinstance(value, Mapping):
            within = {key: () if key == "arguments" else left for key in value}
            return {key: item if key in left else instead(item, within[key]) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [instead(item, left) for item in value]
        if isinstance(value, int) and not isinstance(value, bool):
            return stand_ins.instead_of_number(value, counts)
        return value

    messages = tuple(instead(message, _OF_MESSAGES) for message in row.request.messages)
    request, answer, verdict = replace(row.request, messages=messages), row.answer, row.verdict
    if answer is not None:
        calls = tuple(Call(call.tool, instead(call.arguments)) for call in answer.calls)
        answer = replace(answer, calls=calls, text=instead(answer.text), raw=instead(answer.raw))
    provenance = instead(row.provenance, _OF_PROVENANCE)
    if not counts:
        return row
    if verdict is not None and answer is not None and answer.readable:
        verdict = task.verify(request, answer.calls)
    provenance |= {"origin": row.request.id, "made_by": "scrub", "scrubbed": dict(sorted(counts.items()))}
    return Example(request, answer, verdict, provenance)
