"""The quality benchmark's pure parts: draws that do not leak, marks that can be read back, figures with their names."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks._amend import Amend
from benchmarks._banking import banking, complete_among, led_prompts, weighed
from benchmarks._data import VARIABLE, Labelled, balanced, banking_split, folder_of, json_schema, snips_task
from benchmarks._guess_function import GuessFunction
from benchmarks._mark import Mark
from benchmarks._measuring import Room, by_steps, measure, shares
from benchmarks._slots import STYLES, SlotTagger, arguments_of, marked, read_listed, read_marked, tags_of, words_of
from benchmarks._snips import snips
from benchmarks.prototype_quality import options
from supertiny.core.errors import UserError
from supertiny.core.ledger import Ledger
from supertiny.core.progress import Progress
from supertiny.core.records import Grammar, Prompt, Sampling
from supertiny.prototype.bench import Trace
from tests.fake_engine import FakeEngine

ARTISTS = ("Becca", "Joy Nilo", "frank farian", "The Mark", "Ina", "Wilco", "Kan Mikami", "Ira Losco")
PLACES = ("Visalia", "East Prairie", "Oban", "Roselle", "Keachi", "Berkley", "Walden", "Datil")
BOOKS = ("Juneteenth", "Deception", "The Scoop", "Glory Season", "A Thousand Lies", "Manthan", "Ocean", "Four")


def made_rows() -> list[dict[str, Any]]:
    rows = []
    for place, (artist, city, book) in enumerate(zip(ARTISTS, PLACES, BOOKS, strict=True)):
        for number, (sort, time) in enumerate((("best", "now"), ("top", "today"), ("new", "at noon"))):
            value, stars = str(number + 3), ("stars", "points")[(place + number) % 2]
            for text, name, arguments in (
                (f"play the {sort} {artist}", "PlayMusic", {"sort": sort, "artist": artist}),
                (f"weather in {city} {time}", "GetWeather", {"city": city, "timeRange": time}),
                (
                    f"give {book} {value} {stars}",
                    "RateBook",
                    {"object_name": book, "rating_value": value, "rating_unit": stars},
                ),
            ):
                rows.append({"text": text, "calls": [{"name": name, "arguments": arguments}]})
    return rows


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rows = made_rows()
    valid, train = rows[::5], [row for place, row in enumerate(rows) if place % 5]
    leak = {**valid[0], "text": valid[0]["text"].upper() + "!"}
    write(tmp_path / "snips" / "train.jsonl", [*train, leak, *train[:3]])
    write(tmp_path / "snips" / "valid.jsonl", valid)
    questions = [
        {"text": f"{verb} my {thing} {number}", "label": f"{verb}_{thing}"}
        for verb in ("lost", "order", "freeze")
        for thing in ("card", "pin")
        for number in range(14)
    ]
    write(tmp_path / "banking77" / "train.jsonl", questions)
    return tmp_path


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def room(data: Path, tmp_path: Path) -> Iterator[Callable[[FakeEngine], Room]]:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    yield lambda engine: Room(engine, ledger, data, quick=True, progress=Progress(quiet=True))
    ledger.close()


def a_model(prompt: Prompt, sampling: Sampling, grammar: Grammar | None) -> str:
    """Knows every command of the made set; errs on the unit of a rating, and says labels as they are."""
    asked = str(prompt.messages[-1]["content"])
    system = str(prompt.messages[0]["content"])
    known = {row["text"]: row["calls"][0] for row in made_rows()}
    if asked.endswith("=>"):
        verb, _, thing, _ = asked.splitlines()[-1].split()[:4]
        return f"{verb}_{thing}"
    if asked not in known:
        return "lost_card"
    call = known[asked]
    if system.startswith("Name the function"):
        return str(call["name"])
    if system.startswith(("Write the user's request", "List the arguments")):
        style = "marked" if system.startswith("Write") else "listed"
        kept = {slot: value for slot, value in call["arguments"].items() if slot != "rating_unit"}
        begin = f"{call['name']}: " if "function's name and a colon" in system else ""
        return begin + STYLES[style][0](asked, kept)
    return json.dumps([call])


class TestData:
    def test_drawn_rows_are_balanced_and_say_nothing_that_valid_asks(self, data: Path) -> None:
        task = snips_task(data / "snips", 30, seed=1)
        names = [row.answer.calls[0].tool for row in task.labelled if row.answer]
        assert len(names) == 30
        assert {names.count(name) for name in set(names)} <= {9, 10, 11}
        plain = {row.request.text.casefold().strip("!") for row in task.labelled}
        assert len(plain) == 30
        assert not plain & {row.request.text.casefold() for row in task.valid}

    def test_the_pool_stands_beside_the_labelled_rows_with_its_gold_apart(self, data: Path) -> None:
        task = snips_task(data / "snips", 20, seed=1, pool=15)
        assert len(task.unlabelled) == 15
        assert all(row.answer is None for row in task.unlabelled)
        assert set(task.pool_gold) == {row.request.id for row in task.unlabelled}
        assert not {r.request.text for r in task.labelled} & {r.request.text for r in task.unlabelled}

    def test_signatures_name_all_slots(self, data: Path) -> None:
        rate = snips_task(data / "snips", 20, seed=1).tool_map["RateBook"]
        assert sorted(rate.parameters["properties"]) == ["object_name", "rating_unit", "rating_value"]

    def test_questions_that_are_shown_are_not_asked(self, data: Path) -> None:
        shown, held = banking_split(data / "banking77", each=10, held_out=20, seed=3)
        assert [sum(row.label == label for row in shown) for label in {row.label for row in shown}] == [10] * 6
        assert len(held) == 20
        assert not {row.text for row in shown} & {row.text for row in held}

    def test_same_seed_same_draw(self) -> None:
        rows = [{"label": str(place % 3)} for place in range(30)]
        assert balanced(rows, "label", 9, seed=5) == balanced(rows, "label", 9, seed=5)
        assert balanced(rows, "label", 9, seed=5) != balanced(rows, "label", 9, seed=6)

    def test_a_set_that_is_not_there_is_told_with_its_source(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(VARIABLE, str(tmp_path))
        with pytest.raises(UserError, match="banking_data"):
            folder_of("banking77", None)
        (tmp_path / "banking77").mkdir()
        assert folder_of("banking77", None) == tmp_path / "banking77"

    def test_types_of_the_leaderboard_become_those_of_json_schema(self) -> None:
        theirs = {
            "type": "dict",
            "properties": {"a": {"type": "array", "items": {"type": "float"}}, "b": {"type": "any", "optional": True}},
            "required": ["a"],
        }
        assert json_schema(theirs) == {
            "type": "object",
            "properties": {"a": {"type": "array", "items": {"type": "number"}}, "b": {"type": "string"}},
            "required": ["a"],
        }


TEXT = "add the best Best of Ina to my party, now"
ARGUMENTS = {"sort": "best", "album": "Best of Ina", "owner": "my", "playlist": "party"}


class TestSlots:
    @pytest.mark.parametrize("style", ["marked", "listed"])
    def test_what_was_written_is_read_back(self, style: str) -> None:
        write, read = STYLES[style]
        assert read(TEXT, write(TEXT, ARGUMENTS), ARGUMENTS) == ARGUMENTS

    def test_marks_stand_in_the_text(self) -> None:
        assert marked("play best Ina", {"sort": "best", "artist": "Ina"}) == "play [best](sort) [Ina](artist)"

    def test_case_and_blanks_may_change_but_words_may_not(self) -> None:
        assert read_marked("Play  Ina.", "play [ina](artist).", ["artist"]) == {"artist": "Ina"}
        assert read_marked("Play Ina.", "Play [Ira](artist).", ["artist"]) is None
        assert read_marked("Play Ina.", "[Ina](artist).", ["artist"]) is None

    def test_unknown_slots_are_left_out(self) -> None:
        assert read_marked("Play Ina", "[Play](verb) [Ina](artist)", ["artist"]) == {"artist": "Ina"}
        assert read_listed("Play Ina", "verb: Play; artist: ina", ["artist"]) == {"artist": "Ina"}
        assert read_listed("Play Ina", "artist: Ira", ["artist"]) is None

    def test_tags_are_the_arguments(self) -> None:
        words = words_of(TEXT)
        tags = tags_of(words, TEXT, ARGUMENTS)
        assert tags[:4] == ["O", "O", "B-sort", "B-album"]
        assert arguments_of(words, TEXT, tags) == ARGUMENTS

    def test_the_tagger_learns_when_to_trust_a_hint(self) -> None:
        rows = []
        for place, artist in enumerate(ARTISTS):  # the hint knows artists, and never knows the service
            text = f"play {artist} on {('spotify', 'deezer')[place % 2]}"
            gold = {"artist": artist, "service": text.split()[-1]}
            rows.append((text, "Play", gold, [{"artist": artist}]))
        tagger = SlotTagger(rows)
        found, score = tagger("play zaz on mezzo on deezer", "Play", [{"artist": "zaz on mezzo"}])
        assert found == {"artist": "zaz on mezzo", "service": "deezer"}
        assert score < 0


class TestSnips:
    def test_a_row_is_marked_without_being_shown(self, room: Callable[[FakeEngine], Room], data: Path) -> None:
        engine = FakeEngine(a_model)
        task = snips_task(data / "snips", 30, seed=1)
        traces = Amend().marks(Mark(), room(engine).bench(task, "labelled rows"))
        assert [trace.request for trace in traces] == [row.request for row in task.labelled]
        gold = {row.request.text: row.answer.calls[0].arguments for row in task.labelled if row.answer}
        assert len(engine.asked) == 30
        for prompt, *_ in engine.asked:
            text = str(prompt.messages[-1]["content"])
            earlier = "\n".join(str(message["content"]) for message in prompt.messages[:-1])
            assert marked(text, gold[text]) not in earlier
            assert text not in earlier.splitlines()

    def test_requests_of_a_function_share_their_system_message(
        self, room: Callable[[FakeEngine], Room], data: Path
    ) -> None:
        engine = FakeEngine(a_model)
        task = snips_task(data / "snips", 30, seed=1)
        bench = room(engine).bench(task, "valid")
        traces = [Trace(row.request, tool=row.answer.calls[0].tool) for row in task.valid if row.answer]
        prompts = Mark().prompts(traces, bench)
        systems = {str(prompt.messages[0]["content"]) for prompt in prompts}
        assert len(systems) == 3
        assert all(prompt.shared == 1 for prompt in prompts)
        for trace, prompt in zip(traces, prompts, strict=True):
            assert f"Function {trace.tool}, arguments:" in str(prompt.messages[0]["content"])
            assert len(prompt.messages) == 1 + 2 * 4 + 1

    def test_a_changed_request_is_handed_back_once(self, room: Callable[[FakeEngine], Room], data: Path) -> None:
        def forgetful(prompt: Prompt, sampling: Sampling, grammar: Grammar | None) -> str:
            if len(prompt.messages) > 2 and prompt.messages[-2]["role"] == "assistant":
                asked = str(prompt.messages[-3]["content"])
                return asked if "word for word" in str(prompt.messages[-1]["content"]) else "something else"
            return "something else"

        task = snips_task(data / "snips", 20, seed=1)
        engine = FakeEngine(forgetful)
        (trace,) = Mark(nearest=0).run([Trace(task.valid[0].request, tool="PlayMusic")], room(engine).bench(task, "x"))
        assert trace.calls is not None
        assert trace.calls[0].arguments == {}
        assert len(engine.asked) == 2
        assert trace.cost.tokens_in == 20

    def test_only_doubtful_functions_are_asked_for(self, room: Callable[[FakeEngine], Room], data: Path) -> None:
        task = snips_task(data / "snips", 30, seed=1)
        engine = FakeEngine(a_model)
        bench = room(engine).bench(task, "route")
        traces = [Trace(row.request) for row in task.valid]
        routed = GuessFunction().run(traces, bench)
        assert [t.tool for t in routed] == [row.answer.calls[0].tool for row in task.valid if row.answer]
        assert len(engine.asked) < len(traces)
        GuessFunction(ask=False).run(traces, bench)
        assert len(engine.asked) < len(traces)

    def test_what_the_model_never_marks_is_learned_from_the_labelled_rows(
        self, room: Callable[[FakeEngine], Room], data: Path
    ) -> None:
        task = snips_task(data / "snips", 40, seed=1)
        bench = room(FakeEngine(a_model)).bench(task, "pipeline")
        bare = measure("bare", task.valid, task, bench, by_steps([GuessFunction(), Mark()], bench))
        led = measure("led", task.valid, task, bench, by_steps([GuessFunction(), Mark(), Amend()], bench))
        assert bare.share < 0.7  # it leaves the unit of every rating out
        assert led.share > 0.9
        assert led.slot_f1 > bare.slot_f1

    @pytest.mark.slow
    def test_a_second_way_of_asking_is_paid_and_looked_at(self, room: Callable[[FakeEngine], Room], data: Path) -> None:
        task = snips_task(data / "snips", 40, seed=1)
        bench = room(FakeEngine(a_model)).bench(task, "pipeline")
        led = measure("led", task.valid, task, bench, by_steps([GuessFunction(), Mark(), Amend()], bench))
        two = Amend((Mark(), Mark(style="listed")))
        twice = measure("two", task.valid, task, bench, by_steps([GuessFunction(), Mark(), two], bench))
        assert twice.share > 0.9
        asked = [sum(one.cost.tokens_in for one in measured.answers) for measured in (led, twice)]
        assert asked[1] == asked[0] + 10 * len(task.valid)
        assert two.held_out_share(bench) > 0.9

    @pytest.mark.slow
    def test_figures_have_their_names(self, room: Callable[[FakeEngine], Room]) -> None:
        figures, table = snips(room(FakeEngine(a_model)))
        values = {name: value for name, _, value in figures}
        for name in ("snips_plain_exact", "snips_nearest8_exact", "snips_pipeline_exact"):
            assert values[f"{name}_low"] <= values[name] <= values[f"{name}_high"]
            assert values[f"{name}_n"] == 15
        assert {"snips_nearest8_seconds", "snips_pipeline_seconds"} <= set(values)
        assert values["snips_nearest8_exact"] == 1.0
        assert [line["step"] for line in table].count("+ amend: the pipeline") == 1
        assert all("difference" in line for line in table if "against" in line)

    def test_a_second_run_asks_nothing_and_keeps_its_seconds(
        self, room: Callable[[FakeEngine], Room], data: Path
    ) -> None:
        task = snips_task(data / "snips", 20, seed=1)
        first, second = FakeEngine(a_model), FakeEngine(a_model)
        before, after = (Amend().marks(Mark(), room(engine).bench(task, "x")) for engine in (first, second))
        assert len(first.asked) == 20
        assert not second.asked
        assert [trace.cost for trace in before] == [trace.cost for trace in after]


SHOWN = [Labelled(f"{verb} my card {n}", verb) for verb in ("lost", "order", "freeze") for n in range(6)]


class TestBanking:
    def test_prompts_show_examples_of_the_likeliest_labels_alone(self) -> None:
        names = ["freeze", "lost", "order", *(f"other{n}" for n in range(9))]
        chances = np.array([[0.1, 0.5, 0.4, *[0.0] * 9]])
        ((prompt, choices),) = led_prompts(["I lost my card"], SHOWN, chances, names)
        words = str(prompt.messages[-1]["content"])
        assert choices[:3] == ["lost", "order", "freeze"]
        assert words.endswith("I lost my card =>")
        assert words.splitlines()[0] == "Labels: " + ", ".join(choices)
        shown = [line.split(" => ")[1] for line in words.splitlines() if " => " in line]
        assert shown
        assert set(shown) <= set(choices)
        assert shown[-1] == "lost"  # the nearest stands last

    def test_words_that_are_no_label_are_written_again_under_a_grammar(self) -> None:
        engine = FakeEngine(lambda prompt, sampling, grammar: "b?" if grammar else f"{prompt.text}\n"[:1])
        chosen = complete_among(engine, [Prompt(text="a"), Prompt(text="x")], [["a", "b?"], ["a", "b?"]])
        assert chosen.labels == ("a", "b?")
        assert [grammar for *_, grammar in engine.asked if grammar] == [Grammar("regex", r"(a|b\?)")]
        assert chosen.seconds == pytest.approx(0.75)

    def test_the_models_word_is_weighed_against_the_probabilities(self) -> None:
        chances, names = np.array([[0.7, 0.3], [0.99, 0.01]]), ["a", "b"]
        assert weighed(chances, names, ["b", "b"], 0.0) == ["a", "a"]
        assert weighed(chances, names, ["b", "b"], 2.0) == ["b", "a"]
        assert weighed(chances, names, ["no label", "b"], 9.0) == ["a", "b"]

    def test_figures_have_their_names(self, room: Callable[[FakeEngine], Room]) -> None:
        figures, table = banking(room(FakeEngine(a_model)))
        values = {name: value for name, _, value in figures}
        for name in ("banking77_tfidf_accuracy", "banking77_plain_accuracy", "banking77_pipeline_accuracy"):
            assert values[f"{name}_low"] <= values[name] <= values[f"{name}_high"]
            assert values[f"{name}_n"] == 20
        assert values["banking77_pipeline_accuracy"] == 1.0
        assert len(table) == 4


def test_a_share_comes_with_its_interval() -> None:
    rows = {name: value for name, _, value in shares("x", "", [True, True, False, True])}
    assert rows["x"] == 0.75
    assert rows["x_n"] == 4
    assert 0.3 < rows["x_low"] < 0.75 < rows["x_high"] < 0.96


def test_the_command_line_takes_parts_and_rows() -> None:
    chosen = options().parse_args(["--part", "snips", "--part", "bfcl", "--rows", "0"])
    assert chosen.part == ["snips", "bfcl"]
    assert chosen.rows == 0
    assert chosen.folder == Path("runs/benchmarks/prototype_quality")
