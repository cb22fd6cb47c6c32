"""Steps that learn from labelled rows: classify, mark, stack, relevance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from supertiny.core.methods import build
from supertiny.core.nearest import NearestExamples
from supertiny.core.records import Answer, Call, Completion, Example, Prompt, Request, Tool
from supertiny.core.scoring import exact
from supertiny.core.task import Task
from supertiny.prototype.bench import Bench, Result, Trace
from supertiny.prototype.steps._held_out import PARTS, KnownFunctions, part_of
from supertiny.prototype.steps._reader import Reader, Rows
from supertiny.prototype.steps._spans import arguments_of, marked, read_marked, tags_of, words_of
from supertiny.prototype.steps._tagger import Lesson, Tagger
from tests.fake_engine import FakeEngine
from tests.slot_task import ARTISTS, COMPACT, slot_model, slot_task
from tests.tiny_student import write_student

TASK = slot_task()
TEXT = "add the best Best of Ina to my party, now"
ARGUMENTS = {"sort": "best", "album": "Best of Ina", "owner": "my", "playlist": "party"}
NONE = Request.from_text("what is love", "none")


def bench(author: Any = slot_model, task: Task = TASK, **more: Any) -> Bench:
    return Bench(FakeEngine(author), task, COMPACT, NearestExamples(task.labelled), 3, **more)


def asked(at: Bench) -> list[Prompt]:
    assert isinstance(at.engine, FakeEngine)
    return [prompt for prompt, *_ in at.engine.asked]


def run(blocks: list[Any], at: Bench, rows: tuple[Example, ...] = TASK.valid) -> list[Trace]:
    traces = [Trace(row.request) for row in rows]
    for block in blocks:
        traces = build("steps", block).run(traces, at)
    return traces


def right_share(traces: list[Trace], rows: tuple[Example, ...] = TASK.valid) -> float:
    gold = [row.answer.calls if row.answer else () for row in rows]
    return sum(exact(t.calls or (), g, TASK.tool_map) for t, g in zip(traces, gold, strict=True)) / len(rows)


class TestSpans:
    def test_what_was_marked_is_read_back(self) -> None:
        assert marked("play best Ina", {"sort": "best", "artist": "Ina"}) == "play [best](sort) [Ina](artist)"
        assert read_marked(TEXT, marked(TEXT, ARGUMENTS)) == ARGUMENTS
        assert marked("play\n Ina", {"artist": "Ina"}) == "play [Ina](artist)"
        assert read_marked("play\n Ina", "play [Ina](artist)") == {"artist": "Ina"}

    def test_case_and_blanks_may_change_but_words_may_not(self) -> None:
        assert read_marked("Play  Ina.", "play [ina](artist).") == {"artist": "Ina"}
        assert read_marked("Play Ina.", "Play [Ira](artist).") is None
        assert read_marked("Play Ina.", "[Ina](artist).") is None

    def test_tags_are_the_arguments(self) -> None:
        words = words_of(TEXT)
        tags = tags_of(words, TEXT, ARGUMENTS)
        assert tags[:5] == ["O", "O", "B-sort", "B-album", "I-album"]
        assert arguments_of(words, TEXT, tags) == ARGUMENTS

    def test_the_tagger_learns_when_to_trust_a_hint(self) -> None:
        lessons = []
        for place, artist in enumerate(ARTISTS):  # the hint knows artists, and never knows the service
            text = f"play {artist} on {('spotify', 'deezer')[place % 2]}"
            gold = {"artist": artist, "service": text.split()[-1], "volume": "9"}
            lessons.append(Lesson(text, "Play", gold, [{"artist": artist}]))
        tagger = Tagger(lessons)
        found, score = tagger("play zaz on mezzo on deezer", "Play", [{"artist": "zaz on mezzo"}])
        assert found == {"artist": "zaz on mezzo", "service": "deezer"}
        assert score < 0
        assert tagger.copied == {"Play": {"artist", "service"}}, "what no text states is left alone"
        assert not tagger.knows("Stop")

    def test_a_state_belongs_to_its_own_word(self) -> None:
        """What no lesson says of these words, only their states tell: one of them is the artist."""

        class Knowing(Reader):
            def _read(self, texts: Sequence[str]) -> list[Rows]:
                known = [[word in (*ARTISTS, "zaz") for word, *_ in words_of(text)] for text in texts]
                return [np.array([[hit, not hit] for hit in row], np.float32) for row in known]

        names = [artist for artist in ARTISTS if " " not in artist]
        texts = [f"{one} {artist} {two}" for artist in names for one, two in (("a", "b"), ("c", "d"))]
        texts += [f"{artist} {one} {two}" for artist in names for one, two in (("a", "b"), ("c", "d"))]
        gold = [next(word for word in text.split() if word in names) for text in texts]
        lessons = [Lesson(text, "Play", {"artist": one}, []) for text, one in zip(texts, gold, strict=True)]
        tagger = Tagger(lessons, Knowing(Path("nowhere")))
        for text in ("x y zaz", "x zaz y", "zaz x y"):
            assert tagger(text, "Play", [])[0] == {"artist": "zaz"}


class TestClassify:
    def test_the_function_is_chosen_without_a_model(self) -> None:
        at = bench()
        traces = run([{"method": "classify", "risk": 0.2}], at)
        assert [t.tool for t in traces] == [row.answer.calls[0].tool for row in TASK.valid if row.answer]
        assert not asked(at)

    def test_the_likely_functions_are_left_where_it_is_unsure(self) -> None:
        rows = tuple(row for row in TASK.labelled if row.answer and row.answer.calls[0].tool != "RateBook")
        few = replace(TASK, labelled=rows)
        for trace in run([{"method": "classify", "risk": 0.2}], bench(task=few)):
            assert trace.tool is None
            assert "RateBook" in trace.candidates, "a function without labelled rows is never left out"
        careful = run([{"method": "classify", "risk": 0.001}], bench())
        assert {len(trace.candidates) for trace in careful} == {3}, "so few rows cannot promise one in a thousand"

    def test_no_call_and_several_calls_are_learned(self) -> None:
        none = [Example(replace(NONE, id=f"none-{n}"), Answer()) for n in range(9)]
        both = [
            Example(
                Request.from_text(f"play Ina and weather in {n}", f"both-{n}"),
                Answer((Call("PlayMusic"), Call("GetWeather"))),
            )
            for n in range(9)
        ]
        at = bench(task=replace(TASK, labelled=(*TASK.labelled, *none, *both)))
        traces = run([{"method": "classify", "risk": 0.3}], at, (Example(NONE), both[0]))
        assert (traces[0].tool, traces[0].calls) == ("", ())
        assert (traces[1].tool, set(traces[1].candidates)) == (None, {"PlayMusic", "GetWeather"})

    def test_labelled_rows_are_judged_by_those_that_have_not_seen_them(self) -> None:
        odd = Example(Request.from_text("zzz", "odd"), Answer((Call("RateBook"),)))
        known = KnownFunctions([*TASK.labelled, odd], seed=1)
        seen, held = known([replace(odd.request, id="new")])[0], known([odd.request])[0]
        assert seen[known.gold[-1]] > held[known.gold[-1]]
        assert np.allclose(known.held_out.sum(axis=1), 1.0)
        parts = part_of(TASK.labelled, seed=1)
        sizes = [list(parts.values()).count(part) for part in range(PARTS)]
        assert max(sizes) - min(sizes) <= 1
        assert parts == part_of(TASK.labelled, seed=1) != part_of(TASK.labelled, seed=2)


class TestMark:
    def test_requests_of_a_function_share_their_system_message(self) -> None:
        at = bench()
        run([{"method": "classify", "risk": 0.2}, {"method": "retrieve", "examples": 4}, "mark"], at)
        systems = {str(prompt.messages[0]["content"]) for prompt in asked(at)}
        assert len(systems) == 3
        for prompt in asked(at):
            assert prompt.shared == 1
            assert str(prompt.messages[0]["content"]).count("Function ") == 1
            assert len(prompt.messages) <= 1 + 2 * 4 + 1

    def test_a_labelled_row_is_marked_without_being_shown(self) -> None:
        at = bench()
        run([{"method": "retrieve", "examples": 4}, {"method": "mark", "examples": 99}], at, TASK.labelled)
        gold = {row.request.text: row.answer.calls[0].arguments for row in TASK.labelled if row.answer}
        assert len(asked(at)) == len(TASK.labelled)
        assert len({str(prompt.messages[0]["content"]) for prompt in asked(at)}) == PARTS
        for prompt in asked(at):
            text = str(prompt.messages[-1]["content"])
            assert marked(text, gold[text]) not in "\n".join(str(m["content"]) for m in prompt.messages[:-1])

    def test_a_changed_request_is_handed_back_once(self) -> None:
        def forgetful(prompt: Prompt, *_: Any) -> str:
            complaint = str(prompt.messages[-1]["content"])
            return "PlayMusic: " + str(prompt.messages[-3]["content"]) if "word for word" in complaint else "well"

        at = bench(forgetful)
        (trace,) = run(["mark"], at, TASK.valid[:1])
        assert trace.calls == (Call("PlayMusic"),)
        assert (len(asked(at)), trace.cost.tokens_in) == (2, 20)

    def test_an_answer_stays_where_the_marks_cannot_be_read(self) -> None:
        before = Trace(TASK.valid[0].request, calls=(Call("PlayMusic", {"artist": "x"}),))
        (after,) = build("steps", "mark").run([before], bench(lambda *_: "nothing of the kind"))
        assert after.calls == before.calls
        (skipped,) = build("steps", "mark").run([replace(before, tool="", calls=())], bench(lambda *_: 1 / 0))
        assert skipped.calls == ()

    def test_several_calls_stand_on_a_line_each(self) -> None:
        tools = (Tool("Set", "", {"properties": {"level": {"type": "integer"}, "room": {"enum": ["Hall"]}}}),)
        two = (Call("Set", {"level": 4, "room": "Hall"}), Call("Set", {"level": 5}))
        row = Example(Request.from_text("hall to 4, then 5", "two"), Answer(two))
        said = "Set: [hall](room) to [4](level), then 5\nSet: hall to 4, then [5](level)"
        at = bench(lambda *_: said, Task("t", "", TASK.folder, tools, (row,), (), (), (), pool_gold={}, hash="t"))
        (trace,) = run(["mark"], at, (replace(row, request=replace(row.request, id="new")),))
        assert trace.calls == two, "numbers are numbers, and listed values are spelled as in the list"
        assert said in str(asked(at)[0].messages[0]["content"])
        (nothing,) = run(["mark"], bench(lambda *_: "none"), (Example(NONE),))
        assert nothing.calls == ()

    def test_an_answer_of_several_calls_is_left_alone(self) -> None:
        """Where labelled rows have one call each, examples say nothing of a request that needs two."""
        text = "play Ina and weather in Oban"
        two = (Call("PlayMusic", {"artist": "Ina"}), Call("GetWeather", {"city": "Oban"}))
        at = bench()
        given = Trace(Request.from_text(text, "two"), calls=two)
        assert build("steps", "mark").run([given], at) == [given]
        assert not asked(at)

    def test_several_lines_are_several_calls_though_no_labelled_row_has_them(self) -> None:
        text = "play Ina and weather in Oban"
        said = "PlayMusic: play [Ina](artist) and weather in Oban\nGetWeather: play Ina and weather in [Oban](city)"
        at = bench(lambda *_: f"{said}\n\nand so on")
        (trace,) = run(["mark"], at, (Example(Request.from_text(text, "two")),))
        assert trace.calls == (Call("PlayMusic", {"artist": "Ina"}), Call("GetWeather", {"city": "Oban"}))
        assert "a line each" in str(asked(at)[0].messages[0]["content"])
        assert len(asked(at)) == 1, "what comes after a blank line is not written"


class TestStack:
    STEPS = ({"method": "classify", "risk": 0.2}, {"method": "retrieve", "examples": 4}, "mark")

    def test_what_the_model_never_marks_is_learned_from_the_labelled_rows(self) -> None:
        at = bench()
        bare, led = run([*self.STEPS], at), run([{"method": "stack", "steps": self.STEPS}], at)
        assert right_share(bare) < 0.7, "it leaves the unit of every rating out"
        assert right_share(led) > 0.9
        assert all(trace.confidence is not None and 0 < trace.confidence <= 1 for trace in led)
        ((name, once),) = at.shelf.fixed.items()
        assert name.startswith("stack")
        assert once.calls == len(TASK.labelled)

    def test_labelled_rows_are_answered_as_if_they_had_not_been_seen(self) -> None:
        def blank(*_: Any) -> str:
            return "~"

        odd = Example(Request.from_text("give zip zap zop", "odd"), Answer((Call("RateBook", {"object_name": "zop"}),)))
        task = replace(TASK, labelled=(*TASK.labelled, odd))
        seen, unseen = run(
            [{"method": "stack", "steps": []}],
            bench(blank, task),
            (replace(odd, request=replace(odd.request, id="new")), odd),
        )
        assert seen.confidence is not None
        assert unseen.confidence is not None
        assert seen.confidence > unseen.confidence

    def test_the_models_function_is_weighed_against_the_classifier(self) -> None:
        def wrong(prompt: Prompt, *_: Any) -> str:
            return "GetWeather city Oban"

        led = run([{"method": "stack", "steps": ["fill"], "rows": 30}], bench(wrong))
        assert [t.calls[0].tool for t in led if t.calls] == [r.answer.calls[0].tool for r in TASK.valid if r.answer]
        right = run([{"method": "stack", "steps": ["fill"], "rows": 30}], bench())
        assert all(trace.calls for trace in right)

    def test_what_it_has_not_learned_stays(self) -> None:
        two = (Call("PlayMusic", {"artist": "Ina"}), Call("PlayMusic", {"artist": "Wilco"}))
        none = Trace(NONE, calls=(), text="Love is ...")
        own = Trace(replace(TASK.valid[0].request, tools=TASK.tools[:1]), calls=(Call("PlayMusic", {"artist": "x"}),))
        several = Trace(Request.from_text("play Ina and play Wilco", "two"), calls=two)
        given = [none, own, several]
        assert build("steps", {"method": "stack", "steps": []}).run(given, bench()) == given

    def test_a_reader_stands_beside_the_words(self, tmp_path: Path) -> None:
        """A random model knows nothing, so nothing is better; what the words say is not drowned either."""
        folder = write_student(tmp_path / "reader")
        block = {"method": "stack", "steps": self.STEPS, "reader": str(folder)}
        led, again, without = run([block], bench()), run([block], bench()), run([{**block, "reader": ""}], bench())
        assert right_share(led) > 0.8
        assert [trace.confidence for trace in led] == [trace.confidence for trace in again]
        assert [trace.confidence for trace in led] != [trace.confidence for trace in without]

    def test_an_estimate_learns_nothing(self) -> None:
        at = bench(spends=False)
        run([{"method": "stack", "steps": self.STEPS}], at)
        assert len(asked(at)) == len(TASK.valid)
        assert not at.shelf.fixed


class TestRelevance:
    CALLS = (Call("PlayMusic", {"artist": "Ina"}), Call("GetWeather", {"city": "Oban"}))

    def test_calls_none_of_which_serves_the_request_are_dropped(self) -> None:
        def judge(prompt: Prompt, *_: Any) -> str:
            request, _, function = str(prompt.messages[-1]["content"]).partition("\nFunction: ")
            signs = {"PlayMusic": "play", "GetWeather": "weather", "RateBook": "give"}
            return "yes" if signs[function.partition("(")[0]] in request else "no"

        at = bench(judge)
        given = [
            Trace(TASK.valid[0].request, calls=self.CALLS),
            Trace(NONE, calls=self.CALLS[:1], results=(Result(self.CALLS[0], 1),), planned=True),
            Trace(NONE, calls=()),
        ]
        found = build("steps", "relevance").run(given, at)
        assert [trace.calls for trace in found] == [self.CALLS, (), ()], "one that serves lets all stand"
        assert (found[1].results, found[1].planned) == ((), False)
        assert [trace.asked for trace in found] == [2, 1, 0]
        ((_, once),) = at.shelf.fixed.items()
        assert once.calls == len(asked(at)) - 3
        assert asked(at)[-1].messages[:-1] == asked(at)[0].messages[:-1], "what is shown is shared"
        assert all(prompt.shared == len(prompt.messages) - 1 for prompt in asked(at))

    def test_without_labelled_rows_all_calls_stand(self) -> None:
        at = bench(lambda *_: "no", replace(TASK, labelled=()))
        given = [Trace(NONE, calls=self.CALLS)]
        assert build("steps", "relevance").run(given, at) == given
        assert not asked(at)

    def test_the_chance_of_yes_is_that_of_the_token(self) -> None:
        from supertiny.prototype.steps.relevance import _chance

        assert _chance(Completion("yes", logprob=math.log(0.8))) == pytest.approx(0.8)
        assert _chance(Completion(" No", logprob=math.log(0.8))) == pytest.approx(0.2)
        assert _chance(Completion("yes")) == 1.0
