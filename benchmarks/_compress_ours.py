"""Compresses with supertiny: python -m benchmarks._compress_ours JOB OUT; see benchmarks/_compress_jobs.py."""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks._compress_rival import peak_gigabytes, shortened
from supertiny.compress.inputs import Inputs
from supertiny.compress.layers import change_matrices
from supertiny.compress.packed import Packed
from supertiny.core.methods import build
from supertiny.training.lessons import Lesson, collate
from supertiny.training.pupil import Pupil

_BATCH = 32  # rows that go through a block together, as in the stage


def compressed(job: dict[str, Any]) -> dict[str, Any]:
    """Seconds from the open model to its changed weights; packed matrices are kept, as an exporter needs them."""
    pupil = Pupil.open(Path(job["model"]), job["precision"])
    shortened(pupil.model, job["blocks"])
    packed: dict[str, Packed] = {}

    def quantized(name: str, weight: torch.Tensor, inputs: Inputs) -> torch.Tensor:
        packed[name] = method.quantize(weight, inputs)
        return packed[name].restored()

    def pruned(name: str, weight: torch.Tensor, inputs: Inputs) -> torch.Tensor:
        matrix: torch.Tensor = method.prune(weight, inputs, job["sparsity"])
        return matrix

    def tick(done: int, of: int) -> None:
        print(f"block {done} of {of}", file=sys.stderr, flush=True)

    began = time.perf_counter()
    lessons = [Lesson(tuple(ids), 1) for ids in sorted(job["rows"], key=len)]
    batches = [collate(lessons[start : start + _BATCH], pupil.pad_id) for start in range(0, len(lessons), _BATCH)]
    if job["kind"] == "gptq":
        method = build("quantizers", {"method": "gptq", "bits": job["bits"], "group": job["group"]})
        change_matrices(pupil.model, batches, quantized, tick=tick)
    else:
        method = build("pruners", "wanda")
        change_matrices(pupil.model, batches, pruned, gram=False, tick=tick)
    seconds = time.perf_counter() - began
    weights = sum(math.prod(one.shape) for one in packed.values())
    bits = 8 * sum(one.bytes for one in packed.values()) / max(1, weights)
    return {"seconds": seconds, "tokens": sum(map(len, job["rows"])), "bits_per_weight": bits}


def main() -> None:
    report = compressed(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    report["peak_gb"] = peak_gigabytes()
    Path(sys.argv[2]).write_text(json.dumps(report), encoding="utf-8")


if __name__ == "__main__":
    main()
