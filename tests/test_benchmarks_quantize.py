"""The benchmarks of quantizing without a real model: ways, cells that are done once, runs by turns, figures."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import _compress_jobs as jobs
from benchmarks import _compressing, compress_speed, quantize_quality
from benchmarks._compress_ours import compressed
from benchmarks._compress_rival import recipe_of, shortened
from benchmarks._compressing import Exam, examined, in_batches, lessons_of, losses_on, perplexity_ratio, taught
from benchmarks._llama_types import plainly_rounded, rounding
from benchmarks._roundings import BITS, Way, Workshop, group_of, importance_of, settings_of, ways, widths_of
from benchmarks.quantize_quality import METHODS, Cell, cell, summarised
from supertiny.compress.layers import blocks_of, matrices_of
from supertiny.core.errors import UserError
from supertiny.core.methods import build
from supertiny.core.progress import Progress
from supertiny.core.student import Student
from tests.small_task import examples, small_task
from tests.tiny_student import open_pupil, weights, write_student

QUIET = Progress(quiet=True)
LEARNER = {"method": "imitate", "passes": 1, "rows": 8}
SMOLLM_WIDTHS = (576, 1536)


def exam(losses: list[float], hits: str = "") -> Exam:
    return Exam(tuple(mark == "1" for mark in hits or "1" * len(losses)), tuple(losses), (2,) * len(losses))


@pytest.fixture
def student(tmp_path: Path) -> Path:
    return write_student(tmp_path / "student")


def workshop(student: Path, **more: Any) -> Workshop:
    pupil = open_pupil(student)
    lessons = lessons_of(examples("labelled"), small_task(), pupil)
    batches = in_batches(lessons, pupil.pad_id)
    return Workshop(student, batches, [list(lesson.ids) for lesson in lessons], **more)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("method", METHODS)
def test_all_methods_spend_at_most_half_a_bit_on_scales(method: str, bits: int) -> None:
    settings = settings_of(method, bits, SMOLLM_WIDTHS)
    if method == "trit_planes" and bits != 3:
        assert settings is None
        return
    assert settings is not None
    assert all(width % settings["group"] == 0 for width in SMOLLM_WIDTHS)
    inputs = None if method != "gptq" else _inputs(576)
    packed = build("quantizers", settings).quantize(torch.randn(64, 576, generator=_seeded()), inputs)
    assert bits < packed.bits_per_weight <= bits + 0.5 + 1e-3


def test_rtn_gptq_and_llama_spend_the_same() -> None:
    assert [group_of(scales, math.gcd(*SMOLLM_WIDTHS)) for scales in (16, 32, 48, 64)] == [32, 64, 96, 192]
    with pytest.raises(UserError, match="no group that fills 7 columns"):
        group_of(16, 7)


def test_ways_have_the_names_that_figures_are_read_by() -> None:
    names = [way.name for way in ways(SMOLLM_WIDTHS, METHODS, library=True, rival=True)]
    assert names[0] == "unquantized"
    assert len(set(names)) == len(names)
    expected = {f"{method}_{bits}" for method in METHODS for bits in BITS} - {"trit_planes_4", "trit_planes_2"}
    expected |= {f"llama_{kind}" for kind in ("q4_0", "q4_1", "iq4_nl")} | {"gptq_q4_0", "llama_q4_0_plain"}
    assert expected | {"llmcompressor_gptq_4"} <= set(names)
    bare = {way.name for way in ways(SMOLLM_WIDTHS, ["rtn"], library=False, rival=False)}
    assert bare == {"unquantized", "rtn_4", "rtn_3", "rtn_2", "llama_q4_0_plain", "llama_q4_1_plain"}


@pytest.mark.parametrize(
    "way",
    [
        Way("rtn_3", {"method": "rtn", "bits": 3, "group": 32}),
        Way("gptq_q4_0", {"method": "gptq", "grid": "q4_0"}),
        Way("llama_q4_0_plain", {"type": "q4_0", "importance": False}, "llama"),
    ],
    ids=lambda way: way.name,
)
def test_a_way_changes_the_matrices_and_nothing_else(student: Path, way: Way) -> None:
    pupil = open_pupil(student)
    before, told = weights(pupil), list[tuple[int, int]]()
    bits = workshop(student).rounded(way, pupil, lambda done, of: told.append((done, of)))
    assert bits == pytest.approx(3.5 if way.name == "rtn_3" else 4.5)
    assert told[-1][0] == told[-1][1]
    changed = {name for name, tensor in weights(pupil).items() if not torch.equal(tensor, before[name])}
    matrices = {f"{n}.weight" for p in range(len(blocks_of(pupil.model))) for n in matrices_of(pupil.model, p)}
    assert changed == matrices
    assert len(set(matrices_of(pupil.model, 0).popitem()[1].weight[0, :32].tolist())) <= 16


def test_a_model_in_bfloat16_is_told_to_have_16_bits(student: Path) -> None:
    pupil = open_pupil(student)
    assert workshop(student).rounded(Way("unquantized", kind="none"), pupil, _nothing) == 32
    open_pupil(student).save(student.parent / "halves")
    assert workshop(student).rounded(Way("", kind="none"), open_pupil(student.parent / "halves"), _nothing) == 16


def test_importance_is_the_mean_square_of_each_input(student: Path) -> None:
    work, pupil, seen = workshop(student), open_pupil(student), []
    layer = pupil.model.model.layers[1].mlp.down_proj
    assert widths_of(pupil.model) == [64, 128]
    found = importance_of(pupil, work.calibration, _nothing)
    assert found.keys() == {n for p in (0, 1) for n in matrices_of(pupil.model, p)}
    handle = layer.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    with torch.no_grad():
        for batch in work.calibration:
            pupil.hidden(batch.ids, batch.mask)
    handle.remove()
    masks = [batch.mask.bool() for batch in work.calibration]
    states = torch.cat([state[mask] for state, mask in zip(seen, masks, strict=True)])
    torch.testing.assert_close(found["model.layers.1.mlp.down_proj"], states.square().mean(dim=0))


def test_llamas_library_rounds_as_its_python_package_does() -> None:
    library = rounding()
    if library is None:
        pytest.skip("llama-cpp-python is not installed")
    matrix, importance = torch.randn(8, 64, generator=_seeded()), torch.linspace(0.1, 3, 64)
    for kind in ("q4_0", "q4_1"):
        assert torch.equal(library(kind, matrix, None)[0], plainly_rounded(kind, matrix, None)[0])
    for kind in ("q4_0", "q4_1", "iq4_nl"):
        plain, weighed = (library(kind, matrix, given)[0] for given in (None, importance))
        lost = [float(((values - matrix).square() * importance).sum()) for values in (plain, weighed)]
        assert lost[1] < lost[0]
    with pytest.raises(ValueError, match="for 64 columns"):
        library("q4_0", matrix, importance[:32])


def test_plain_rounding_counts_its_bytes() -> None:
    matrix = torch.randn(8, 64, generator=_seeded())
    values, size = plainly_rounded("q4_0", matrix, None)
    assert size == 8 * 64 * 4.5 / 8
    assert 0 < float((values - matrix).abs().max()) < 0.3 * float(matrix.abs().max())


def test_losses_are_told_row_by_row_in_order(student: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pupil, task = open_pupil(student), small_task()
    lessons = lessons_of(task.valid, task, pupil)
    together, tokens = losses_on(pupil, lessons)
    monkeypatch.setattr(_compressing, "AT_ONCE", 1)
    alone = [losses_on(pupil, [lesson]) for lesson in lessons]
    assert together == pytest.approx([losses[0] for losses, _ in alone], rel=1e-4)
    assert tokens == tuple(counts[0] for _, counts in alone)
    assert tokens == tuple(len(lesson.ids) - lesson.answer_start for lesson in lessons)


def test_an_untaught_model_is_examined(student: Path) -> None:
    task = small_task()
    found = examined(open_pupil(student), task, task.valid[:3])
    assert (len(found.hits), len(found.losses), len(found.tokens)) == (3, 3, 3)
    assert found.perplexity > 100  # of 259 tokens
    assert Exam.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_a_student_is_taught_once(student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task, rows = small_task(), examples("labelled", 8)
    first = taught(task, rows, LEARNER, tmp_path / "runs", QUIET, str(student))
    assert (first / "config.json").is_file()
    assert Student.open(first).format == "compact"
    assert not list((tmp_path / "runs").glob(".*"))
    monkeypatch.setattr(_compressing, "build", lambda *given: pytest.fail("it was taught again"))
    assert taught(task, rows, LEARNER, tmp_path / "runs", QUIET, str(student)) == first


def test_a_perplexity_ratio_is_of_the_same_tokens() -> None:
    worse, better = exam([2.0, 4.0, 6.0, 8.0]), exam([1.0, 3.0, 5.0, 7.0])
    ratio, low, high = perplexity_ratio(worse, better)
    assert ratio == pytest.approx(worse.perplexity / better.perplexity) == pytest.approx(math.exp(0.5))
    assert (low, high) == pytest.approx((ratio, ratio))  # each row lost the same
    mixed = perplexity_ratio(exam([2.0, 4.0, 5.0, 6.0]), better)
    assert mixed[1] < mixed[0] < mixed[2]
    with pytest.raises(ValueError, match="different rows"):
        perplexity_ratio(worse, exam([1.0]))


def test_a_finished_cell_is_not_done_again(student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task, way = small_task(), Way("rtn_4", {"method": "rtn", "bits": 4, "group": 32})
    work = workshop(student)
    first = cell(tmp_path, way, work, task, task.valid[:2], QUIET)
    monkeypatch.setattr(Workshop, "rounded", lambda *given: pytest.fail("it was rounded again"))
    assert cell(tmp_path, way, work, task, task.valid[:2], QUIET) == first
    monkeypatch.setattr(jobs, "sources", lambda: "other code")
    with pytest.raises(pytest.fail.Exception, match="rounded again"):
        cell(tmp_path, way, work, task, task.valid[:2], QUIET)


def test_figures_of_quality() -> None:
    cells = {
        "unquantized": Cell(exam([1.0, 1.0, 1.0, 1.0], "1111"), 16.0, 0.0),
        "gptq_q4_0": Cell(exam([1.2, 1.0, 1.0, 1.0], "1110"), 4.5, 9.0),
        "llama_q4_0": Cell(exam([2.0, 1.5, 1.0, 1.0], "1100"), 4.5, 1.0),
    }
    figures, table = summarised(cells)
    values = {name: value for name, _, value in figures}
    assert len(values) == len(figures)
    assert values["exact_gptq_q4_0"] == 0.75
    assert values["exact_gptq_q4_0_n"] == 4
    assert values["exact_llama_q4_0_low"] < 0.5 < values["exact_llama_q4_0_high"]
    assert values["perplexity_llama_q4_0"] == pytest.approx(math.exp(5.5 / 8))
    assert values["llama_q4_0_minus_unquantized"] == -0.5
    assert values["gptq_q4_0_minus_llama_q4_0"] == 0.25
    assert values["gptq_q4_0_perplexity_over_llama_q4_0"] == pytest.approx(math.exp(-1.3 / 8))
    assert values["gptq_q4_0_perplexity_over_llama_q4_0_high"] <= 1
    assert values["bits_unquantized"] == 16
    assert [line["way"] for line in table] == list(cells)
    assert "minus" not in table[0]
    assert table[2]["ppl_ratio"] == pytest.approx(math.exp(1.5 / 8))


def test_a_folder_that_is_no_student_is_refused(tmp_path: Path) -> None:
    options = quantize_quality.parser().parse_args(["--student", str(tmp_path)])
    with pytest.raises(UserError, match=r"no config\.json"):
        quantize_quality.student_of(options, small_task(), [], QUIET)


@pytest.mark.parametrize("kind", ["gptq", "wanda"])
def test_a_job_of_ours(student: Path, kind: str) -> None:
    rows = workshop(student).rows[:4]
    job = {"kind": kind, "model": str(student), "precision": "float32", "rows": rows, "bits": 4, "group": 64}
    report = compressed({**job, "sparsity": 0.5, "blocks": 1, "weights": ""})
    assert report["seconds"] > 0
    assert report["tokens"] == sum(map(len, rows))
    assert report["bits_per_weight"] == (4.25 if kind == "gptq" else 0)
    model = open_pupil(student).model
    shortened(model, 1)
    assert len(model.model.layers) == model.config.num_hidden_layers == 1


def test_a_rival_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no llm-compressor"):
        jobs.rival_python(tmp_path / "python")
    with pytest.raises(UserError, match="a run of llm-compressor failed"):
        jobs.rivals({"kind": "gptq", "model": "", "precision": "float32"}, Path(sys.executable))
    with pytest.raises(ImportError):
        recipe_of({"kind": "wanda", "sparsity": 0.5})


def test_sides_alternate_and_runs_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    def side(name: str, seconds: list[float], fails: bool = False) -> Any:
        def run(job: Any, *python: Path) -> jobs.Report:
            order.append(name)
            if fails:
                raise UserError("it does not run here")
            done = seconds[order.count(name) - 1]
            return {"seconds": done, "peak_gb": done / 10, "tokens": 9, "versions": {"llmcompressor": "1"}}

        return run

    monkeypatch.setattr(compress_speed, "job_of", lambda kind, *given: {"kind": kind, "rows": [], "precision": "x"})
    monkeypatch.setattr(jobs, "ours", side("ours", [1.0, 2.0, 4.0]))
    monkeypatch.setattr(jobs, "rivals", side("theirs", [3.0, 4.0, 6.0]))
    options = compress_speed.parser().parse_args(["--folder", str(tmp_path)])
    for _ in range(2):
        details: dict[str, Any] = {"without_figure": {}}
        rows = compress_speed.speeds("gptq", tmp_path, Path("python"), options, details, QUIET)
    assert order == ["ours", "theirs"] * 3
    values = {name: value for name, _, value in rows}
    assert (values["gptq_ratio"], values["gptq_ratio_low"], values["gptq_ratio_high"]) == (2.0, 1.5, 3.0)
    assert (values["gptq_seconds"], values["gptq_peak_gb"]) == (2.0, 0.4)
    assert compress_speed.peak(rows)[0][::2] == ("peak_gb", 0.4)
    assert details["without_figure"] == {}
    order.clear()
    monkeypatch.setattr(jobs, "rivals", side("theirs", [], fails=True))
    rows = compress_speed.speeds("wanda", tmp_path, Path("python"), options, details, QUIET)
    assert order == ["ours", "theirs", "ours", "ours"], "a rival that fails is not tried again"
    assert "it does not run here" in details["without_figure"]["llm-compressor, wanda"]
    assert not any("ratio" in name for name, _, _ in rows)


def test_lossless_packing_is_compared_bit_by_bit(student: Path) -> None:
    values = {name: value for name, _, value in compress_speed.lossless(student, QUIET)}
    assert values["dfloat11_equal"] == 1
    assert values["dfloat11_tensors"] > 10
    assert 0.5 < values["dfloat11_ratio"] < 1


def test_planes_stand_beside_their_references(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compress_speed, "HEIGHT", 64)
    details: dict[str, Any] = {}
    values = {name: value for name, _, value in compress_speed.planes(details, QUIET)}
    assert values.keys() == {
        f"{name}_snr{end}" for name in compress_speed.REFERENCES for end in ("", "_minus_reference")
    }
    for name, reference in details["snr_references"].items():
        assert values[f"{name}_snr"] - reference == pytest.approx(values[f"{name}_snr_minus_reference"])
        assert -1 < values[f"{name}_snr_minus_reference"] < 2
    matrix = torch.tensor([[3.0, 4.0]])
    assert compress_speed.decibels(matrix, matrix * 0.9) == pytest.approx(20, abs=1e-4)


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _inputs(width: int) -> Any:
    from supertiny.compress.inputs import Inputs

    return Inputs.of(torch.randn(1000, width, generator=_seeded()))


def _nothing(done: int, of: int) -> None:
    return None
