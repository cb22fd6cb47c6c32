"""Curators that choose: which rows stay, which go, and why."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from supertiny.core.errors import UserError
from supertiny.core.leaks import NearTexts, grams, jaccard, normalised
from supertiny.core.methods import build
from supertiny.core.records import Answer, Call, Example, Prompt, Request
from supertiny.prototype.curators._reasons import changed_by, left_out, reasons_heard
from tests.fake_engine import FakeEngine
from tests.small_bench import ScoringEngine, curated, small_bench
from tests.small_task import AREAS, example, examples, small_task


def of_pool(count: int, tool: str = "TurnOn", begin: int = 0, **provenance: Any) -> list[Example]:
    made = []
    for number in range(begin, begin + count):
        call = Call(tool, {"area": AREAS[number % len(AREAS)]})
        made.append(example(f"{tool} request {number}", [call], f"{tool}-{number}", source="pool", **provenance))
    return made


def ids(rows: Sequence[Example]) -> list[str]:
    return [row.request.id for row in rows]


def test_leak_guard_finds_same_and_near_words_in_both_splits_and_says_where(tmp_path: Path) -> None:
    long = "please set the brightness of the big lamp in the living room of my house to seventy percent right now"
    task = small_task(valid=[example("Kill the lamp!", [], "v1")], test=[example(long, [], "t1")])
    rows = [
        example("kill  the LAMP", [], "same", source="pool"),
        example(long.replace("please", "pleas"), [], "near", source="pool"),
        example(long.replace("seventy", "thirty").replace("big", "small"), [], "other", source="pool"),
        example("Kill the lamp", [], "gold", source="labelled"),
    ]
    with reasons_heard() as reasons:
        assert ids(curated("leak_guard", rows, task, 0, tmp_path)) == ["other"]
    assert reasons["same"] == "similarity 1.00 to row valid v1"
    assert reasons["near"].startswith("similarity 0.9")
    assert reasons["near"].endswith("to row test t1")
    assert ids(curated({"method": "leak_guard", "similarity": 1}, rows, task, 0, tmp_path)) == ["near", "other"]


def test_leak_guard_compares_whole_conversations(tmp_path: Path) -> None:
    def after(first: str, id: str) -> Example:
        said = [("user", first), ("assistant", "which?"), ("user", "the second one")]
        messages = tuple({"role": role, "content": content} for role, content in said)
        return Example(Request(id, messages), Answer(), provenance={"source": "pool"})

    task = small_task(valid=[], test=[after("open a window in the attic", "t")])
    rows = [after("switch a heater off", "other"), after("Open a window in the attic.", "same")]
    assert ids(curated("leak_guard", rows, task, 0, tmp_path)) == ["other"]


def test_near_texts_are_decided_by_the_exact_similarity() -> None:
    texts = [f"set lamp {n} of the long corridor on the second floor to {n} percent" for n in range(10, 60)]
    index = NearTexts(0.95, texts)
    assert all(index.near(text)[0] == (1.0, text) for text in texts)
    assert index.near("something else") == []
    ((similarity, found),) = NearTexts(0.5, texts[:1]).near(texts[7])
    assert (0.5 < similarity < 0.95, found) == (True, texts[0])
    assert NearTexts(0.95, texts[:1]).near(texts[7]) == []


def test_deduplicate_finds_the_pairs_that_are_just_near_enough(tmp_path: Path) -> None:
    """Similarities of 0.95 to 0.97, which an index whose own threshold is 0.95 proposes about half of."""
    words = [f"{random.Random(number).getrandbits(64):016x}" for number in range(40)]
    texts = [" ".join(words[begin : begin + 14]) for begin in range(26)]
    pairs = [(text, text[:120] + "~" + text[121:]) for text in texts]
    placed = [(f"{n}-{side}", text) for n, pair in enumerate(pairs) for side, text in enumerate(pair)]
    rows = [example(text, [], place, source="pool") for place, text in placed]
    near = [jaccard(grams(normalised(left)), grams(normalised(right))) for left, right in pairs]
    assert all(0.95 <= similarity < 0.97 for similarity in near)
    assert ids(curated("deduplicate", rows, small_task(), 0, tmp_path)) == [f"{n}-0" for n in range(len(pairs))]


def test_balance_caps_by_the_median_and_keeps_gold(tmp_path: Path) -> None:
    rows = [*of_pool(40), *of_pool(4, "TurnOff"), *of_pool(2, "Dim")]
    gold = [replace(row, provenance={"source": "labelled"}) for row in of_pool(3, begin=40)]
    kept = curated("balance", [*rows, *gold], small_task(), 1, tmp_path)
    count = Counter(row.answer.calls[0].tool for row in kept if row.answer)
    assert count == {"TurnOn": 12, "TurnOff": 4, "Dim": 2}
    assert all(row in kept for row in gold)
    assert curated("balance", [*rows, *gold], small_task(), 2, tmp_path) != kept


def test_balance_shares_out_a_number_of_rows(tmp_path: Path) -> None:
    rows = [*of_pool(40), *of_pool(30, "TurnOff"), *of_pool(3, "Dim")]
    kept = curated({"method": "balance", "rows": 25}, rows, small_task(), 1, tmp_path)
    assert Counter(row.request.id.split("-")[0] for row in kept) == {"TurnOn": 11, "TurnOff": 11, "Dim": 3}
    assert len(curated({"method": "balance", "rows": 500}, rows, small_task(), 1, tmp_path)) == 73


def test_balance_never_drops_gold(tmp_path: Path) -> None:
    gold = [replace(row, provenance={"source": "labelled"}) for row in of_pool(10)]
    rows = [*gold, *of_pool(10, begin=10)]
    assert curated({"method": "balance", "rows": 4}, rows, small_task(), 1, tmp_path) == gold


@pytest.mark.parametrize("difficulty", ["confidence", "distance"])
def test_balance_takes_rows_of_every_difficulty(difficulty: str, tmp_path: Path) -> None:
    """Thirty rows, three levels: nine chosen are three of each, whatever their order in the file."""
    texts = ["turn on the kitchen light", "turn on some kitchen thing", "完全不同"]
    rows = []
    for number, row in enumerate(of_pool(30)):
        level = number % 3
        request = replace(row.request, messages=({"role": "user", "content": f"{texts[level]} {'x' * number}"},))
        answer = replace(row.answer or Answer(), confidence=1 - level / 3)
        rows.append(Example(request, answer, None, {"source": "pool"}))
    block = {"method": "balance", "rows": 9, "difficulty": difficulty}
    kept = curated(block, rows, small_task(), 5, tmp_path)
    assert Counter(int(row.request.id.split("-")[1]) % 3 for row in kept) == {0: 3, 1: 3, 2: 3}


def by_number(prompt: Prompt, text: str) -> float:
    """The loss is the number that the request ends with."""
    return float(prompt.text.split("\n>")[0].rsplit(" ", 1)[1])


def test_perplexity_band_drops_both_ends_within_each_function(tmp_path: Path) -> None:
    task, student = small_task(), ScoringEngine(by_number)
    rows = [*of_pool(20), *of_pool(20, "TurnOff", begin=100), *of_pool(2, "Dim", begin=900)]
    gold = replace(example("gold 5000", [Call("TurnOn", {"area": "Hall"})], "gold"), provenance={"source": "labelled"})
    bench = small_bench(task, tmp_path, student=student)
    with reasons_heard() as reasons:
        kept = ids(curated("perplexity_band", [*rows, gold], task, 0, tmp_path, bench))
    gone = {"TurnOn-0", "TurnOn-19", "TurnOff-100", "TurnOff-119"}
    assert kept == [id for id in [*ids(rows), "gold"] if id not in gone], "a group of two stays whole"
    assert set(reasons) == gone
    assert reasons["TurnOn-19"] == "loss 19.000 is outside 1.000 to 18.000"
    assert len(student.scored) == 1, "all rows are one batch of the engine"
    assert student.scored[0][0][0].text == "TurnOn request 0\n>"
    assert student.scored[0][0][1] == "TurnOn area Kitchen"
    whole = {"method": "perplexity_band", "per_function": False, "low": 0.0, "high": 0.5}
    easy = ids(curated(whole, rows, task, 0, tmp_path, bench))
    assert easy == ids(rows)[:22]
    with pytest.raises(UserError, match="low is"):
        curated({"method": "perplexity_band", "low": 0.9, "high": 0.1}, rows, task, 0, tmp_path, bench)


def test_perplexity_of_requests_finds_garbled_ones(tmp_path: Path) -> None:
    task = small_task()
    student = ScoringEngine(lambda prompt, text: 9.0 if "zqx" in text else 1.0)
    rows = of_pool(10)
    rows[4] = example("zqx vwk qqq", [Call("TurnOn", {"area": "Hall"})], "garbled", source="pool")
    block = {"method": "perplexity_band", "of": "request", "low": 0.0, "high": 0.8}
    kept = curated(block, rows, task, 0, tmp_path, small_bench(task, tmp_path, student=student))
    assert ids(kept) == [id for id in ids(rows) if id != "garbled"]


def test_information_sampling_draws_what_is_unlike_the_rest(tmp_path: Path) -> None:
    """Two clusters of losses and a few rows that are far from both: of a small draw these are more than by chance."""
    task = small_task()
    generator = random.Random(3)
    losses = {f"TurnOn request {n}": generator.gauss(1.0 if n % 2 else 4.0, 0.2) for n in range(90)}
    losses |= {f"TurnOn request {n}": generator.uniform(6.0, 20.0) for n in range(90, 100)}
    student = ScoringEngine(lambda prompt, text: losses[(prompt.text + text).split("Request: ")[-1].split("\n>")[0]])
    rows = of_pool(100)
    gold = replace(of_pool(1, "TurnOff")[0], provenance={"source": "labelled"})
    block = {"method": "information_sampling", "rows": 20, "components": 0}
    odd = []
    for seed in range(5):
        bench = small_bench(task, tmp_path, student=student)
        with reasons_heard() as reasons:
            kept = curated(block, [*rows, gold], task, seed, tmp_path, bench)
        assert len(kept) == 21
        assert kept == [row for row in [*rows, gold] if row in kept]
        assert kept[-1] == gold
        assert set(reasons) == {*ids(rows)} - {*ids(kept)}
        numbers = [int(id.split("-")[1]) for id in ids(kept)[:-1]]
        odd.append(sum(number >= 90 for number in numbers))
        assert any(number < 90 for number in numbers)
    assert sum(odd) / 5 >= 5, "by chance it would be 2 of 20"


def test_information_sampling_leaves_few_rows_alone(tmp_path: Path) -> None:
    student = ScoringEngine()
    bench = small_bench(small_task(), tmp_path, student=student)
    assert curated("information_sampling", of_pool(7), small_task(), 0, tmp_path, bench) == of_pool(7)
    block = {"method": "information_sampling", "share": 1.0}
    assert curated(block, of_pool(30), small_task(), 0, tmp_path, bench) == of_pool(30)
    assert student.scored == []
    same = [replace(row, request=replace(row.request, id=f"s{n}")) for n, row in enumerate(of_pool(1) * 20)]
    assert len(curated("information_sampling", same, small_task(), 0, tmp_path, bench)) == 10, "rows that are all alike"


def two_calls(text: str, id: str, *tools: str, said: str = "", **provenance: Any) -> Example:
    calls = tuple(Call(tool, {"area": area}) for tool, area in (pair.split() for pair in tools))
    request = Request.from_text(text, id)
    return Example(request, Answer(calls, said, by="pipeline"), None, {"source": "pool", **provenance})


MIXED = [
    two_calls("hall off and attic on", "a", "TurnOn Attic", "TurnOff Hall"),
    two_calls("kitchen on, then office off", "b", "TurnOff Office", "TurnOn Kitchen"),
    two_calls("attic on please", "c", "TurnOn Attic"),
]


@pytest.mark.parametrize(
    ("liked", "written"),
    [
        ("as it is asked", ["TurnOff Hall|TurnOn Attic", "TurnOn Kitchen|TurnOff Office", "TurnOn Attic"]),
        ("by name", ["TurnOff Hall|TurnOn Attic", "TurnOff Office|TurnOn Kitchen", "TurnOn Attic"]),
        ("as given", ["TurnOn Attic|TurnOff Hall", "TurnOff Office|TurnOn Kitchen", "TurnOn Attic"]),
    ],
)
def test_the_style_that_the_student_finds_natural_is_taken_for_all(
    liked: str, written: list[str], tmp_path: Path
) -> None:
    lines = {"\n".join(text.replace(" ", " area ").split("|")) + "<|im_end|>" for text in written}
    task, student = small_task(), ScoringEngine(lambda prompt, text: 0.5 if text in lines else 2.0)
    bench = small_bench(task, tmp_path, student=student)
    kept = curated("self_aligned_perplexity", MIXED, task, 0, tmp_path, bench)
    assert [
        "|".join(f"{c.tool} {c.arguments['area']}" for c in row.answer.calls) for row in kept if row.answer
    ] == written
    for old, new in zip(MIXED, kept, strict=True):
        assert (new == old) == (new.answer == old.answer)
        assert new == old or new.provenance["origin"] == old.request.id
    assert kept[2] == MIXED[2], "a single call has one spelling"
    assert len(student.scored) == 1


def test_words_beside_calls_are_left_out_where_that_is_more_natural(tmp_path: Path) -> None:
    rows = [two_calls("attic on please", "a", "TurnOn Attic", said="With pleasure!")]
    for chatty, said in ((3.0, ""), (0.1, "With pleasure!")):
        student = ScoringEngine(lambda prompt, text, chatty=chatty: chatty if "pleasure" in text else 1.0)  # type: ignore[misc]
        bench = small_bench(small_task(), tmp_path, student=student)
        (row,) = curated("self_aligned_perplexity", rows, small_task(), 0, tmp_path, bench)
        assert row.answer is not None
        assert row.answer.text == said


def test_perplexities_are_averaged_not_losses(tmp_path: Path) -> None:
    """Losses of 0.1 and 4 have the lesser mean, losses of 2.5 and 2.5 the lesser mean perplexity."""
    losses = {"TurnOn area Attic\nTurnOff area Hall": 0.1, "TurnOff area Office\nTurnOn area Kitchen": 4.0}
    student = ScoringEngine(lambda prompt, text: losses.get(text.removesuffix("<|im_end|>"), 2.5))
    block = {"method": "self_aligned_perplexity", "styles": ["given", "request_order"]}
    kept = curated(block, MIXED, small_task(), 0, tmp_path, small_bench(small_task(), tmp_path, student=student))
    assert [row.provenance.get("written") for row in kept] == ["request_order", "request_order", None]


def test_exemplars_are_the_students_own_right_answers(tmp_path: Path) -> None:
    """What it writes right stands before the request that is scored; what it writes wrong does not."""
    task = small_task(labelled=examples("labelled")[:10])
    right = {f"{row.request.text}\n>": row.answer.calls[0] for row in task.labelled if row.answer}
    able = list(right)[::2]

    def author(prompt: Prompt, *_: Any) -> str:
        asked = prompt.text.rpartition("<|im_end|>\n")[2]
        call = right[asked]
        if asked not in able:
            return "TurnOn area Nowhere"
        return f"{call.tool} " + "; ".join(f"{name} {value}" for name, value in sorted(call.arguments.items()))

    student = ScoringEngine(author=author)
    block = {"method": "self_aligned_perplexity", "exemplars": 2, "tries": 8}
    curated(block, MIXED, task, 0, tmp_path, small_bench(task, tmp_path, student=student))
    shown = {prompt.text.rpartition("<|im_end|>\n")[0] for prompt, _ in student.scored[0]}
    assert len(shown) == 2, "one at a time, and the same for all styles"
    assert not any("<|im_end|>" in lesson for lesson in shown)
    assert Counter(prompt.text.partition("<|im_end|>")[0] for prompt, _ in student.scored[0]).keys() == shown
    assert all(any(lesson.startswith(asked) for asked in able) for lesson in shown)
    assert len(student.asked) == 8


def test_reasons_are_heard_by_who_listens_alone() -> None:
    row = example("x", [], "row")
    left_out(row, "nobody listens")
    with reasons_heard() as outer:
        left_out(row, "first")
        with reasons_heard() as inner:
            left_out(row, "second")
        assert inner == {"row": "second"}
    assert outer == {"row": "first"}


def test_an_engine_that_cannot_score_is_told(tmp_path: Path) -> None:
    class Mute(FakeEngine):
        def score(self, *_: Any) -> Any:
            raise UserError("this engine cannot score", "take another")

    bench = small_bench(small_task(), tmp_path, student=Mute())
    with pytest.raises(UserError, match="cannot score"):
        curated("perplexity_band", of_pool(3), small_task(), 0, tmp_path, bench)
    with pytest.raises(UserError, match="curators has no method"):
        build("curators", "perplexity_bnd")


def test_a_row_that_is_changed_in_place_keeps_where_it_first_came_from() -> None:
    row = example("x", [], "row/expand-1", origin="row", made_by="expand")
    once = replace(row, provenance=changed_by("refine", row, complaint="no"))
    twice = changed_by("scrub", once)
    assert twice == {"origin": "row", "made_by": "expand", "complaint": "no", "changed_by": ["refine", "scrub"]}
    assert changed_by("scrub", example("x", [], "row"))["origin"] == "row"
