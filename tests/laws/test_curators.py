"""What every curator obeys: a subset, or new rows with their origin's id; seeded; nothing that is asked later leaks."""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from supertiny.core.leaks import normalised
from supertiny.core.methods import build, cards
from supertiny.core.records import Answer, Call, Example, Request, Tool, Verdict
from supertiny.core.task import Task
from tests.fake_engine import FakeEngine
from tests.small_bench import curated, small_bench
from tests.small_task import AREAS, example, examples, small_task

CURATORS = sorted(cards("curators"))
SCRIPTS = (
    example("включи свет в Кухня 💡", [Call("Light", {"area": "Кухня"})], "ru", source="pool"),
    example("打开 厨房 的灯", [Call("Light", {"area": "厨房"})], "zh", source="pool"),
    example("打开厨房的灯", [Call("Light", {"area": "厨房"})], "zh-joined", source="pool"),
    example("💡 in 🏠 please", [Call("Light", {"area": "🏠"})], "emoji", source="pool"),
    example("¿qué tal?", [], "none", source="pool"),
)
LIGHT = Tool("Light", "", {"type": "object", "properties": {"area": {"type": "string"}}, "required": ["area"]})


def judged(rows: Sequence[Example], task: Task) -> list[Example]:
    return [replace(row, verdict=task.verify(row.request, row.answer.calls if row.answer else ())) for row in rows]


def pool() -> tuple[list[Example], Task]:
    task = small_task()
    rows = [replace(row, provenance={"source": "labelled"}) for row in task.labelled]
    rows += [replace(row, provenance={"source": "pool"}) for row in examples("unlabelled")]
    rows += [example("tell me a joke", [], "joke", source="pool")]
    rows += [example("dim the cellar to 5", [Call("Dim", {"area": "Cellar", "level": 5})], "cellar", source="pool")]
    return judged(rows, task), task


def scripts() -> tuple[list[Example], Task]:
    task = small_task([LIGHT], valid=[], test=[])
    return judged(SCRIPTS, task), task


@pytest.mark.parametrize("name", CURATORS)
@pytest.mark.parametrize("given", [pool, scripts], ids=["pool", "scripts"])
def test_rows_are_those_given_or_carry_their_origins_id(name: str, given: Any, tmp_path: Path) -> None:
    rows, task = given()
    kept = curated(name, rows, task, 3, tmp_path)
    old = [row for row in kept if row in rows]
    assert old == [row for row in rows if row in kept], "those that stay, stay as they are and in order"
    new = [row for row in kept if row not in rows]
    ids = {row.request.id for row in rows}
    assert all(row.provenance["origin"] in ids and row.request.id.startswith(row.provenance["origin"]) for row in new)
    assert all(row.provenance["source"] for row in new)
    assert all(name in (row.provenance.get("made_by"), *row.provenance.get("changed_by", ())) for row in new)
    made = [row for row in new if row.request.id not in ids]
    assert all(row.provenance["made_by"] == name for row in made)
    assert len({row.request.id for row in kept}) == len(kept)


@pytest.mark.parametrize("name", CURATORS)
def test_where_a_row_first_came_from_stays(name: str, tmp_path: Path) -> None:
    rows, task = pool()
    known = {"origin": "seed", "made_by": "expand", "changed_by": ["refine"]}
    rows = [replace(row, provenance={**row.provenance, **known}) for row in rows]
    for row in curated(name, rows, task, 3, tmp_path):
        if any(row.request.id == old.request.id for old in rows):
            assert (row.provenance["origin"], row.provenance["made_by"]) == ("seed", "expand")
            assert row.provenance["changed_by"] in (["refine"], ["refine", name])


@pytest.mark.parametrize("name", CURATORS)
def test_of_nothing_comes_nothing(name: str, tmp_path: Path) -> None:
    assert curated(name, [], small_task(), 3, tmp_path) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", CURATORS)
def test_labelled_rows_stay(name: str, tmp_path: Path) -> None:
    """Gold is dropped where it leaks, and nowhere else."""
    rows, task = pool()
    gold = {row.request.id for row in rows if row.provenance["source"] == "labelled"}
    assert gold <= {row.request.id for row in curated(name, rows, task, 3, tmp_path)}


@pytest.mark.parametrize("name", CURATORS)
def test_same_seed_same_result(name: str, tmp_path: Path) -> None:
    rows, task = pool()
    assert curated(name, rows, task, 3, tmp_path / "a") == curated(name, rows, task, 3, tmp_path / "b")
    assert rows == pool()[0], "what was given is untouched"


@pytest.mark.parametrize("name", CURATORS)
def test_nothing_that_is_asked_later_is_made(name: str, tmp_path: Path) -> None:
    """Held back: all rows that substitution could make of the one it is given, but two; a teacher writes them all."""
    given = example("Dim the kitchen, to 5", [Call("Dim", {"area": "Kitchen", "level": 5})], "a", source="pool")
    free = ("Attic", "Hall")
    asked = [example(f"dim the {area.lower()} to 5!", [], f"v{area}") for area in AREAS if area not in free]
    task = small_task(valid=asked[:2], test=asked[2:], unlabelled=[])
    later = {normalised(row.request.text) for row in asked if "kitchen" not in row.request.text}
    written = json.dumps({"requests": [f"Dim the {area}, to 5" for area in AREAS]})
    teacher = FakeEngine(lambda *_: written)

    def dims(requests: Sequence[Request]) -> list[Answer]:
        return [Answer((Call("Dim", {"area": request.text.split()[2][:-1], "level": 5}),)) for request in requests]

    for seed in range(10):
        bench = small_bench(task, tmp_path, teacher, answer=dims)
        kept = curated(name, judged([given], task), task, seed, tmp_path, bench)
        assert not {normalised(row.request.text) for row in kept} & later
        assert len(kept) <= 1 + len(free)


@pytest.mark.parametrize("name", CURATORS)
def test_answers_of_valid_and_test_are_not_looked_at(name: str, tmp_path: Path) -> None:
    """The rows that are asked later have a request and nothing else here."""
    rows, task = pool()
    valid, test = ([SimpleNamespace(request=row.request) for row in split] for split in (task.valid, task.test))
    blind = small_task(valid=valid, test=test)  # type: ignore[arg-type]
    assert curated(name, rows, blind, 3, tmp_path / "a") == curated(name, rows, task, 3, tmp_path / "b")


@pytest.mark.parametrize("name", CURATORS)
def test_every_script_survives(name: str, tmp_path: Path) -> None:
    rows, task = scripts()
    kept = {row.request.id: row for row in curated(name, rows, task, 3, tmp_path)}
    assert all(kept[row.request.id] == row for row in rows)


@pytest.mark.parametrize("name", CURATORS)
def test_what_a_curator_is_handed_is_what_it_needs(name: str) -> None:
    needs = set(getattr(build("curators", name), "needs", ()))
    assert needs <= {"live_teacher", "token_scores", "person"}
    assert ("bench" in inspect.signature(build("curators", name).curate).parameters) == bool(needs)
    if "live_teacher" in needs:
        assert build("curators", name).model_calls([], 1.0) >= 0, "how often it is expected to ask"


def test_verified_keeps_gold_and_drops_what_fails_or_is_doubted() -> None:
    passed, failed, abstained = (Verdict(outcome) for outcome in ("pass", "fail", "abstain"))  # type: ignore[arg-type]
    bare = example("x", [Call("TurnOn")], source="pool")

    def sure(confidence: float | None) -> Example:
        return replace(bare, verdict=passed, answer=Answer((Call("TurnOn"),), confidence=confidence))

    gold = replace(bare, verdict=failed, provenance={"source": "labelled"})
    rows = {
        "gold": gold,
        "passed": replace(bare, verdict=passed),
        "failed": replace(bare, verdict=failed),
        "abstained": replace(bare, verdict=abstained),
        "unjudged": bare,
        "unanswered": replace(bare, verdict=passed, answer=None),
        "sure": sure(0.5),
        "doubted": sure(0.49),
        "no votes": sure(None),
    }

    def kept(**settings: Any) -> set[str]:
        found = build("curators", {"method": "verified", **settings}).curate(list(rows.values()), small_task(), 0)
        return {name for name, row in rows.items() if any(row is one for one in found)}

    assert kept() == {"gold", "passed", "abstained", "sure", "no votes"}
    assert kept(keep_abstained=False) == {"gold", "passed", "sure", "no votes"}
    assert kept(least_confidence=0.2) == kept() | {"doubted"}


def test_deduplicate_keeps_gold_first_and_one_of_each() -> None:
    rows = [
        example("Turn on the  kitchen light", [Call("TurnOn", {"area": "Kitchen"})], "pool-1", source="pool"),
        example("something else entirely", [], "pool-2", source="pool"),
        example("turn on the kitchen light", [Call("TurnOn", {"area": "Kitchen"})], "gold", source="labelled"),
        example("Something Else entirely", [], "pool-3", source="pool"),
    ]
    kept = build("curators", "deduplicate").curate(rows, small_task(), 0)
    assert [row.request.id for row in kept] == ["pool-2", "gold"]


@pytest.mark.parametrize("seed", range(8))
def test_deduplicate_decides_by_the_exact_similarity(seed: int) -> None:
    """Texts that share 9 of 10 4-grams are near, and below 0.95: a sketch alone takes them for one now and then."""
    texts = [f"please set the brightness of the big lamp in the living room to {n} percent now" for n in range(10, 40)]
    rows = [example(text, [], source="pool") for text in texts]
    assert build("curators", "deduplicate").curate(rows, small_task(), seed) == rows
    near = build("curators", {"method": "deduplicate", "similarity": 0.5}).curate(rows, small_task(), seed)
    assert len(near) < 5


@pytest.mark.parametrize("seed", range(5))
def test_substitute_states_the_new_value_and_the_call_carries_it(seed: int) -> None:
    rows, task = pool()
    made = build("curators", "substitute").curate(rows, task, seed)[len(rows) :]
    assert len(made) > len(rows) / 2
    origins = {row.request.id: row for row in rows}
    for row in made:
        origin = origins[row.provenance["origin"]]
        assert row.answer is not None
        assert origin.answer is not None
        assert row.request.text != origin.request.text
        assert row.verdict is not None
        assert row.verdict.outcome != "fail"
        assert task.verify(row.request, row.answer.calls).outcome == "pass"
        for new, old in zip(row.answer.calls, origin.answer.calls, strict=True):
            assert (new.tool, new.arguments.keys()) == (old.tool, old.arguments.keys())
            assert new.arguments != old.arguments
            for value in new.arguments.values():
                assert (
                    str(value).lower() in row.request.text.lower().replace("%", " ").split()
                    or str(value).lower() in row.request.text.lower()
                )
        # Nothing but the values has changed.
        assert _without_values(row) == _without_values(origin)
    assert len({normalised(row.request.text) for row in made}) == len(made)


def _without_values(row: Example) -> str:
    text = row.request.text.lower()
    for call in row.answer.calls if row.answer else ():
        for value in call.arguments.values():
            text = text.replace(str(value).lower(), "#")
    return text


def substituted(
    text: str, *calls: Call, tools: Sequence[Tool] | None = None, more: Sequence[Example] = ()
) -> list[Example]:
    task = small_task(tools, valid=[], test=[])
    curator = build("curators", {"method": "substitute", "copies": 20, "swap_share": 1.0})
    rows = judged([example(text, calls, "a", source="pool"), *more], task)
    return [row for row in curator.curate(rows, task, 1)[len(rows) :] if row.provenance["origin"] == "a"]


def test_substitute_leaves_alone_what_is_not_stated_once() -> None:
    kitchen = Call("TurnOn", {"area": "Kitchen"})
    assert substituted("make it bright here", kitchen) == []
    assert substituted("the kitchen, I said the kitchen", kitchen) == []
    assert substituted("turn on the kitchenette", kitchen) == []
    # Two calls share one word of the text: changing it for one of them would make the other wrong.
    assert substituted("kitchen on and off", kitchen, Call("TurnOff", {"area": "Kitchen"})) == []


def test_substitute_never_breaks_a_value_inside_another() -> None:
    names = ("Kitchen Light", "Bedroom Fan")
    properties = {"name": {"enum": list(names)}, "area": {"enum": list(AREAS)}}
    tools = [Tool("Switch", "", {"type": "object", "properties": properties})]
    call = Call("Switch", {"name": "Kitchen Light", "area": "Kitchen"})
    for row in substituted("switch the kitchen light", call, tools=tools):
        assert row.answer is not None
        assert str(row.answer.calls[0].arguments["name"]).lower() in row.request.text


def test_substitute_tells_whole_numbers_from_parts_of_numbers() -> None:
    dim = Call("Dim", {"area": "Hall", "level": 5})
    more = [example("dim it", [Call("Dim", {"area": "Hall", "level": 70})], "b", source="pool")]
    for text in ("dim to 0.5 or 2,5 or 15", "dim 5.5"):
        assert substituted(text, dim, more=more) == []
    (row,) = substituted("dim to 5.", dim, more=more)
    assert row.request.text == "dim to 70."
    assert row.answer == Answer((Call("Dim", {"area": "Hall", "level": 70}),))


def test_substitute_exchanges_values_of_every_script_and_several_at_once() -> None:
    rows, task = scripts()
    made = build("curators", {"method": "substitute", "swap_share": 1.0}).curate(rows, task, 1)[len(rows) :]
    origins = {row.provenance["origin"] for row in made}
    assert {"ru", "zh", "emoji"} <= origins
    assert all(row.answer and row.answer.calls[0].arguments["area"] in row.request.text for row in made)
    both = substituted("kitchen on, hall off", Call("TurnOn", {"area": "Kitchen"}), Call("TurnOff", {"area": "Hall"}))
    for row in both:
        assert row.answer is not None
        on, off = (str(call.arguments["area"]).lower() for call in row.answer.calls)
        assert row.request.text == f"{on} on, {off} off"
    assert len(both) > 10


def test_deduplicate_compares_conversations_and_answers() -> None:
    text = "do the same thing again with the lamp"

    def after(first: str, id: str) -> Example:
        said = [("user", first), ("assistant", "which one?"), ("user", "the big one in the corner")]
        messages = tuple({"role": role, "content": content} for role, content in said)
        return Example(Request(id, messages), Answer(), provenance={"source": "pool"})

    rows = [
        example(text, [Call("TurnOn", {"area": "Kitchen"})], "on", source="pool"),
        example(text, [Call("TurnOff", {"area": "Kitchen"})], "off", source="pool"),
        example(text.upper(), [Call("TurnOn", {"area": "Kitchen"})], "on again", source="pool"),
        after("switch a lamp on", "lamp"),
        after("open one of the windows", "window"),
    ]
    kept = build("curators", "deduplicate").curate(rows, small_task(), 0)
    assert [row.request.id for row in kept] == ["on", "off", "lamp", "window"]
