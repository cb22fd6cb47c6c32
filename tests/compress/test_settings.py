"""What a recipe may say of its steps: every mistake is told with its place and the nearest right word."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from supertiny.compress.gate import Gate
from supertiny.compress.settings import Settings
from supertiny.compress.steps import name_of, step_of, steps_of, title_of
from supertiny.core.errors import UserError
from supertiny.core.methods import validated
from supertiny.training.named_files import named_files

WANDA = {"method": "wanda", "sparsity": 0.5}


def read(**values: Any) -> Settings:
    settings: Settings = validated(Settings, values, "compress")
    return settings


def test_a_step_is_of_the_family_that_has_its_method() -> None:
    blocks = ["keep", WANDA, {"method": "gptq", "grid": "q4_0", "skip": ["*.down_proj"]}, "gguf"]
    steps = steps_of(read(steps=blocks).steps)
    assert [step.family for step in steps] == ["reshapers", "pruners", "quantizers", "exporters"]
    assert steps[1].sparsity == 0.5
    assert steps[2].skips("model.layers.0.mlp.down_proj")
    assert not steps[2].skips("model.layers.0.mlp.up_proj")
    assert steps[1].needs == {"calibration"}
    assert [step.trains for step in steps] == [False] * 4
    assert step_of({"method": "pst", "sparsity": 0.5}, "here").trains


@pytest.mark.parametrize(
    ("steps", "told"),
    [
        (["wandas", "gguf"], r"steps\.0: .*'wandas' \(did you mean 'wanda'\?\)"),
        (["wanda", "gguf"], r"steps\.0\.wanda: needs `sparsity`.*found none"),
        ([{**WANDA, "sparsity": 1.0}, "gguf"], r"sparsity.*found 1\.0"),
        ([{**WANDA, "sparsity": True}, "gguf"], r"sparsity.*found True"),
        ([{**WANDA, "patern": "2:4"}, "gguf"], r"'patern' \(did you mean 'pattern'\?\)"),
        ([{"method": "rtn", "sparsity": 0.5}, "gguf"], r"rtn: there is no setting 'sparsity'"),
        ([{"method": "rtn", "skip": "*.up_proj"}, "gguf"], r"skip must be a list"),
        ([{"method": "lsq_lora", "skip": ["*.up_proj"]}, "gguf"], r"trained in all matrices"),
        (["rtn", "keep", "gguf"], r"steps\.1: keep would move what rtn rounded off its grid"),
        (["rtn", WANDA, "gguf"], r"steps\.1: wanda would move what rtn rounded"),
        (
            [WANDA, "keep", {"method": "gptq", "grid": "q4_1"}, "gguf"],
            r"steps\.2: zero is no point of gptq's.*what wanda",
        ),
        ([WANDA, "hqq", "gguf"], r"steps\.1: zero is no point of hqq's grid"),
        ([{"steps": 3}, "gguf"], r"steps\.0: needs a method's name"),
        (["keep", WANDA], r"^compress\.steps: must end with one exporter"),
        (["wanda", "gguf"], r"such as \{method: wanda, sparsity: 0\.5\}"),
        ([{"method": "gptq", "grid": "q4_0"}, {"method": "gguf", "type": "q4_k"}], r"q4_k would round again what gptq"),
        ([{"method": "gptq", "grid": "q8_0"}, "gguf"], r"q4_0 would round again what gptq"),
        (["nf4", "gguf"], r"^compress\.steps\.0: gguf's q4_0 would round again what nf4 rounded"),
    ],
)
def test_a_mistake_in_a_step_is_told_with_its_place(steps: list[Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        read(steps=steps)


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(UserError) as caught:
        read(steps=["wanda", "drop_block", "gguf"], parity=2, gate={"margn": 0.1})
    assert all(word in str(caught.value) for word in ("steps.0", "steps.1", "parity", "'margn'"))


def test_mistakes_of_steps_are_told_once_without_the_list() -> None:
    with pytest.raises(UserError) as caught:
        read(steps=["keep", "rtnn", "gguf"])
    assert str(caught.value).count("compress.steps") == 1
    assert not any(word in str(caught.value) for word in ("Value error", "found"))


@pytest.mark.parametrize(
    ("quantizer", "file"),
    [
        ("gptq", {"type": "q4_0"}),  # its own points in groups of 64 are q4_0's too
        ({"method": "gptq", "grid": "q4_0"}, {"type": "q4_1"}),
        ({"method": "gptq", "grid": "q4_0"}, {"type": "q4_k", "types": {"*up_proj*": "q4_0"}}),
        ("nf4", {"type": "q8_0"}),
    ],
)
def test_a_file_that_holds_what_was_rounded_is_right(quantizer: Any, file: dict[str, Any]) -> None:
    assert read(steps=[quantizer, {"method": "gguf", **file}]).steps


def test_quantizers_may_stand_one_after_the_other() -> None:
    first = {"method": "gptq", "grid": "q4_0", "skip": ["*.down_proj"]}
    second = {"method": "rtn", "bits": 8, "skip": ["*.up_proj"]}
    assert len(read(steps=["keep", WANDA, first, second, "gguf"]).steps) == 5


def test_a_grid_without_zero_may_follow_a_pruner_of_other_matrices() -> None:
    assert read(steps=["hqq", "gguf"]).steps
    assert read(steps=[{**WANDA, "skip": ["*.q_proj"]}, {"method": "hqq", "skip": ["*.down_proj"]}, "gguf"]).steps


def test_files_that_the_recovery_names_are_found(tmp_path: Path) -> None:
    chosen = read(recovery={"method": "contrast", "amateur": str(tmp_path / "amateur")})
    with pytest.raises(UserError, match=r"compress\.recovery\.amateur: .*/amateur is not there"):
        named_files(chosen, "compress")
    (tmp_path / "amateur").mkdir()
    assert list(named_files(chosen, "compress")) == [str(tmp_path / "amateur")]
    assert not named_files(read(recovery=None), "compress")


def test_recovery_may_be_none_and_must_not_need_stored_scores() -> None:
    assert read(recovery=None).recovery is None
    assert read().recovery["method"] == "distil"
    with pytest.raises(UserError, match="recovery"):
        read(recovery="imitat")


def test_settings_of_today_mean_what_they_meant() -> None:
    settings = read(steps=[{"method": "drop_blocks", "share": 0.2}, {"method": "gguf", "type": "q4_0"}])
    assert settings.gate == Gate()
    assert [title_of(block) for block in settings.steps] == ["drop_blocks (share 0.2)", "gguf (type q4_0)"]
    assert name_of("keep") == title_of("keep") == "keep"
