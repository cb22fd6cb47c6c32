"""The curator that asks a person, `disagreement`: questions out, decisions back."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from supertiny.core.errors import UserError, UserErrors
from supertiny.core.files import read_rows, write_rows
from supertiny.core.methods import build
from supertiny.core.records import Answer, Call, Example, Prompt, Request, Verdict
from supertiny.core.task import Task
from supertiny.prototype.curators._reasons import reasons_heard
from tests.fake_engine import FakeEngine
from tests.small_bench import curated, small_bench
from tests.small_task import example, small_task

HALL = Call("TurnOn", {"area": "Hall"})


def judged(answer: Answer, verdict: Verdict, text: str = "light in the hall", id: str = "a") -> Example:
    return Example(Request.from_text(text, id), answer, verdict, {"source": "pool"})


def split_votes() -> list[Example]:
    shares = {"sure": 1.0, "torn": 0.4, "half": 0.6, "unvoted": None}
    return [
        judged(Answer((HALL,), confidence=share, by="pipeline"), Verdict("pass"), f"=light {id} in the hall 💡", id)
        for id, share in shares.items()
    ]


def reviewed(rows: Sequence[Example], folder: Path, task: Task | None = None, **settings: Any) -> list[Example]:
    return curated({"method": "disagreement", **settings}, rows, task or small_task(), 1, folder)


def fill_in(path: Path, **said: dict[str, Any]) -> None:
    """What a person does: writes decisions into the lines of some ids."""
    if path.suffix == ".jsonl":
        write_rows(path, [{**row, **said.get(row["id"], {})} for row in read_rows(path)])
        return
    reader = csv.DictReader(io.StringIO(path.read_text("utf-8-sig"), newline=""))
    table = io.StringIO()
    writer = csv.DictWriter(table, reader.fieldnames or ())
    writer.writeheader()
    for row in reader:
        more = {k: v if isinstance(v, str) else json.dumps(v) for k, v in said.get(row["id"].strip("'"), {}).items()}
        writer.writerow({**row, **more})
    path.write_text(table.getvalue(), encoding="utf-8")


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_split_votes_wait_for_a_person_and_come_back(kind: str, tmp_path: Path) -> None:
    rows, path = split_votes(), tmp_path / "review" / f"disagreement.{kind}"
    with reasons_heard() as reasons:
        assert [row.request.id for row in reviewed(rows, tmp_path, kind=kind)] == ["sure", "unvoted"]
    assert reasons["torn"] == "waits for a person: only 40% of the votes are for this answer"
    before = path.read_bytes()
    assert [row.request.id for row in reviewed(rows, tmp_path, kind=kind)] == ["sure", "unvoted"]
    assert path.read_bytes() == before
    curator = build("curators", {"method": "disagreement", "kind": kind})
    assert curator.decided(small_task(), tmp_path) == "", "nobody has said anything yet"
    off = {"name": "TurnOff", "arguments": {"area": "Hall"}}
    fill_in(path, torn={"decision": "Corrected", "correction": [off]})
    one = curator.decided(small_task(), tmp_path)
    assert one
    kept = reviewed(rows, tmp_path, kind=kind)
    assert [row.request.id for row in kept] == ["sure", "torn", "unvoted"]
    torn = kept[1]
    assert torn.answer is not None
    assert (torn.answer.calls, torn.answer.by) == ((Call("TurnOff", {"area": "Hall"}),), "person")
    assert (torn.verdict, torn.provenance["reviewed"]) == (Verdict("pass"), "corrected")
    assert torn.provenance["origin"] == "torn"
    assert build("curators", "verified").curate([torn], small_task(), 0) == [torn], "a person's word is sure"
    fill_in(path, half={"decision": "accepted"})
    assert curator.decided(small_task(), tmp_path) not in ("", one)
    # The pipeline answers in another way now; what the person accepted is what stood in the file.
    changed = [replace(row, answer=Answer((), confidence=1.0)) if row.request.id == "half" else row for row in rows]
    half = reviewed(changed, tmp_path, kind=kind)[2]
    assert half.answer is not None
    assert (half.request.id, half.answer.calls, half.answer.confidence) == ("half", (HALL,), 1.0)
    fill_in(path, half={"decision": "dropped"}, torn={"decision": "dropped", "correction": ""})
    assert [row.request.id for row in reviewed(rows, tmp_path, kind=kind)] == ["sure", "unvoted"]


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_a_persons_work_is_kept_when_rows_change(kind: str, tmp_path: Path) -> None:
    rows, path = split_votes(), tmp_path / "review" / f"disagreement.{kind}"
    reviewed(rows, tmp_path, kind=kind)
    fill_in(path, torn={"decision": "dropped"})
    assert reviewed(rows[:1], tmp_path, kind=kind) == rows[:1]
    assert path.read_text("utf-8-sig").count("=light") == 1, "what was decided stays, the open one went"
    other = [replace(row, request=Request.from_text("another request", row.request.id)) for row in rows]
    assert [row.request.id for row in reviewed(other, tmp_path, kind=kind)] == ["sure", "unvoted"]
    assert path.read_text("utf-8-sig").count("dropped") == 1
    assert path.read_text("utf-8-sig").count("another request") == 2, "an id alone is not the same request"


def test_a_spreadsheet_computes_nothing(tmp_path: Path) -> None:
    reviewed(split_votes(), tmp_path, kind="csv")
    text = (tmp_path / "review" / "disagreement.csv").read_bytes()
    assert text.startswith("\ufeff".encode())
    cells = [cell for row in csv.reader(io.StringIO(text.decode("utf-8-sig"))) for cell in row]
    assert any(cell.startswith("'=light") for cell in cells)
    assert not any(cell.startswith(("=", "+", "-", "@")) for cell in cells)


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
@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_what_is_filled_in_wrongly_is_told_with_its_place(
    kind: str, said: dict[str, Any], told: str, tmp_path: Path
) -> None:
    reviewed(split_votes(), tmp_path, kind=kind)
    path = tmp_path / "review" / f"disagreement.{kind}"
    fill_in(path, torn=said)
    with pytest.raises(UserError) as error:
        reviewed(split_votes(), tmp_path, kind=kind)
    assert told in str(error.value)
    assert str(path) in str(error.value)


def test_all_wrong_lines_are_told_at_once_and_a_table_without_columns_too(tmp_path: Path) -> None:
    reviewed(split_votes(), tmp_path)
    path = tmp_path / "review" / "disagreement.jsonl"
    fill_in(path, torn={"decision": "yes"}, half={"decision": "no"})
    with pytest.raises(UserErrors) as errors:
        reviewed(split_votes(), tmp_path)
    assert len(errors.value.errors) == 2
    table = tmp_path / "review" / "disagreement.csv"
    table.write_text("a,b\n1,2\n", encoding="utf-8")
    with pytest.raises(UserError, match="no column"):
        reviewed(split_votes(), tmp_path, kind="csv")
    table.write_bytes("id,decision\nä".encode("latin-1"))
    with pytest.raises(UserError, match="not UTF-8"):
        reviewed(split_votes(), tmp_path, kind="csv")


def test_words_alone_correct_an_answer_and_the_tasks_folder_serves_all_runs(tmp_path: Path) -> None:
    task = replace(small_task(), folder=tmp_path / "task")
    rows = split_votes()
    reviewed(rows, tmp_path / "run", task, place="task")
    path = tmp_path / "task" / "review" / "disagreement.jsonl"
    fill_in(
        path,
        torn={"decision": "corrected", "correction": "I cannot."},
        half={"decision": "corrected", "correction": []},
    )
    kept = {row.request.id: row for row in reviewed(rows, tmp_path / "other", task, place="task")}
    assert not (tmp_path / "run").exists()
    torn, half = kept["torn"].answer, kept["half"].answer
    assert torn is not None
    assert half is not None
    assert (torn.calls, torn.text) == ((), "I cannot.")
    assert (half.calls, half.text) == ((), "")


def test_a_person_is_asked_where_rows_like_it_call_other_functions(tmp_path: Path) -> None:
    task = small_task()
    odd = example("turn off the kitchen lights", [Call("TurnOn", {"area": "Kitchen"})], "odd", source="pool")
    fine = example("turn off the hall lights", [Call("TurnOff", {"area": "Hall"})], "fine", source="pool")
    assert reviewed([odd, fine], tmp_path, task) == [odd, fine]
    assert reviewed([odd, fine], tmp_path, task, neighbours=1) == [fine]
    (line,) = read_rows(tmp_path / "review" / "disagreement.jsonl")
    assert line["why"] == "rows like it call TurnOff"
    gold = replace(odd, provenance={"source": "labelled"})
    assert reviewed([gold], tmp_path / "b", task, neighbours=1) == [gold]


def test_a_person_is_asked_where_a_plain_prompt_calls_another_function(tmp_path: Path) -> None:
    task = small_task()
    rows = [
        example(text, [Call("TurnOff", {"area": "Hall"})], text, source="pool")
        for text in ("hall off", "hall on", "hm")
    ]

    def plain(prompt: Prompt, *_: Any) -> str:
        text = prompt.messages[-1]["content"]
        name = "TurnOn" if text.endswith("on") else "TurnOff"
        return "no JSON" if text == "hm" else json.dumps([{"name": name, "arguments": {"area": "Attic"}}])

    block = {"method": "disagreement", "plain": True}
    assert build("curators", block).needs == ("person", "live_teacher")
    teacher = FakeEngine(plain)
    kept = curated(block, rows, task, 1, tmp_path, small_bench(task, tmp_path, teacher))
    assert [row.request.id for row in kept] == ["hall off"]
    lines = {line["id"]: line["why"] for line in read_rows(tmp_path / "review" / "disagreement.jsonl")}
    assert lines == {"hall on": "one plain prompt calls TurnOn", "hm": "one plain prompt calls no function"}
    fill_in(tmp_path / "review" / "disagreement.jsonl", **{"hall on": {"decision": "dropped"}})
    curated(block, rows, task, 1, tmp_path, small_bench(task, tmp_path, teacher))
    assert len(teacher.asked) == 3 + 2, "what a person has decided is not asked about again"
