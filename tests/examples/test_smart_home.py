"""The smart-home example: its data hold what its README promises, and its verifier tells right from wrong."""

import json
from collections import defaultdict
from pathlib import Path

import pytest

from examples.smart_home.functions import FUNCTIONS, arguments_of, tools
from examples.smart_home.home import Home
from examples.smart_home.hooks import verify
from examples.smart_home.make import Sizes, make
from examples.smart_home.sentences import Grammar, mended, sounds_odd
from supertiny.core.files import read_json, read_rows
from supertiny.core.nearest import NearestExamples
from supertiny.core.task import Task, load_task

FOLDER = Path(__file__).parents[2] / "examples" / "smart_home"
SPLITS = ("labelled", "unlabelled", "valid", "test")


@pytest.fixture(scope="module")
def task() -> Task:
    return load_task(FOLDER)


@pytest.fixture(scope="module")
def grammar() -> Grammar:
    return Grammar(Home.read(FOLDER))


def rows_of(split: str) -> list[dict[str, object]]:
    return read_rows(FOLDER / f"{split}.jsonl")


def test_sizes_functions_and_share_without_a_call(task: Task) -> None:
    assert [len(rows_of(split)) for split in SPLITS] == [200, 800, 200, 400]
    assert set(task.tool_map) == set(FUNCTIONS)
    assert len(FUNCTIONS) == 40
    for split in SPLITS:
        rows = rows_of(split)
        assert 0.1 <= sum(not row["calls"] for row in rows) / len(rows) <= 0.12
        assert {call["name"] for row in rows for call in row["calls"]} == set(FUNCTIONS)  # type: ignore[attr-defined]


def test_the_verifier_passes_every_gold_call(task: Task) -> None:
    for split in ("labelled", "valid", "test"):
        for example in getattr(task, split):
            gold = example.answer.calls
            verdict = task.verify(example.request, gold, gold)
            allowed = ("pass",) if gold else ("pass", "abstain")
            assert verdict.outcome in allowed, (example.request.text, verdict)
            assert verdict.similarity == 1.0
    for example in task.unlabelled:
        gold = task.pool_gold[example.request.id]
        assert task.verify(example.request, gold, gold).outcome in (("pass",) if gold else ("pass", "abstain"))


def test_templates_are_not_shared_between_what_is_learned_and_what_is_asked() -> None:
    used: dict[str, set[str]] = defaultdict(set)
    for split in SPLITS:
        for row in rows_of(split):
            used[split].add(row["provenance"]["template"])  # type: ignore[index]
    assert used["labelled"] & used["unlabelled"]
    assert used["unlabelled"] - used["labelled"]
    assert not used["valid"] & (used["labelled"] | used["unlabelled"] | used["test"])
    assert not used["test"] & (used["labelled"] | used["unlabelled"])


def test_tools_follow_the_home() -> None:
    assert read_json(FOLDER / "tools.json") == tools(Home.read(FOLDER))


@pytest.mark.slow
def test_the_files_can_be_made_again(tmp_path: Path) -> None:
    make(tmp_path, Sizes(), seed=7)
    for name in ("tools.json", *(f"{split}.jsonl" for split in SPLITS)):
        assert (tmp_path / name).read_bytes() == (FOLDER / name).read_bytes()


def test_the_same_seed_makes_the_same_bytes(tmp_path: Path) -> None:
    sizes, some = Sizes(9, 9, 9, 9), ("HassBroadcast", "HassLightSet")
    make(tmp_path / "one", sizes, 5, some)
    make(tmp_path / "two", sizes, 5, some)
    make(tmp_path / "three", sizes, 6, some)
    for split in SPLITS:
        one, two, three = ((tmp_path / name / f"{split}.jsonl").read_bytes() for name in ("one", "two", "three"))
        assert one == two != three


@pytest.mark.parametrize(
    ("text", "intent", "arguments"),
    [
        ("turn off the lounge lights", "HassTurnOff", {"area": "living room", "domain": "light"}),
        ("set the floor lamp to twenty-five percent", "HassLightSet", {"name": "floor lamp", "brightness": 25}),
        ("make the bedside lamp warm white", None, {}),
        (
            "set the bedside lamp color temperature to warm white",
            "HassLightSet",
            {"name": "bedside lamp", "kelvin": 2700},
        ),
        ("turn down the volume 40 percent", "HassSetVolumeRelative", {"direction": "down", "step": 40}),
        ("increase the timer by half an hour", "HassIncreaseTimer", {"minutes": 30}),
        (
            "are any blinds open in the office",
            "HassGetState",
            {"area": "office", "device_class": "blind", "state": "open"},
        ),
        ("lock the front door", "HassTurnOn", {"name": "front door"}),
        ("sing me a song", None, {}),
    ],
)
def test_readings(grammar: Grammar, text: str, intent: str | None, arguments: dict[str, object]) -> None:
    reading = grammar.read(text)
    assert (reading.intent if reading else None) == intent
    if reading:
        assert arguments_of(reading.intent, reading.slots) == arguments


def test_readings_have_arguments_of_their_tool(grammar: Grammar) -> None:
    known = {tool["function"]["name"]: tool["function"]["parameters"]["properties"] for tool in tools(grammar.home)}
    for split in SPLITS:
        for row in rows_of(split)[:40]:
            for call in row["calls"]:  # type: ignore[attr-defined]
                reading = grammar.read(str(row["text"]))
                assert reading is not None
                assert arguments_of(reading.intent, reading.slots) == call["arguments"]
                assert set(call["arguments"]) <= set(known[call["name"]])


def test_sentences_are_mended() -> None:
    assert mended("start an 5 minutes timer") == "start a 5-minute timer"
    assert mended("start a 8-minutes timer") == "start an 8-minute timer"
    assert mended("add 1 hours and 20-minute to the timer") == "add 1 hour and 20 minutes to the timer"
    assert mended("how many lights is on") == "how many lights are on"
    assert mended("the lamp to 20 %") == "the lamp to 20%"


def test_odd_sentences_are_found(grammar: Grammar) -> None:
    for text in (
        "turn off the my lamp",
        "coffee machine",
        "lights lights on",
        "who is the gym",
        "is all of the lights on",
    ):
        assert sounds_odd(text, grammar.home), text
    for text in ("turn off the bedside lamp", "are all the lights on", "who is in the gym", "start the coffee machine"):
        assert not sounds_odd(text, grammar.home), text


def call(function: str, /, **arguments: object) -> list[dict[str, object]]:
    return [{"name": function, "arguments": arguments}]


@pytest.mark.parametrize(
    ("text", "calls", "words"),
    [
        ("turn on the kitchen lamp", call("HassTurnOn", name="kitchen lamp"), "there is no device 'kitchen lamp'"),
        ("turn on the robovac", call("HassTurnOn", name="robovac"), "is a vacuum"),
        (
            "floor lamp in the kitchen on",
            call("HassTurnOn", name="floor lamp", area="kitchen"),
            "is in the living room",
        ),
        (
            "set the garage fan to 30",
            call("HassFanSetSpeed", area="garage", percentage=30),
            "there is no fan in garage",
        ),
        ("make the chandelier red", call("HassLightSet", name="chandelier", color="red"), "lights with colours"),
        ("set the floor lamp", call("HassLightSet", name="floor lamp"), "set one of"),
        ("turn on the lights", call("HassTurnOn", area="kitchen", domain="light"), "does not speak of 'kitchen'"),
        ("turn on the kitchen lights", call("HassTurnOn", domain="light"), "speaks of 'kitchen'"),
        ("floor lamp to 40", call("HassLightSet", name="floor lamp", brightness=50), "does not say 50"),
        ("set a timer for 5 minutes 20 seconds", call("HassStartTimer", minutes=5), "says 20"),
        ("add milk to my list", call("HassShoppingListAddItem", item="bread"), "own words"),
        ("is the nursery window open", call("HassGetState", name="nursery window", state="detected"), "is never"),
        ("set a timer", call("HassStartTimer", name="egg"), "say how long"),
    ],
)
def test_wrong_calls_fail_with_a_reason(text: str, calls: list[dict[str, object]], words: str) -> None:
    outcome, reason = verify(text, calls)
    assert outcome == "fail"
    assert words in reason


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ("Floor lamp to forty percent!", call("HassLightSet", name="floor lamp", brightness="40")),
        ("switch the coffee maker on, please", call("HassTurnOn", name="coffee machine")),
        ("set a timer for two and a half hours", call("HassStartTimer", hours=2, minutes=30)),
        ("how is my mood", []),
    ],
)
def test_right_calls_pass(text: str, calls: list[dict[str, object]]) -> None:
    assert verify(text, calls) == ("pass", "")


def test_no_call_abstains_where_the_home_is_spoken_of() -> None:
    assert verify("turn on the lights in the attic", [])[0] == "abstain"


def test_rows_are_small_and_readable() -> None:
    assert sum(path.stat().st_size for path in FOLDER.glob("*.json*")) < 1_000_000
    for split in SPLITS:
        for row in rows_of(split):
            assert set(row) == {"id", "text", "calls", "provenance"}
            assert json.dumps(row)
            assert 1 <= len(str(row["text"]).split()) <= 25


@pytest.mark.parametrize(
    ("text", "calls", "words"),
    [
        ("turn off the chandelier", call("HassTurnOn", name="chandelier"), "opposite"),
        ("turn on the chandelier", call("HassTurnOff", name="chandelier"), "does not ask to turn off"),
        ("is the chandelier on", call("HassTurnOn", name="chandelier"), "a question"),
        ("turn the chandelier on", call("HassGetState", name="chandelier", state="on"), "asks no question"),
        ("pause the soundbar", call("HassMediaPlayerMute", name="soundbar"), "does not ask for this"),
        ("pause the timer", call("HassMediaPause"), "speaks of a timer"),
        (
            "turn down the volume by ten",
            call("HassSetVolumeRelative", direction="up", step=10),
            "nothing in the request",
        ),
        ("pause the soundbar", call("HassMediaPause"), "names 'soundbar'"),
    ],
)
def test_calls_of_another_function_fail(text: str, calls: list[dict[str, object]], words: str) -> None:
    outcome, reason = verify(text, calls)
    assert outcome == "fail"
    assert words in reason


def test_the_verifier_fails_answers_of_similar_requests(task: Task) -> None:
    rows = [*task.valid, *task.test]
    near = NearestExamples(rows).nearest([row.request.text for row in rows], 6)
    outcomes = []
    for row, found in zip(rows, near, strict=True):
        others = [rows[index].answer for index, _ in found]
        wrong = [other.calls for other in others if other and other.calls and other.calls != row.answer.calls]
        if wrong:
            outcomes.append(task.verify(row.request, wrong[0]).outcome)
    assert len(outcomes) > 400
    assert outcomes.count("fail") / len(outcomes) > 0.93
