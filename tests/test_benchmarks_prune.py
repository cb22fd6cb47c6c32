"""Benchmarks of pruning and of the half-billion student, on students of 300 kB: equal cuts, cells, figures, stages."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from benchmarks import _staged, half_billion, prune_quality
from benchmarks._shapes import FLOORS, METHODS, Shape, block_of, known_methods
from benchmarks._staged import Bench, gold_rows, mean_by_row, opened, prepared, settings_of, share_figures
from benchmarks.half_billion import Rung, Seen, demanded, figures_of, recipe_of
from supertiny.core.errors import UserError
from supertiny.core.files import read_json, read_rows, write_json
from supertiny.core.ledger import Ledger
from supertiny.core.methods import build
from supertiny.core.progress import Progress
from supertiny.core.recipe import read_recipe
from supertiny.core.records import Call
from supertiny.core.run import Run
from supertiny.core.student import Student
from tests.compress.test_vocabulary import whole_tokenizer
from tests.fake_engine import FakeEngine
from tests.small_task import examples, small_task, write_task
from tests.tiny_models import calibration, distinct_weights, tiny
from tests.tiny_student import write_student

QUIET = Progress(quiet=True)


def write_recipe(folder: Path, **sections: Any) -> Path:
    task = write_task(folder / "task", {"valid": 6})
    made = {"name": "small", "task": str(task), "prototype": {"curators": ["verified"]}, **sections}
    (folder / "recipe.yaml").write_text(json.dumps(made), encoding="utf-8")
    return folder / "recipe.yaml"


@pytest.mark.parametrize("share", [0.2, 0.3])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_takes_the_same_share_of_the_blocks_away(method: str, share: float, tmp_path: Path) -> None:
    model = tiny(num_hidden_layers=10, intermediate_size=640)
    model.config.save_pretrained(tmp_path)
    shape, before = Shape.of(tmp_path), distinct_weights(model)
    assert shape.weights == sum(weight.numel() for weight in model.model.layers.parameters())
    block = block_of(method, share, shape, seed=1, steps=2)
    cut = build("reshapers", block).reshape(model, calibration())
    # Ten blocks, and channels in steps of 32: half a step is as near as it gets.
    assert (before - distinct_weights(cut)) / shape.weights == pytest.approx(share, abs=0.025)
    assert (method in FLOORS) == (block["method"] == "narrow" and method != "narrow")


def test_cuts_that_cannot_be_had_are_told(tmp_path: Path) -> None:
    shape = Shape.of(write_student(tmp_path))
    assert block_of("drop_blocks", 0.01, shape, 1) == {"method": "drop_blocks", "blocks": 1}
    with pytest.raises(UserError, match=r"channels alone cannot take 60% of a block away \(at most 50%"):
        block_of("narrow", 0.6, shape, 1)
    with pytest.raises(UserError, match="elastic"):
        known_methods(["elastik"])
    write_json(tmp_path / "config.json", {"hidden_size": 64})
    with pytest.raises(UserError, match="intermediate_size"):
        Shape.of(tmp_path)


def test_gold_rows_are_labelled_and_pool_and_never_valid() -> None:
    pool = {row.request.id: row.answer.calls for row in examples("unlabelled", 5) if row.answer}
    unanswered = [replace(row, answer=None) for row in examples("unlabelled")]
    task = replace(small_task(unlabelled=unanswered), pool_gold=pool)
    rows = gold_rows(task, ["verified", {"method": "expand"}], seed=1)  # expand asks a teacher: it is passed over
    assert [row.request.id for row in rows] == [row.request.id for row in (*task.labelled, *task.unlabelled[:5])]
    assert all(row.answer is not None for row in rows)
    wrong = replace(task, pool_gold={**pool, task.unlabelled[0].request.id: (Call("Sing", {}),)})
    assert len(gold_rows(wrong, ["verified"], seed=1)) == len(rows) - 1


def test_rows_are_prepared_once_and_those_of_a_finished_run_take_their_place(tmp_path: Path) -> None:
    recipe = read_recipe(write_recipe(tmp_path), [f"folder={tmp_path / 'run'}"])
    with opened(recipe, QUIET) as run:
        first = prepared(run, ["verified"], 0)
        path = run.folder / "prototype" / "train.jsonl"
        written = path.stat().st_mtime_ns
        assert prepared(run, ["verified"], 0) == first
        assert path.stat().st_mtime_ns == written
        assert prepared(run, ["verified"], 4) != first
        assert len(read_rows(path)) == 4
        (tmp_path / "other" / "prototype").mkdir(parents=True)
        row = examples("labelled", 1)[0].to_json()
        (tmp_path / "other" / "prototype" / "train.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
        prepared(run, (), 0, tmp_path / "other")
        assert [known["id"] for known in read_rows(path)] == [row["id"]]
        with pytest.raises(UserError, match="no prototype/train.jsonl"):
            prepared(run, (), 0, tmp_path / "nowhere")


def test_models_are_asked_once_and_take_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    class Method:
        def open(self, model: Path) -> FakeEngine:
            def say(prompt: Any, sampling: Any, grammar: Any) -> str:
                asked.append(model.name)
                return "nothing that can be read"

            return FakeEngine(say)

    monkeypatch.setattr(_staged, "build", lambda family, block, *more: Method())
    for name in ("one", "two"):
        (tmp_path / name).write_text(name, encoding="utf-8")
    run = Run(tmp_path, None, small_task(), Ledger(tmp_path / "ledger.sqlite"), QUIET)  # type: ignore[arg-type]
    bench = Bench(run, build("formats", "compact"), "fake", run.task.valid[:3], tmp_path / "cells")
    assert bench.hits(tmp_path / "one") == bench.hits(tmp_path / "one") == [False] * 3
    assert asked == ["one"] * 3
    models = {name: tmp_path / name for name in ("one", "two")}
    seconds = bench.seconds(models, 2)
    assert bench.seconds(models, 2) == seconds
    assert asked[3:] == ["one", "two"] * (2 + _staged.WARM_UP)
    assert {name: len(taken) for name, taken in seconds.items()} == {"one": 2, "two": 2}
    (tmp_path / "one").write_text("another model", encoding="utf-8")
    bench.hits(tmp_path / "one")
    assert len(asked) == 3 + 8 + 3


def test_intervals_are_over_rows() -> None:
    assert mean_by_row([[True, False], [True, True]]) == [1.0, 0.5]
    found = {name: value for name, _, value in share_figures("exact", "", [1.0] * 9 + [0.0])}
    assert found["exact"] == 0.9
    assert 0.5 < found["exact_low"] < 0.9 < found["exact_high"] < 1
    several = {name: value for name, _, value in share_figures("exact", "", [1.0, 0.5, 0.5, 1.0])}
    assert several["exact_low"] < several["exact"] == 0.75 < several["exact_high"]
    assert several["exact_n"] == 4


def seen(lost: int, **more: Any) -> Seen:
    student = [True] * 200
    seconds = {"student": [0.3], "artifact": [0.1], "unpruned_q8_0": [0.2]}
    seconds |= {"llama_cpp_student": [0.8], "llama_cpp_artifact": [0.05], "llama_cpp_unpruned_q8_0": [0.25]}
    told = {"fell_back": False, "llama_cpp": 0.9, **more}
    return Seen(student, [False] * lost + student[lost:], seconds, 494_032_768, 370_000_000, 55_000_000, told)


def test_what_is_asked_is_held_against_what_was_found() -> None:
    figures = figures_of("", [seen(2)])
    values = {name: value for name, _, value in figures}
    asked = {"parameters_before", "parameters_after", "student_exact", "artifact_exact", "artifact_bytes"}
    assert asked <= values.keys()
    assert values["artifact_exact"] == 0.99
    assert values["difference"] == pytest.approx(-0.01)
    assert values["speedup_over_unpruned_q8_0"] == pytest.approx(2)
    assert values["llama_cpp_speedup_over_student"] == pytest.approx(16)
    assert values["fastest_speedup"] == pytest.approx(4)  # q8_0 is faster on the one engine, the artifact on the other
    rung = Rung((), 0.4e9, 0.01, 60e6, 1.5)
    assert {line["reached"] for line in demanded("half", rung, figures)} == {"yes"}

    def missed(one: Seen, rung: Rung) -> set[str]:
        found = figures_of("small_100m_", [one])
        return {line["what"] for line in demanded("100m", rung, found) if line["reached"] == "no"}

    assert missed(seen(3), rung) == {"exact calls, minus the student's"}
    assert missed(seen(0), Rung((), 100e6, 0.01, 50e6, 3)) == {"weights", "bytes", "p50, unpruned q8_0 over it"}
    assert "p50, each on its faster engine" in missed(seen(0), Rung((), 0.4e9, 0.01, 60e6, 4.5))
    assert missed(seen(0, fell_back=True, llama_cpp="not there"), rung) == {
        "promoted by the gate",
        "opens in llama.cpp",
    }
    of_ladder = {line["what"] for line in demanded("100m", half_billion.LADDER["100m"], figures)}
    assert {"weights", "bytes"} <= of_ladder
    assert "promoted by the gate" not in of_ladder


def test_recipes_are_read_with_their_mistakes_before_anything_is_taught(tmp_path: Path) -> None:
    options = half_billion.parser().parse_args(["--folder", str(tmp_path)])
    recipe = recipe_of("half", 3, options)
    assert (recipe.seed, recipe.folder) == (3, tmp_path / "half-3")
    assert settings_of("transfer", recipe.sections["transfer"]).labelled_only == ()
    options.set = ["transfer.passes=3"]
    with pytest.raises(UserError, match="passes"):
        recipe_of("half", 3, options)
    for rung in half_billion.LADDER.values():
        settings_of("compress", {"steps": list(rung.steps), "recovery": half_billion.RECOVERY})


@pytest.fixture
def pruning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Arguments of a run of prune_quality on the smallest student."""
    monkeypatch.setattr(prune_quality, "Progress", lambda: QUIET)
    student = write_student(tmp_path / "student")
    Student(student, "compact", "tiny", 3).save_card()
    recipe = ["--recipe", str(write_recipe(tmp_path)), "--student", str(student), "--folder", str(tmp_path / "done")]
    return [*recipe, "--quick", "--steps", "3", "--max-tokens", "4", "--json", str(tmp_path / "figures.json")]


def test_all_methods_in_one_table_and_cells_that_are_done_once(
    pruning: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prune_quality.run(prune_quality.parser().parse_args(pruning))
    made = read_json(tmp_path / "figures.json")
    for method in METHODS:
        for name in ("", "_low", "_high"):
            assert 0 <= made["figures"][f"exact_{method}_20{name}"] <= 1
        assert made["figures"][f"exact_{method}_20_n"] == 6
    assert [line["method"] for line in made["table"]] == ["unpruned", *METHODS]
    whole = made["table"][0]["parameters"]
    assert all(line["parameters"] < whole for line in made["table"][1:])
    assert {cell["recovery_steps"] for cell in made["cells"]} == {4}, "the same budget for all, whole passes"
    assert not list((tmp_path / "done" / "cells").glob("*.work"))
    monkeypatch.setattr(prune_quality, "measured", pytest.fail)
    prune_quality.run(prune_quality.parser().parse_args(pruning))
    assert read_json(tmp_path / "figures.json")["figures"] == made["figures"]


def test_a_stopped_cell_goes_on_with_its_cut(
    pruning: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = prune_quality.parser().parse_args([*pruning, "--methods", "random"])

    def stopped(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(prune_quality, "recovered", stopped)
        with pytest.raises(KeyboardInterrupt):
            prune_quality.run(options)
    (work,) = (tmp_path / "done" / "cells").glob("*.work")
    assert Shape.of(work / "student").channels == 96
    known = read_json(work / "cut.json")
    prune_quality.run(options)
    (cell,) = read_json(tmp_path / "figures.json")["cells"]
    assert cell["cut_seconds"] == known["seconds"], "it was cut again"


def write_base(folder: Path, kind: str) -> Path:
    """A stock folder whose tokenizer can be trimmed."""
    tokenizer = whole_tokenizer()
    tokenizer.backend_tokenizer.post_processor = None  # formats write their own stop
    ids = {"vocab_size": len(tokenizer), "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    model = tiny(kind=kind, intermediate_size=128, num_hidden_layers=3, **ids)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_the_stages_bring_both_students_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(half_billion, "Progress", lambda: QUIET)
    learner = {"method": "imitate", "passes": 1, "rows": 8}
    trim, file = {"method": "trim_vocabulary", "extra_tokens": 0}, {"method": "gguf", "type": "q4_0"}
    engine = {"method": "openvino", "precision": "float32", "cache_gigabytes": 1}
    compress = {"steps": [trim, {"method": "gptq", "grid": "q4_0"}, file], "calibration_rows": 8, "max_tokens": 6}
    recipes = [
        write_recipe(
            tmp_path / kind,
            transfer={"student": str(write_base(tmp_path / kind / "model", kind)), "learners": [learner], **more},
            compress={**compress, "engine": engine},
        )
        for kind, more in (("qwen2", {"adapter": {"method": "lora", "rank": 2}}), ("llama", {}))
    ]
    rung = Rung((trim, {"method": "drop_blocks", "blocks": 1}, file), 1e6, 1)
    monkeypatch.setattr(half_billion, "LADDER", {"tiny": rung})
    given = ["--recipe", str(recipes[0]), "--small-recipe", str(recipes[1]), "--folder", str(tmp_path / "done")]
    options = half_billion.parser().parse_args([*given, "--quick", "--json", str(tmp_path / "figures.json")])
    half_billion.run(options)
    figures = read_json(tmp_path / "figures.json")["figures"]
    before = distinct_weights(AutoModelForCausalLM.from_pretrained(tmp_path / "qwen2" / "model"))
    assert figures["parameters_after"] < figures["parameters_before"] == before
    assert figures["small_tiny_parameters_after"] < figures["small_tiny_parameters_before"]
    assert figures["artifact_bytes"] == (tmp_path / "done/half-7/compress/artifact/model.gguf").stat().st_size
    assert figures["student_exact_n"] == figures["artifact_exact_n"] == 6
    assert figures["speedup_over_student"] > 0
    assert figures["small_tiny_unpruned_q8_0_p50_seconds"] > 0
    monkeypatch.setattr(Run, "do", pytest.fail)
    half_billion.run(options)
    assert read_json(tmp_path / "figures.json")["figures"] == figures
