"""What the models of a compression answered, on disk: each is asked once, also after a kill."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from supertiny.compress.examining import Paper, Room
from supertiny.compress.exporters.gguf import Gguf
from supertiny.compress.gate import Sitting
from supertiny.compress.trust import Probe, asked
from supertiny.core.files import hash_of, read_json, write_json
from supertiny.core.protocols import Engine
from supertiny.core.records import Answer, Call
from supertiny.core.student import Student

PLAIN = Gguf("f16")  # so that every step is measured by the same means
FIGURES = ("exact", "low", "high", "n", "p50_seconds")


@dataclass(frozen=True)
class Answered:
    """A card, which is a JSON file, for each export of each student: sizes, figures, answers and the gate's sitting."""

    folder: Path
    room: Room
    probes: Mapping[str, Sequence[Probe]]
    original: Path
    """Folder of the student of the stage before."""
    elsewhere: Path | None = None
    """Its card as f16, where that serves several compressions."""

    def card(self, student: Path, exporter: Any = PLAIN) -> Path:
        """Of an export, by its settings; of the weights themselves where the exporter is None.

        f16 of what the steps left is also the last of the larger types, and has the same card.
        """
        if exporter != PLAIN:
            known = None if exporter is None else [type(exporter).__name__, asdict(exporter)]
            more = "-float32" if known is None else f"-{hash_of(known)[:12]}"
        elif self.elsewhere is not None and student == self.original:
            return self.elsewhere
        else:
            more = ""
        return self.folder / f".measured-{student.name.strip('.')}{more}.json"

    def forget(self, student: Path) -> None:
        """Removes the cards of a student in whose place another is put, and of its exports."""
        for card in self.folder.glob(f".measured-{student.name.strip('.')}[.-]*"):
            card.unlink()

    def read(self, card: Path) -> dict[str, Any]:
        """Empty where nothing is known, or other requests were asked, as another version may have done."""
        known: dict[str, Any] = read_json(card) if card.exists() else {}
        return known if known.get("asked") == self._asked else {}

    def paper(self, engine: Engine, card: Path, student: Path, timed: bool = True) -> Paper:
        """What the engine answers on valid, or is known to."""
        if not (known := self.read(card)):
            paper, own = self.room.examine(engine, timed), Student.open(student)
            rows = [_row_of(answer) for answer in paper.answers]
            # As the f16 that is measured: on disk a student may lie in float32 for the step after.
            sizes = {"parameters": own.parameters, "bytes": 2 * own.parameters}
            write_json(card, known := {**sizes, **paper.figures, "asked": self._asked, "answers": rows})
        return paper_of(known)

    def sitting(self, engine: Engine, card: Path, paper: Paper) -> Sitting:
        """What the gate looks at, trust with it; the card has the paper already."""
        known = self.read(card)
        if "sitting" not in known:
            known["sitting"] = self.room.sit(engine, paper, self.probes).to_json()
            write_json(card, known)
        return Sitting.from_json(known["sitting"])

    @cached_property
    def _asked(self) -> str:
        requests = [*(row.request for row in self.room.valid), *asked(self.probes)]
        return hash_of([self.room.task.hash, [asdict(request) for request in requests]])


def paper_of(card: Mapping[str, Any]) -> Paper:
    answers = [
        Answer(tuple(Call.from_json(call) for call in row["calls"]), confidence=row["sure"], readable=row["readable"])
        for row in card["answers"]
    ]
    return Paper(tuple(answers), {name: card[name] for name in FIGURES})


def _row_of(answer: Answer) -> dict[str, Any]:
    """What of an answer the gates look at."""
    calls = [call.to_json() for call in answer.calls]
    return {"calls": calls, "sure": answer.confidence, "readable": answer.readable}
