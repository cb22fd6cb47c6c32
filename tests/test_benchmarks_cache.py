"""The benchmark of the last-level cache without a model: steps by turns, its figures, its files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from benchmarks import cache_fit
from benchmarks.cache_fit import WARM_UP, Turns, cache_megabytes, files_of, flusher, measured, reads, verdicts
from supertiny.core.errors import UserError
from supertiny.core.files import read_json
from supertiny.core.progress import Progress
from supertiny.core.records import Completion, Grammar, Prompt, Sampling
from tests.tiny_student import write_student


class Noted:
    """An engine that notes what is asked of it."""

    def __init__(self) -> None:
        self.log: list[str] = []

    def complete(
        self, prompts: Sequence[Prompt], sampling: Sampling, grammar: Sequence[Grammar | None] | None = None
    ) -> list[Completion]:
        assert (len(prompts), sampling.max_tokens) == (1, 1)
        self.log.append("step")
        return [Completion("x") for _ in prompts]

    def close(self) -> None:
        self.log.append("closed")


def test_a_cold_step_follows_a_flush_and_a_rested_one_a_pause_as_long(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Noted()

    def flush() -> float:
        engine.log.append("flush")
        return 0.25

    monkeypatch.setattr(cache_fit, "paused", lambda seconds: engine.log.append(f"pause {seconds}"))
    steps = measured(engine, flush, 4)  # type: ignore[arg-type]
    turn = ["step", "step", "flush", "step", "step", "pause 0.25", "step"]
    assert engine.log == turn * (4 + WARM_UP) + ["closed"]
    assert len(steps.warm) == len(steps.rested) == len(steps.cold) == 4


def test_figures_compare_neighbours() -> None:
    steps = Turns(warm=(0.001, 0.002, 0.004), rested=(0.001, 0.005, 0.002), cold=(0.002, 0.008, 0.002))
    found = {name: value for name, _, value in steps.figures("e_m", "m", 20_000_000)}
    assert found["e_m_megabytes"] == 20
    assert found["e_m_warm"] == pytest.approx(2)
    assert found["e_m_rested"] == pytest.approx(2)
    assert found["e_m_back"] == pytest.approx(1)  # the median of 1, 3 and 0
    assert found["e_m_back_low"] <= 1 <= found["e_m_back_high"]


def test_verdicts_tell_files_that_fit_from_large_ones() -> None:
    rows = []
    for name, megabytes, back in (("a", 20, 1.5), ("b", 30, 1.3), ("c", 50, 1.1), ("d", 70, 0.2)):
        rows += [(f"openvino_{name}_megabytes", "", megabytes), (f"openvino_{name}_back", "", back)]
        rows.append((f"openvino_{name}_rested", "", 2.0))
    found = {name: value for name, _, value in verdicts(rows, 33)}  # c is neither
    assert found == {
        "openvino_fitting_back": pytest.approx(1.4),
        "openvino_fitting_back_share": pytest.approx(0.7),
        "openvino_large_back": pytest.approx(0.2),
        "openvino_large_back_share": pytest.approx(0.1),
    }


def test_flushing_writes_over_several_times_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    buffers = []

    def zeros(count: int) -> np.ndarray:
        buffers.append(np.full(count, 0.0))
        return buffers[-1]

    monkeypatch.setattr(np, "zeros", zeros)
    assert flusher(0.5)() > 0
    (buffer,) = buffers
    assert buffer.nbytes >= 4 * 500_000
    assert (buffer == 1).all()


def test_plain_reads_are_timed_in_the_same_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []

    def flush() -> float:
        log.append("flush")
        return 0.125

    monkeypatch.setattr(cache_fit, "paused", lambda seconds: log.append(f"pause {seconds}"))
    found = reads(1.0, flush, 3)
    assert log == ["flush", "pause 0.125"] * (3 + WARM_UP)
    assert [name for name, _, _ in found] == ["read_warm", "read_rested", "read_cold"]
    assert all(0 < rate < 10_000 for _, _, rate in found)


@pytest.mark.parametrize(("text", "megabytes"), [("32768K\n", 33.554432), ("1024K", 1.048576)])
def test_the_cache_is_read_where_linux_tells_it(
    text: str, megabytes: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_fit, "_SIZE_FILE", tmp_path / "size")
    (tmp_path / "size").write_text(text)
    assert cache_megabytes() == pytest.approx(megabytes)


@pytest.mark.parametrize("text", [None, "", "big"])
def test_a_system_that_does_not_tell_is_an_error_with_the_way_out(
    text: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_fit, "_SIZE_FILE", tmp_path / "size")
    if text is not None:
        (tmp_path / "size").write_text(text)
    with pytest.raises(UserError, match="does not tell"):
        cache_megabytes()


def test_files_hold_the_first_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    student = write_student(tmp_path / "student")
    blocks = read_json(student / "config.json")["num_hidden_layers"]
    # A model that has fewer is taken whole, once.
    monkeypatch.setattr(cache_fit, "SIZES", ((1, "q8_0"), (blocks, "q8_0"), (blocks + 5, "q8_0")))
    exported = []

    class Exporter:
        def export(self, student: Path, place: Path) -> None:  # a tokenizer as small as the student's no runtime opens
            exported.append((read_json(student / "config.json")["num_hidden_layers"], place / "model.gguf"))

    monkeypatch.setattr(cache_fit, "build", lambda socket, settings: Exporter())
    made = files_of(str(student), tmp_path / "files", Progress(quiet=True))
    assert exported == [
        (1, made["q8_0_1_blocks"]),
        (blocks, made[f"q8_0_{blocks}_blocks"]),
    ]


def test_a_mistake_is_one_line_and_status_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["cache_fit", "--steps", "1"])
    with pytest.raises(SystemExit) as left:
        cache_fit.main()
    assert left.value.code == 2
    assert capsys.readouterr() == ("", "error: --steps 1: a spread needs two (give 2 or more)\n")
