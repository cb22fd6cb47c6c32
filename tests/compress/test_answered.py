"""That no model is asked the same twice, and that larger types are not tried where none can help."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from supertiny.compress import stage
from supertiny.compress.answered import Answered
from supertiny.compress.examining import Paper, Room
from supertiny.compress.exporters.gguf import Gguf
from supertiny.compress.gate import Sitting
from supertiny.compress.trust import Probe, probes
from supertiny.core.files import read_json, write_json
from supertiny.core.methods import build
from supertiny.core.records import Answer, Call, Request
from supertiny.core.run import Run
from tests.small_run import Gate, settings, work

CUT = {"method": "drop_blocks", "blocks": 1}


class Asked:
    """Counts papers and sittings; papers of these numbers are wrong on all rows."""

    def __init__(self, room: Room, monkeypatch: pytest.MonkeyPatch, wrong: Sequence[int] = ()) -> None:
        self.room = room
        self.papers: list[str] = []
        self.sittings = 0
        self.wrong = wrong
        monkeypatch.setattr(Room, "examine", lambda room, engine, timed=True: self.examine(engine))
        monkeypatch.setattr(Room, "sit", lambda room, engine, paper, questions: self.sit(paper))

    def examine(self, engine: Any) -> Paper:
        self.papers.append(engine.name)
        paper = Gate(0).examine(self.room, engine)
        wrong = tuple(Answer((Call("Wrong"),)) for _ in paper.answers)
        return Paper(wrong, {**paper.figures, "exact": 0.0}) if len(self.papers) in self.wrong else paper

    def sit(self, paper: Paper) -> Sitting:
        self.sittings += 1
        return Sitting(self.room.hits(paper.answers))

    @property
    def counted(self) -> tuple[int, int]:
        return len(self.papers), self.sittings


@pytest.fixture
def room(run: Run) -> Room:
    return Room(run.task, build("formats", "compact"), 8)


def test_larger_types_are_not_tried_where_the_steps_broke_it_by_themselves(
    run: Run, gate: Gate, room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The student; the one without a block, its weights themselves, its q4_0; the student as q8_0.
    counted = Asked(room, monkeypatch, wrong=(2, 3, 4))
    summary, folder = work(run, settings([CUT, {"method": "gguf", "type": "q4_0"}], recovery=None))
    assert (summary["type"], summary["promoted"], summary["fell_back"]) == ("q8_0", True, True)
    last = read_json(folder / "steps.json")[-1]
    assert last["tried"] == {"q4_0": 1.0}
    assert [one["type"] for one in last["refused"]] == ["q4_0", "q4_1, q8_0, f16"]
    (told,) = last["refused"][1]["broke"]
    assert told.startswith("not tried, since the steps before the export alone broke it: exact calls went from 100.0")
    assert counted.papers == ["openvino", "openvino", "torch", "openvino", "openvino"]


def test_where_it_also_misses_parity_the_student_takes_its_place(
    run: Run, gate: Gate, room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    Asked(room, monkeypatch, wrong=(2, 4))
    summary, folder = work(run, settings([CUT, {"method": "gguf", "type": "q4_0"}], recovery=None))
    assert summary["fell_back"]
    assert read_json(folder / "steps.json")[-1]["tried"] == {"q4_0": 0.0}


def test_larger_types_are_tried_where_rounding_broke_it(
    run: Run, gate: Gate, room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = Asked(room, monkeypatch, wrong=(4,))
    summary, _ = work(run, settings([CUT, {"method": "gguf", "type": "q4_0"}], recovery=None, parity=0.0))
    assert (summary["type"], summary["fell_back"]) == ("q4_1", False)
    assert counted.counted == (5, 3)


def test_the_same_export_is_asked_once(run: Run, gate: Gate, room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = Asked(room, monkeypatch)
    work(run, settings([{"method": "gguf", "type": "f16"}]))
    assert counted.counted == (2, 1), "the student on the engine, which is the artifact too, and its weights"
    shutil.rmtree(run.folder / ".compress")
    work(run, settings(["keep", {"method": "gguf", "type": "f16"}]))
    assert counted.counted == (2 + 3, 1 + 2)


def test_what_misses_parity_is_not_asked_for_trust(
    run: Run, gate: Gate, room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = Asked(room, monkeypatch, wrong=(3, 4))
    summary, _ = work(run, settings([{"method": "gguf", "type": "q4_0"}]))
    assert summary["type"] == "q8_0"
    assert counted.sittings == 2


def test_after_a_kill_nothing_is_asked_again(run: Run, gate: Gate, room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    counted = Asked(room, monkeypatch, wrong=(4,))
    asking = settings([CUT, {"method": "gguf", "type": "q4_0"}], recovery=None)
    with monkeypatch.context() as patch:
        patch.setattr(stage._Work, "_kept", killed)
        with pytest.raises(KeyboardInterrupt):
            work(run, asking)
    before = counted.counted
    summary, folder = work(run, asking)
    assert counted.counted == before == (5, 2)
    assert summary["type"] == "q4_1"
    assert [path.name for path in folder.glob(".*")] == []


def test_a_kill_while_it_tidies_up_leaves_no_half_removed_step_and_no_answers_of_it(
    run: Run, gate: Gate, room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove, counted = shutil.rmtree, Asked(room, monkeypatch)

    def killed(path: Path, *more: Any, **named: Any) -> None:
        if path.name == ".step-0" and path.exists():
            (path / "model.safetensors").unlink()
            raise KeyboardInterrupt
        remove(path, *more, **named)

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            work(run, settings(recovery=None))
    assert counted.counted == (4, 2)
    summary, _ = work(run, settings(recovery=None))
    assert summary["promoted"]
    assert counted.counted == (4 + 3, 2 + 1), "all but the student before the first step is new"


def test_a_kill_when_a_card_is_written_leaves_no_file_behind(
    run: Run, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove = shutil.rmtree

    def killed(path: Path, *more: Any, **named: Any) -> None:
        if path.name == ".measured":
            raise KeyboardInterrupt
        remove(path, *more, **named)

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            work(run, settings([{"method": "gguf", "type": "f16"}]))
    _, folder = work(run, settings([{"method": "gguf", "type": "f16"}]))
    assert [path.name for path in folder.glob(".*")] == []


def test_answers_to_other_requests_are_not_read_back(tmp_path: Path, room: Room) -> None:
    def kept(other: Room) -> Answered:
        return Answered(tmp_path, other, probes(other.task, other.valid, 2, 3), tmp_path / "student")

    card = kept(room).card(tmp_path / "student")
    write_json(card, {"asked": kept(room)._asked})
    assert kept(room).read(card)
    assert not kept(replace(room, rows=3)).read(card)
    assert not Answered(tmp_path, room, {}, tmp_path / "student").read(card)


def test_each_export_has_a_card_of_its_own(tmp_path: Path, room: Room) -> None:
    known = Answered(tmp_path, room, {}, tmp_path / "student", tmp_path / "elsewhere.json")
    exports = [None, Gguf("f16"), Gguf("f16", embedding="f16"), Gguf("q4_0"), Gguf("q4_0", types={"*": "q8_0"})]
    places = {known.card(tmp_path / student, export) for student in ("student", ".step-0") for export in exports}
    assert len(places) == 2 * len(exports)
    assert known.card(tmp_path / "student", Gguf("f16")) == tmp_path / "elsewhere.json"


def test_a_trust_row_that_valid_or_another_meter_asks_is_not_asked_again(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    put: list[str] = []

    def answers(self: Room, engine: Any, requests: Sequence[Request]) -> list[Answer]:
        put.extend(request.text for request in requests)
        return [Answer((Call(request.text),)) for request in requests]

    monkeypatch.setattr(Room, "answers", answers)
    known, new = room.valid[0].request, Request.from_text("something else")

    def says(*texts: str) -> Any:
        return lambda told: [answer.calls[0].tool for answer in told] == list(texts)

    paper = Paper(tuple(Answer((Call("of valid"),)) for _ in room.valid), {})
    again = replace(new, id="again")
    questions = {
        "names": [Probe((known, new), says("of valid", "something else"))],
        "refusal": [Probe((replace(known, id="other"),), says("of valid")), Probe((again,), says("something else"))],
    }
    sitting = room.sit(None, paper, questions)  # type: ignore[arg-type]
    assert put == ["something else"]
    assert sitting.meters == {"names": (1.0,), "refusal": (1.0, 1.0)}


def test_only_what_is_timed_is_asked_one_by_one(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    put: list[int] = []

    def answers(self: Room, engine: Any, requests: Sequence[Request]) -> list[Answer]:
        put.append(len(requests))
        return [Answer() for _ in requests]

    monkeypatch.setattr(Room, "answers", answers)
    assert room.examine(None, timed=False).figures["p50_seconds"] is None  # type: ignore[arg-type]
    assert put == [4]
    assert room.examine(None).figures["p50_seconds"] == 0.0  # type: ignore[arg-type]
    assert put == [4, 4, 1, 1, 1, 1]


def test_words_that_nobody_can_read_are_no_refusal(room: Room) -> None:
    silent, garbled = [Answer() for _ in room.valid], [Answer(readable=False) for _ in room.valid]
    assert room.differing(silent, silent) == room.differing(garbled, garbled) == []
    assert len(room.differing(silent, garbled)) == 4
