"""The curator that asks a person, `disagreement`: questions out, decisions back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from supertiny.core.errors import UserError, UserErrors
from supertiny.core.files import read_rows, write_rows
from supertiny.core.methods import build
from supertiny.core.records import Answer, Call, Example, Request, Verdict
from supertiny.prototype.curators._reasons import reasons_heard
from tests.small_bench import curated
from tests.small_task import small_task

HALL = Call("TurnOn", {"area": "Hall"})
FILE = Path("review") / "disagreement.jsonl"


def split_votes() -> list[Example]:
    shares = {"sure": 1.0, "torn": 0.4, "half": 0.6, "unvoted": None}
    return [
        Example(
            Request.from_text(f"light {id} in the hall 💡", id),
            Answer((HALL,), confidence=share, by="pipeline"),
            Verdict("pass"),
            {"source": "pool"},
        )
        for id, share in shares.items()
    ]


def reviewed(rows: Sequence[Example], folder: Path) -> list[Example]:
    return curated("disagreement", rows, small_task(), 1, folder)


def ids(rows: Sequence[Example]) -> list[str]:
    return [row.request.id for row in rows]


def fill_in(path: Path, **said: dict[str, Any]) -> None:
    """What a person does: writes decisions into the lines of some ids."""
    write_rows(path, [{**row, **said.get(row["id"], {})} for row in read_rows(path)])


def test_split_votes_wait_for_a_person_and_come_back(tmp_path: Path) -> None:
    rows, path = split_votes(), tmp_path / FILE
    with reasons_heard() as reasons:
        assert ids(reviewed(rows, tmp_path)) == ["sure", "unvoted"]
    assert reasons["torn"] == "waits for a person: only 40% of the votes are for this answer"
    before = path.read_bytes()
    assert ids(reviewed(rows, tmp_path)) == ["sure", "unvoted"]
    assert path.read_bytes() == before
    curator = build("curators", "disagreement")
    assert curator.decided(tmp_path, "disagreement") == "", "nobody has said anything yet"
    off = {"name": "TurnOff", "arguments": {"area": "Hall"}}
    fill_in(path, torn={"decision": "Corrected", "correction": [off]})
    one = curator.decided(tmp_path, "disagreement")
    assert one
    kept = reviewed(rows, tmp_path)
    assert ids(kept) == ["sure", "torn", "unvoted"]
    torn = kept[1]
    assert torn.answer is not None
    assert (torn.answer.calls, torn.answer.by) == ((Call("TurnOff", {"area": "Hall"}),), "person")
    assert (torn.verdict, torn.provenance["reviewed"]) == (Verdict("pass"), "corrected")
    assert torn.provenance["origin"] == "torn"
    assert build("curators", "verified").curate([torn], small_task(), 0) == [torn], "a person's word is sure"
    fill_in(path, half={"decision": "accepted"})
    assert curator.decided(tmp_path, "disagreement") not in ("", one)
    # The pipeline answers in another way now; what the person accepted is what stood in the file.
    changed = [replace(row, answer=Answer((), confidence=1.0)) if row.request.id == "half" else row for row in rows]
    half = reviewed(changed, tmp_path)[2]
    assert half.answer is not None
    assert (half.request.id, half.answer.calls, half.answer.confidence) == ("half", (HALL,), 1.0)
    fill_in(path, half={"decision": "dropped"}, torn={"decision": "dropped", "correction": ""})
    assert ids(reviewed(rows, tmp_path)) == ["sure", "unvoted"]


def test_gold_is_not_asked_about(tmp_path: Path) -> None:
    gold = [replace(row, provenance={"source": "labelled"}) for row in split_votes()]
    assert reviewed(gold, tmp_path) == gold
    assert not (tmp_path / FILE).exists()


def test_a_persons_work_is_kept_when_rows_change(tmp_path: Path) -> None:
    rows, path = split_votes(), tmp_path / FILE
    reviewed(rows, tmp_path)
    fill_in(path, torn={"decision": "dropped"})
    assert reviewed(rows[:1], tmp_path) == rows[:1]
    assert [line["id"] for line in read_rows(path)] == ["torn"], "what was decided stays, the open one went"
    other = [replace(row, request=Request.from_text("another request", row.request.id)) for row in rows]
    assert ids(reviewed(other, tmp_path)) == ["sure", "unvoted"]
    lines = read_rows(path)
    assert [(line["id"], line["decision"]) for line in lines] == [("torn", "dropped"), ("torn", ""), ("half", "")]
    assert [line["text"] for line in lines[1:]] == ["another request"] * 2, "an id alone is not the same request"


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"decision": "acepted"}, "did you mean 'accepted'"),
        ({"decision": "corrected"}, "there is no correction"),
        ({"decision": "", "correction": [HALL.to_json()]}, "write corrected"),
        ({"decision": "corrected", "correction": [{"nam": "TurnOn"}]}, "not a list of calls"),
        ({"decision": "corrected", "correction": '[{"name":'}, "not JSON"),
        ({"decision": "corrected", "correction": [{"name": "TurnOn", "arguments": {"area": "Moon"}}]}, "'Moon'"),
    ],
)
def test_what_is_filled_in_wrongly_is_told_with_its_place(said: dict[str, Any], told: str, tmp_path: Path) -> None:
    reviewed(split_votes(), tmp_path)
    fill_in(tmp_path / FILE, torn=said)
    with pytest.raises(UserError) as error:
        reviewed(split_votes(), tmp_path)
    assert told in str(error.value)
    assert str(tmp_path / FILE) in str(error.value)


def test_all_wrong_lines_are_told_at_once(tmp_path: Path) -> None:
    reviewed(split_votes(), tmp_path)
    fill_in(tmp_path / FILE, torn={"decision": "yes"}, half={"decision": "no"})
    with pytest.raises(UserErrors) as errors:
        reviewed(split_votes(), tmp_path)
    assert len(errors.value.errors) == 2


def test_a_call_alone_its_json_and_words_are_corrections(tmp_path: Path) -> None:
    corrections: list[tuple[Any, tuple[tuple[Call, ...], str]]] = [
        (HALL.to_json(), ((HALL,), "")),
        ('[{"name": "TurnOn", "arguments": {"area": "Hall"}}]', ((HALL,), "")),
        ("I cannot.", ((), "I cannot.")),
        ([], ((), "")),
    ]
    reviewed(split_votes(), tmp_path)
    for correction, answer in corrections:
        fill_in(tmp_path / FILE, torn={"decision": "corrected", "correction": correction})
        torn = next(row for row in reviewed(split_votes(), tmp_path) if row.request.id == "torn")
        assert torn.answer is not None
        assert (torn.answer.calls, torn.answer.text) == answer
