"""Plans: sizes are those of real files, the order is that of the expected loss, and what cannot be had is told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from supertiny.compress.budget import Budget
from supertiny.compress.plans import Plan, Shape, baselines, chosen, nearest, plans
from supertiny.compress.search import front
from supertiny.compress.sensitivity import KINDS, Sensitivity, looks
from supertiny.compress.settings import Settings
from supertiny.core.errors import UserError
from supertiny.core.methods import build, validated
from supertiny.training.lessons import collate, encode_lessons
from tests.small_task import examples, small_task
from tests.tiny_student import open_pupil, write_student

SHAPE = Shape(30, 576, 1536, 576, 192, 49152, True)  # SmolLM2-135M


def sensitivity(**more: object) -> Sensitivity:
    rises = {kind: 0.01 * (place + 1) for place, kind in enumerate(KINDS)}
    blocks = tuple(0.01 * place for place in range(30))
    known = Sensitivity(0.2, blocks, {"1216": 0.05, "928": 0.3}, rises, 12000)
    return replace(known, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("tied", [True, False])
def test_sizes_are_those_of_the_model(tmp_path: Path, tied: bool) -> None:
    config = LlamaConfig(
        vocab_size=260, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=tied,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    model.save_pretrained(tmp_path)
    shape = Shape.of(tmp_path)
    assert shape.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert SHAPE.parameters == 134_515_008


def test_bytes_are_those_of_the_file(tmp_path: Path) -> None:
    import gguf

    student = write_student(tmp_path / "student")
    shape = Shape.of(student)
    types = {"down_proj": "q8_0"}
    from supertiny.compress.exporters._gguf_model import gguf_tensors
    from supertiny.core.files import read_json

    exporter = build("exporters", {"method": "gguf", "type": "q4_0", "types": {"*.down_proj.weight": "q8_0"}})
    total = 0
    for _, tensor, kind in exporter._typed(student, read_json(student / "config.json")):
        block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind.upper()]]
        total += tensor.size * size // block
    assert total == shape.bytes("q4_0", types)
    assert list(gguf_tensors(student, read_json(student / "config.json")))


def test_a_config_without_sizes_is_told(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(UserError, match="lacks a size"):
        Shape.of(tmp_path)


def test_plans_are_ordered_by_loss_and_each_is_smaller_than_the_one_before() -> None:
    made = plans(SHAPE, sensitivity())
    rises, sizes = [plan.rise for plan in made], [plan.bytes for plan in made]
    assert rises == sorted(rises)
    assert sizes == sorted(sizes, reverse=True)
    assert len(made) > 10
    assert made[0].name == "q8_0"
    assert min(plan.parameters for plan in made) < 70e6
    assert len({plan.name for plan in made}) == len(made)


def test_every_plan_is_a_recipe_without_mistakes() -> None:
    for plan in (*plans(SHAPE, sensitivity()), *baselines(SHAPE)):
        settings: Settings = validated(Settings, {"steps": list(plan.steps)}, "compress")
        assert settings.steps == plan.steps


def test_what_the_task_cannot_spare_is_not_dropped_first() -> None:
    deaf = sensitivity(blocks=(10.0,) * 30, vocabulary=None)
    small = plans(SHAPE, deaf)
    assert all("blocks" not in plan.name for plan in small[:3])
    spoilt = sensitivity(kinds=dict.fromkeys(KINDS, 0.0) | {"down_proj": 5.0})
    four = [plan for plan in plans(SHAPE, spoilt) if plan.type == "q4_0"]
    assert four[0].steps[-1]["types"] == {"*.down_proj.weight": "q8_0"}
    gptq = next(step for step in four[0].steps if step["method"] == "gptq")
    assert gptq["skip"] == ["*.down_proj"]


def fitted(on_grid: bool) -> dict[bool, set[str]]:
    """Whether plans of q4_0 without single types have gptq, by whether they cut: the names of those that have it."""
    found: dict[bool, set[str]] = {True: set(), False: set()}
    for plan in plans(SHAPE, sensitivity(), on_grid):
        methods = [step["method"] for step in plan.steps]
        if plan.type == "q4_0" and "types" not in plan.steps[-1]:
            found["drop_blocks" in methods or "narrow" in methods] |= {plan.name} if "gptq" in methods else set()
        assert plan.type == "q4_0" or "gptq" not in methods
        assert "gptq" not in methods or methods[-2] == "gptq"
    return found


def test_gptq_is_left_out_only_where_the_recovery_trains_on_the_grid() -> None:
    assert fitted(on_grid=True)[True] == set()
    assert fitted(on_grid=False)[True] == {
        plan.name
        for plan in plans(SHAPE, sensitivity())
        if plan.type == "q4_0"
        and {"drop_blocks", "narrow"} & {step["method"] for step in plan.steps}
        and "types" not in plan.steps[-1]
    }
    assert fitted(on_grid=True)[False] == fitted(on_grid=False)[False]


def test_rows_that_no_block_fills_are_not_fitted() -> None:
    odd = replace(SHAPE, channels=1500)
    (step, _) = baselines(odd)[1].steps
    assert step == {"method": "gptq", "grid": "q4_0", "skip": ["*.down_proj"]}
    assert [one["method"] for one in baselines(Shape(2, 70, 90, 70, 35, 100, True))[1].steps] == ["gguf"]


def test_a_tokenizer_that_cannot_be_trimmed_is_left() -> None:
    made = plans(SHAPE, sensitivity(vocabulary=None))
    assert all(step["method"] != "trim_vocabulary" for plan in made for step in plan.steps)
    assert {plan.vocabulary for plan in made} == {SHAPE.vocabulary}


def test_a_choice_begins_with_the_most_promising_and_reaches_to_the_end() -> None:
    made = plans(SHAPE, sensitivity())
    some = chosen(made, 4)
    assert len(some) == 4
    assert (some[0], some[-1]) == (made[0], made[-1])
    assert chosen(made, 99) == made
    assert chosen(made, 1) == made[:1]
    assert chosen(made, 0) == []


def test_the_nearest_plan_is_the_smallest_where_none_is_small_enough() -> None:
    made = plans(SHAPE, sensitivity())
    assert nearest(made, Budget(bytes=1e6)) == made[-1]
    assert nearest(made, Budget(bytes=1e12)) == made[0]


def test_sensitivity_of_a_real_model(tmp_path: Path) -> None:
    pupil = open_pupil(write_student(tmp_path / "student"))
    form = build("formats", "compact")
    lessons = encode_lessons(examples("labelled", 6), form, small_task().tools, pupil.tokenizer)
    with torch.no_grad():  # the second block does nothing, and the first much
        last = pupil.model.model.layers[1]
        last.self_attn.o_proj.weight.zero_()
        last.mlp.down_proj.weight.zero_()
        pupil.model.model.layers[0].mlp.down_proj.weight.mul_(30)
    before = {name: tensor.clone() for name, tensor in pupil.model.state_dict().items()}
    ticks: list[int] = []
    found = Sensitivity.measured(pupil, [collate(lessons, 0)], ticks.append)
    assert sum(ticks) == looks(pupil.model)
    assert found.blocks[1] == pytest.approx(0, abs=1e-6)
    assert abs(found.blocks[0]) > 1e-3
    assert set(found.kinds) == set(KINDS)
    assert set(found.channels) == {"96", "64"}, "of 128, as near to 0.2 and 0.4 less as multiples of 32 come"
    assert found.vocabulary is None, "bytes alone cannot be trimmed"
    assert all(torch.equal(before[name], tensor) for name, tensor in pupil.model.state_dict().items())
    found.save(tmp_path / "sensitivity.json", "key")
    assert Sensitivity.known(tmp_path / "sensitivity.json", "key") == found
    assert Sensitivity.known(tmp_path / "sensitivity.json", "other") is None
    assert Sensitivity.known(tmp_path / "nothing.json", "key") is None


def test_the_front_holds_what_nothing_beats() -> None:
    def point(name: str, exact: float, size: float, seconds: float | None) -> dict[str, object]:
        return {"name": name, "exact": exact, "bytes": size, "p50_seconds": seconds}

    points = [point("a", 0.9, 100, 0.1), point("b", 0.9, 90, 0.1), point("c", 0.8, 90, 0.05), point("d", 0.7, 95, 0.2)]
    assert front(points) == {"b", "c"}
    assert front([point("a", 0.9, 100, None), point("b", 0.9, 100, None)]) == {"a", "b"}
    assert front([]) == set()


def test_a_plan_says_what_it_takes() -> None:
    plan = Plan("p", (), 0.1, 10, 100.0, "q4_0", 5)
    assert plan.figures(20.0, 0.5) == {"bytes": 120.0, "parameters": 10.0, "p50": 0.5}
