"""Compresses with llm-compressor: python _compress_rival.py JOB OUT; see benchmarks/_compress_jobs.py.

Nothing of supertiny is imported, so that llm-compressor keeps an environment of its own. One row is a batch, as is its
default; head and embedding stay as they are.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("llmcompressor", "compressed-tensors", "transformers", "torch")


def compressed(job: dict[str, Any]) -> dict[str, Any]:
    """Seconds of its one call, from the open model to its changed weights."""
    torch, transformers = importlib.import_module("torch"), importlib.import_module("transformers")
    project, datasets = importlib.import_module("llmcompressor"), importlib.import_module("datasets")
    model = transformers.AutoModelForCausalLM.from_pretrained(job["model"], dtype=getattr(torch, job["precision"]))
    tokenizer = transformers.AutoTokenizer.from_pretrained(job["model"])
    shortened(model, job["blocks"])
    rows = datasets.Dataset.from_list([{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in job["rows"]])
    began = time.perf_counter()
    project.oneshot(
        model=model,
        tokenizer=tokenizer,
        dataset=rows,
        recipe=recipe_of(job),
        max_seq_length=max(map(len, job["rows"])),
        num_calibration_samples=len(job["rows"]),
        shuffle_calibration_samples=False,
    )
    seconds = time.perf_counter() - began
    if job["weights"]:
        save(model, Path(job["weights"]))
    return {"seconds": seconds, "tokens": sum(map(len, job["rows"]))}


def recipe_of(job: dict[str, Any]) -> Any:
    if job["kind"] == "wanda":
        pruning = importlib.import_module("llmcompressor.modifiers.pruning.wanda")
        return pruning.WandaPruningModifier(sparsity=job["sparsity"], targets=["Linear"], ignore=["lm_head"])
    gptq = importlib.import_module("llmcompressor.modifiers.gptq")
    weights = {
        "num_bits": job["bits"], "type": "int", "symmetric": True, "strategy": "group", "group_size": job["group"]
    }  # fmt: skip
    return gptq.GPTQModifier(config_groups={"all": {"targets": ["Linear"], "weights": weights}}, ignore=["lm_head"])


def save(model: Any, path: Path) -> None:
    """The matrices as their codes, scales and zeros stand for, by name, in float32."""
    torch, files = importlib.import_module("torch"), importlib.import_module("safetensors.torch")
    rounding = importlib.import_module("compressed_tensors.quantization.lifecycle.forward")
    matrices = {}
    for name, layer in model.named_modules():
        scheme = getattr(layer, "quantization_scheme", None)
        if scheme is not None and scheme.weights is not None and hasattr(layer, "weight_scale"):
            zero = getattr(layer, "weight_zero_point", None)
            with torch.no_grad():
                values = rounding.fake_quantize(layer.weight, layer.weight_scale, zero, scheme.weights)
            matrices[name] = values.float().contiguous()
    files.save_file(matrices, path)


def shortened(model: Any, blocks: int) -> None:
    """Leaves the first blocks alone, for a first look; 0 leaves all."""
    if blocks:
        model.model.layers = model.model.layers[:blocks]
        model.config.num_hidden_layers = blocks


def peak_gigabytes() -> float:
    """The most memory that this process has had; what the kernel tells of its own counts from when it was started."""
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024 / 1e9
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / 1e9 if sys.platform == "darwin" else most * 1024 / 1e9


def main() -> None:
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    report = compressed(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    report |= {"peak_gb": peak_gigabytes(), "versions": {name: metadata.version(name) for name in PACKAGES}}
    Path(sys.argv[2]).write_text(json.dumps(report), encoding="utf-8")


if __name__ == "__main__":
    main()
