"""Two processes learn what one learns: whole weights in each (DDP), and weights cut into shards (FSDP)."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from supertiny.training.lessons import Lesson
from supertiny.training.loop import Plan, descend
from supertiny.training.several import (
    gathered,
    is_first,
    processes,
    sharded,
    share_of,
    shared_like,
    squares_summed,
    sum_gradients,
    summed,
    wait_for_all,
)
from tests.tiny_student import open_pupil, write_student

PASSES = 3


def lessons() -> list[Lesson]:
    """Of different lengths and shares of answers; five in groups of three, so that a group has but two rows."""
    return [
        Lesson(tuple((11 * row + 5 * place) % 200 + 5 for place in range(9 + 3 * row)), 3 + row) for row in range(5)
    ]


def train(student: Path, into: Path, kind: str, stop_after: int = 100) -> dict[str, Any]:
    """What one process sees of the training; `kind` is one, whole or shards."""
    pupil = open_pupil(student)
    if kind == "shards":
        pupil = sharded(pupil)
    plan = Plan(3e-3, passes=PASSES, rows=3, seed=2, weight_decay=0.01, settings={"kind": kind})
    losses, norms = [], []
    for step in descend(pupil, lessons(), plan, pupil.answer_loss, into / "checkpoint.safetensors", 2):
        losses.append(step.loss)
        norms.append(step.gradient_norm)
        if step.step == stop_after:
            break
    else:
        pupil.save(into / "taught", torch.float32)
    held = sum(
        parameter.to_local().numel() if kind == "shards" else parameter.numel()
        for parameter in pupil.model.parameters()
    )
    return {"losses": losses, "norms": norms, "held": held}


def main() -> None:
    from accelerate import PartialState

    student, into, kind, stop_after = sys.argv[1:5]
    torch.set_num_threads(1)
    state = PartialState(cpu=True)
    assert state.num_processes == processes() == 2
    report = train(Path(student), Path(into), kind, int(stop_after))
    (Path(into) / f"report-{state.process_index}.json").write_text(json.dumps(report), encoding="utf-8")
    state.destroy_process_group()


def two_processes(student: Path, into: Path, kind: str, stop_after: int = 100) -> list[dict[str, Any]]:
    """The reports of two real processes, started as people start them."""
    into.mkdir(exist_ok=True)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2",
        "--master_addr", "127.0.0.1", "--master_port", str(port), "-m", "tests.training.test_several",
    ]  # fmt: skip
    done = subprocess.run(
        [*command, str(student), str(into), kind, str(stop_after)],
        capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((into / f"report-{rank}.json").read_text("utf-8")) for rank in (0, 1)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["whole", "shards"])
def test_two_processes_learn_what_one_learns(kind: str, tmp_path: Path) -> None:
    student = write_student(tmp_path / "student")
    (tmp_path / "one").mkdir()
    one = train(student, tmp_path / "one", "one")
    assert len(one["losses"]) == 2 * PASSES
    assert one["losses"][-1] < one["losses"][0]
    first, second = two_processes(student, tmp_path / "two", kind)
    assert first["losses"] == second["losses"] == pytest.approx(one["losses"], abs=1e-5)
    assert first["norms"] == pytest.approx(one["norms"], rel=1e-4)
    alone, together = (load_file(tmp_path / name / "taught" / "model.safetensors") for name in ("one", "two"))
    assert alone.keys() == together.keys()
    for name, weight in alone.items():
        torch.testing.assert_close(together[name], weight, rtol=1e-3, atol=1e-4)
    halves = 2 if kind == "shards" else 1
    assert first["held"] + second["held"] == pytest.approx(one["held"] * 2 / halves, rel=0.01)
    architectures = [
        json.loads((tmp_path / name / "taught" / "config.json").read_text("utf-8"))["architectures"]
        for name in ("one", "two")
    ]
    assert architectures[0] == architectures[1]


@pytest.mark.slow
def test_shards_go_on_from_a_checkpoint(tmp_path: Path) -> None:
    student = write_student(tmp_path / "student")
    (tmp_path / "one").mkdir()
    one = train(student, tmp_path / "one", "one")
    two_processes(student, tmp_path / "two", "shards", stop_after=3)
    rest, _ = two_processes(student, tmp_path / "two", "shards")
    assert rest["losses"] == pytest.approx(one["losses"][2:], abs=1e-5)


def test_one_process_alone_asks_nobody() -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    weight.grad = torch.tensor([3.0, 4.0])
    sum_gradients([weight])
    assert weight.grad.tolist() == [3.0, 4.0]
    assert processes() == 1
    assert is_first()
    assert summed(2.5) == 2.5
    assert share_of([1, 2, 3]) == [1, 2, 3]
    assert squares_summed([weight.grad]) == pytest.approx(25.0)
    assert gathered(weight) is weight
    assert shared_like(torch.ones(2), weight).tolist() == [1.0, 1.0]
    wait_for_all()


if __name__ == "__main__":
    main()
