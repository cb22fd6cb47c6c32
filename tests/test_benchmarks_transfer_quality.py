"""The transfer benchmark with a student of 300 kB: halves that do not choose for themselves, cells, arms, figures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import _pupils, _teachers, transfer_quality
from benchmarks._arms import ARMS, BY_NAME, Place, cell_of, measured, needed, wanted
from benchmarks._families import adapters, divergences
from benchmarks._halves import Exam, Result, crossed, examined, halves
from benchmarks._pupils import Cell, Committee, done, exams_of, place_of, spread
from benchmarks._teachers import Taught, steps_of, task_of, taught, worth_of
from benchmarks.transfer_quality import best_hits, compared, line, parser
from benchmarks.transfer_quality import place_of as place_given
from supertiny.core.errors import UserError
from supertiny.core.files import read_json, write_rows
from supertiny.core.methods import build
from supertiny.core.progress import Progress
from supertiny.core.records import Answer, Call, Example
from supertiny.core.student import Student
from supertiny.core.task import Task
from supertiny.training.lessons import encode_lessons
from supertiny.training.practice import Practice
from supertiny.training.pupil import Pupil
from tests.small_task import examples, small_task
from tests.tiny_student import write_student

QUIET = Progress(quiet=True)
NONE = ((0, 0, 0), (0, 0, 0))


def teacher() -> Taught:
    """Right about the first rows of the pool, refused by the verifier on the next, unreadable on the last."""
    rows = list(examples("unlabelled"))
    task = home()
    for place, row in enumerate(rows):
        assert row.answer is not None
        answer = row.answer if place < 8 else Answer((Call("Fly", {}),))
        answer = replace(answer, readable=place < len(rows) - 2)
        rows[place] = Example(row.request, answer, task.verify(row.request, answer.calls), {"source": "pool"})
    return Taught(tuple(rows), task.valid)


def home() -> Task:
    gold = {row.request.id: row.answer.calls for row in examples("unlabelled") if row.answer}
    asked = tuple(Example(row.request) for row in examples("unlabelled"))
    return replace(
        small_task(labelled=examples("labelled", 6), valid=examples("valid", 8)), unlabelled=asked, pool_gold=gold
    )


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_student(tmp_path_factory.mktemp("student"))


@pytest.fixture(autouse=True)
def short_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """An untaught student never ends by itself."""
    monkeypatch.setattr(_pupils, "MAX_TOKENS", 6)


@pytest.fixture
def place(tmp_path: Path, student: Path) -> Place:
    return Place(home(), teacher(), [1], tmp_path, str(student), quick=True, progress=QUIET)


def exam(hits: str) -> Exam:
    return Exam(tuple(mark == "1" for mark in hits), NONE)


def test_exams_are_spread_and_halves_are_halves_whatever_the_order() -> None:
    assert spread(100, 4) == {25, 50, 75, 100}
    assert spread(1, 4) == {1}
    rows = examples("valid")
    sides = halves(rows)
    assert abs(sum(sides) * 2 - len(rows)) <= 1
    assert halves(rows[::-1]) == sides[::-1]


def test_no_row_chooses_the_student_that_answers_it() -> None:
    sides = (0, 0, 1, 1)
    exams = {"1": exam("1100"), "2": exam("0011")}  # each is best on the half on which it must not be reported for that
    result = crossed(exams, sides)
    assert result.hits == (False, False, False, False)
    assert result.choosing == (1.0, 1.0)
    assert crossed({"1": exam("1110"), "2": exam("1111")}, sides).exact == 1.0
    assert crossed({"1": exam("1010"), "2": exam("0101")}, sides).hits == (False, True, False, True), (
        "of equals the later"
    )


def test_slot_f1_is_that_of_the_students_that_are_reported() -> None:
    first = Exam((True, True), ((3, 3, 3), (0, 3, 3)))
    second = Exam((False, True), ((0, 3, 3), (3, 3, 3)))
    # Row 0 is answered by the second (later of equals on row 1), row 1 by the first (best on row 0).
    assert crossed({"1": first, "2": second}, (0, 1)).slot_f1 == 0.0
    assert crossed({"1": first}, (0, 1)).slot_f1 == pytest.approx(0.5)


def test_answers_that_nobody_can_read_are_not_right() -> None:
    task = home()
    rows = [replace(row, answer=Answer()) for row in task.valid[:2]]
    found = examined([Answer(), Answer(readable=False)], rows, task)
    assert found.hits == (True, False)
    assert Exam.from_json(found.to_json()) == found


def test_arms_bring_what_they_are_built_on() -> None:
    assert [arm.name for arm in ARMS] == [
        "tfidf", "labelled_only", "teacher", "unverified", "verified", "substitute", "reject", "distil", "reinforce",
        "hybrid",
    ]  # fmt: skip
    assert [arm.name for arm in wanted(["distil", "tfidf"])] == ["tfidf", "verified", "distil"]
    assert needed(wanted(["labelled_only"])) == []
    assert needed(wanted([])) == ["pool", "valid"]
    for arm in ARMS:
        if arm.learner:
            build("learners", arm.learner)


def test_what_the_arms_learn_from(place: Place) -> None:
    labelled = {row.request.id for row in place.task.labelled}
    made = place.taught
    assert [row.request.id for row in place.rows("none")] == [row.request.id for row in place.task.labelled]
    assert len(place.rows("unverified")) == len(labelled) + len(made.pool) - 2
    assert len(place.rows("verified")) == len(labelled) + 8
    assert len(made.unanswered) == len(made.pool) - 8
    assert all(row.answer is None for row in made.unanswered), "what the teacher got wrong is not handed on"
    assert worth_of(place.task, made.verified) == {"rows": 8, "exact": 1.0}
    assert worth_of(place.task, made.unverified)["exact"] == pytest.approx(8 / (len(made.pool) - 2))


def test_keys_tell_apart_what_makes_a_difference(place: Place) -> None:
    cell = cell_of(place, BY_NAME["verified"], 1)
    others = [
        replace(cell, seed=2),
        replace(cell, rows=cell.rows[1:]),
        replace(cell, learner={**cell.learner, "passes": 2}),
        replace(cell, adapter="lora"),
        replace(cell, start=Path("elsewhere")),
        replace(cell, teachers=(Path("elsewhere"),)),
        replace(cell, task=replace(cell.task, valid=cell.task.valid[1:])),
        cell_of(place, BY_NAME["unverified"], 1),
    ]
    assert len({one.key for one in [cell, *others]}) == len(others) + 1
    assert replace(cell, keeps=False).key == cell.key


def test_all_arms_with_a_tiny_student(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    more = [replace(row, answer=Answer((Call("TurnOn", {"area": "Hall"}),))) for row in place.taught.unanswered[:2]]
    monkeypatch.setattr(Committee, "agreed", lambda *given: more)
    results, without = measured(place, ARMS)
    assert without == {}
    assert list(results) == [arm.name for arm in ARMS]
    assert results["teacher"][0].exact == 1.0
    for arm in ARMS:
        for result in results[arm.name].values():
            assert len(result.hits) == len(place.task.valid)
    told = read_json(place_of(cell_of(place, BY_NAME["verified"], 1), place.folder) / "result.json")
    assert {"exact", "low", "high", "n", "choosing_exact", "seconds", "peak_gb", "tokens", "slot_f1"} <= told.keys()
    assert told["more"]["lessons"] == 14
    assert told["peak_gb"] > 0
    assert set(told["exams"]) == {str(told["more"]["steps"])}
    assert results["distil"][1].more["lessons"] == results["hybrid"][1].more["lessons"] == 16
    assert results["reinforce"][1].more["lessons"] == 14
    started = read_json(place_of(cell_of(place, BY_NAME["reject"], 1), place.folder) / "result.json")
    assert started["exams"]["0"] == told["exams"][str(told["more"]["steps"])]

    monkeypatch.setattr(_pupils, "_teach", lambda *given: pytest.fail("taught again"))
    assert measured(place, ARMS) == (results, without)


def test_an_arm_without_signal_is_told_and_those_built_on_it_too(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(cell: Cell, *given: Any) -> None:
        raise UserError(f"no signal for {cell.learner['method']}")

    monkeypatch.setattr(_pupils, "_teach", refuse)
    results, without = measured(place, wanted(["reject", "tfidf"]))
    assert list(results) == ["tfidf"]
    assert without == {"verified": "no signal for imitate", "reject": "it is built on verified"}


def test_a_killed_training_goes_on_and_ends_the_same(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = replace(
        cell_of(place, BY_NAME["verified"], 1), learner={"method": "imitate", "passes": 4, "rows": 4}, exams=4
    )
    monkeypatch.setattr(_pupils, "CHECKPOINT_STEPS", 2)
    whole = exams_of(cell, tmp_path / "whole", QUIET, "whole")
    seen: list[Any] = []
    exams_held = _pupils._exam

    def killed(*given: Any) -> Exam:
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(given)
        return exams_held(*given)

    monkeypatch.setattr(_pupils, "_exam", killed)
    with pytest.raises(KeyboardInterrupt):
        done(cell, tmp_path / "killed", QUIET, "killed")
    left = place_of(cell, tmp_path / "killed")
    assert (left / "checkpoint.safetensors").is_file()
    assert not (left / "result.json").exists()
    monkeypatch.setattr(_pupils, "_exam", exams_held)
    again = exams_of(cell, tmp_path / "killed", QUIET, "again")
    assert again[0] == whole[0]
    assert again[1]["steps"] == whole[1]["steps"] == 16
    assert again[1]["tokens"] == whole[1]["tokens"]
    assert again[1]["loss_on_valid"] == pytest.approx(whole[1]["loss_on_valid"], abs=1e-6)
    assert not list(left.glob("checkpoint*"))
    assert (left / "student" / "config.json").is_file()


def test_a_student_that_others_need_is_taught_again_where_it_was_not_kept(place: Place) -> None:
    cell = replace(cell_of(place, BY_NAME["verified"], 1), keeps=False)
    first = done(cell, place.folder, QUIET, "first")
    assert not (place_of(cell, place.folder) / "student").exists()
    second = done(replace(cell, keeps=True), place.folder, QUIET, "second")
    assert second.hits == first.hits
    assert Student.open(place_of(cell, place.folder) / "student").format == "compact"  # other benchmarks begin with it


def test_a_committee_is_the_mean_of_its_members(tmp_path: Path, student: Path) -> None:
    folders = [student, write_student(tmp_path / "other", seed=5)]
    committee, members = Committee.of(folders), [Pupil.open(folder) for folder in folders]
    task = home()
    lesson = encode_lessons(task.labelled, build("formats", "compact"), task.tools, committee.tokenizer)[0]
    ids = torch.tensor([lesson.ids], device=committee.device)
    mask, wanted = torch.ones_like(ids), torch.zeros_like(ids, dtype=torch.bool)
    wanted[0, -4:] = True
    said = committee.logits_at(ids, mask, wanted).softmax(-1)
    each = [member.logits_at(ids, mask, wanted).softmax(-1) for member in members]
    assert torch.allclose(said, (each[0] + each[1]) / 2, atol=1e-5)
    assert not torch.allclose(each[0], each[1], atol=1e-3)


def test_a_committee_answers_only_what_it_agrees_on(place: Place) -> None:
    """Same calls in whatever spelling; sure; not refused by the verifier."""
    practice = Practice(build("formats", "compact"), place.task.tools, place.task.verify)
    request = place.task.valid[0].request

    def said(text: str, logprob: float = -0.1) -> Any:
        return practice.judged(request, [1], [logprob], text, ended=True)

    hall = said("TurnOn area Hall")
    assert _pupils._one_answer([hall, said('TurnOn area "Hall"')], practice) == hall
    assert _pupils._one_answer([hall, said("TurnOn area Attic")], practice) is None
    assert _pupils._one_answer([said("TurnOn area Hall", -1.0)] * 2, practice) is None
    assert _pupils._one_answer([said("TurnOn area Moon")] * 2, practice) is None
    assert _pupils._one_answer([said('TurnOn "')] * 2, practice) is None


def test_divergences_and_adapters_have_a_table_each(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, family in (("divergence", divergences), ("adapter", adapters)):
        few = ["forward_kl", "reverse_kl"] if name == "divergence" else ["full", "lora", "prompt"]
        monkeypatch.setattr("benchmarks._families.cards", lambda _, few=few: dict.fromkeys(few))
        figures, table, without = family(place)
        assert without == {}
        assert [figure for figure, _, _ in figures] == [f"small_{name}_{one}_exact" for one in few]
        assert [row[name] for row in table] == few
        assert all(row["peak_gb"] > 0 and row["seconds"] > 0 and row["loss_on_valid"] > 0 for row in table)
        if name == "adapter":
            assert table[0]["trainable"] == 1.0
            assert 0 < table[1]["trainable"] < 0.5
            few = replace(place, methods=["lora"])
            monkeypatch.setattr("benchmarks._pupils._teach", lambda *given: pytest.fail("done again"))
            assert [row[name] for row in family(few)[1]] == ["lora"]
            assert divergences(replace(place, methods=["of another table"])) == ([], [], {})


def result(hits: str, choosing: tuple[float, float] = (0.5, 0.5)) -> Result:
    return Result(tuple(mark == "1" for mark in hits), choosing, 0.5, {"seconds": 2.0})


def test_lines_pair_rows_and_seeds_do_not_narrow_intervals(place: Place) -> None:
    results = {
        "verified": {1: result("10100000"), 2: result("10000000")},
        "distil": {1: result("11100000"), 2: result("11000000")},
    }
    told = line(place, "distil", results)
    assert told["exact"] == pytest.approx(5 / 16)
    assert told["minus_verified"] == pytest.approx(2 / 16)
    assert told["n"] == 8
    assert "minus_verified" not in line(place, "verified", results)
    one = line(place, "distil", {"distil": {1: result("11100000")}})
    many = line(place, "distil", {"distil": {seed: result("11100000") for seed in range(9)}})
    assert (one["low"], one["high"]) == (many["low"], many["high"])


def test_the_best_arm_of_a_half_is_chosen_on_the_other(place: Place) -> None:
    sides = halves(place.task.valid)
    results = {
        "verified": {1: result("00000000", (0.9, 0.1))},
        "distil": {1: result("11111111", (0.1, 0.9))},
    }
    assert best_hits(place, results) == [float(side) for side in sides]


def test_figures_have_the_names_that_are_read(place: Place) -> None:
    figures, table, _ = compared(place, wanted(["tfidf", "teacher", "verified"]))
    names = [name for name, _, _ in figures]
    for arm in ("tfidf", "teacher", "verified"):
        assert [n for n in names if n.startswith(f"small_{arm}_exact")] == [
            f"small_{arm}_exact{end}" for end in ("", "_low", "_high", "_n")
        ]
    values = {name: value for name, _, value in figures}
    assert values["small_best_minus_verified"] == 0.0
    assert values["small_best_minus_teacher"] <= 0.0
    assert [row["arm"] for row in table] == ["tfidf", "teacher", "verified"]


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "recorded"
    made = teacher()
    write_rows(folder / "small" / "pool.jsonl", [row.to_json() for row in made.pool])
    write_rows(folder / "small" / "valid.jsonl", [row.to_json() for row in made.valid])
    monkeypatch.setattr(transfer_quality, "task_of", lambda name, data, rows: home())
    return folder


def test_recorded_answers_are_read_in_the_tasks_order(recorded: Path, tmp_path: Path) -> None:
    task = home()
    turned = replace(task, unlabelled=task.unlabelled[:5][::-1])
    found = taught(turned, ["pool"], "pipeline", tmp_path, recorded, QUIET)
    assert [row.request.id for row in found.pool] == [row.request.id for row in turned.unlabelled]
    assert found.valid == ()
    with pytest.raises(UserError, match="not there or lacks rows"):
        taught(replace(task, valid=examples("test")), ["valid"], "pipeline", tmp_path, recorded, QUIET)
    other = replace(task.valid[0], request=replace(task.valid[0].request, messages=({"role": "user", "content": "x"},)))
    with pytest.raises(UserError, match="other texts"):
        taught(replace(task, valid=(other,)), ["valid"], "pipeline", tmp_path, recorded, QUIET)


def test_the_whole_command_writes_what_acceptance_reads(
    recorded: Path, student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "figures.json"
    given = ["--task", "snips", "--quick", "--recorded", recorded, "--student", student, "--folder", tmp_path / "cells"]
    arms = ["--arms", "labelled_only", "verified", "--seeds", "1,2", "--json", file]
    monkeypatch.setattr("sys.argv", ["transfer_quality", *map(str, [*given, *arms])])
    transfer_quality.main()
    told = read_json(file)
    assert told["figures"]["small_verified_exact_n"] == len(home().valid)
    assert (told["seeds"], told["without_figure"]) == ([1], {})
    assert {row["arm"] for row in told["tables"]["arms"]} == {"labelled_only", "verified"}


def test_floors_that_need_no_teacher_ask_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer_quality, "task_of", lambda name, data, rows: home())
    monkeypatch.setattr(_teachers, "_room", lambda *given: pytest.fail("a teacher was asked for"))
    options = parser().parse_args(["--folder", str(tmp_path), "--arms", "labelled_only", "--part", "arms"])
    assert place_given("snips", options, ["arms"], wanted(options.arms)).taught == Taught()


def test_a_teacher_is_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def answered(room: Any, task: Task, name: str, requests: Any, steps: Any) -> Any:
        asked.append(name)
        return [Answer((Call("TurnOn", {"area": "Hall"}),)) for _ in requests], 0.0, 0.0

    monkeypatch.setattr(_teachers, "answered", answered)
    task = replace(home(), name="snips")
    found = taught(task, ["pool", "valid"], "small", tmp_path, None, QUIET)
    assert taught(task, ["pool", "valid"], "small", tmp_path, None, QUIET) == found
    assert asked == ["teacher on pool", "teacher on valid"]
    assert {row.verdict.outcome for row in found.pool if row.verdict} <= {"pass", "abstain"}
    with pytest.raises(UserError, match="no teacher without the large model"):
        steps_of("smart_home", "small", None)  # type: ignore[arg-type]


def test_fewer_rows_are_the_first_ones_of_the_whole_task() -> None:
    whole, part = task_of("smart_home", None), task_of("smart_home", None, 8)
    assert (len(whole.labelled), len(whole.unlabelled), len(whole.valid)) == (200, 800, 200)
    assert part.labelled == whole.labelled[:8]
    assert part.unlabelled == whole.unlabelled[:8]
    assert part.valid == whole.valid[:8]


def test_the_command_line() -> None:
    chosen = parser().parse_args(["--task", "snips", "--seeds", "4,5", "--part", "arms", "adapters"])
    assert (chosen.task, chosen.seeds, chosen.part) == (["snips"], [4, 5], ["arms", "adapters"])
    assert chosen.teacher == "pipeline"
