"""Trains with TRL's SFTTrainer or GRPOTrainer: python _speed_rival.py JOB OUT.

JOB and OUT are JSON files, see benchmarks/_speed_jobs.py. Nothing of supertiny is imported, so that TRL keeps an
environment of its own. The optimiser and its schedule are given: fused AdamW with the same betas, decay, rates and
largest norm. Loading and the first steps are not timed.
"""

from __future__ import annotations

import difflib
import json
import resource
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch.utils.data import SequentialSampler
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

PACKAGES = ("trl", "transformers", "torch", "accelerate", "datasets")


class Watch(TrainerCallback):  # type: ignore[misc]
    """Seconds of each step of the optimiser."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.began = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.began = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds.append(time.perf_counter() - self.began)
        print(f"step {len(self.seconds)}: {self.seconds[-1]:.2f} s", file=sys.stderr, flush=True)


def opened(job: dict[str, Any]) -> tuple[Any, Any]:
    # Float32 weights; with bf16 the trainer multiplies in bfloat16 by autocast, as is its default.
    model = AutoModelForCausalLM.from_pretrained(
        job["model"], dtype=torch.float32, attn_implementation=job["attention"]
    )
    return model, AutoTokenizer.from_pretrained(job["model"])


def settings_of(job: dict[str, Any], folder: str) -> dict[str, Any]:
    return {
        "output_dir": folder,
        "max_steps": len(job["rates"]),
        "bf16": job["precision"] == "bfloat16",
        "gradient_checkpointing": job["checkpointing"],
        "max_grad_norm": job["clip"],
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": job["seed"],
        "use_cpu": not torch.cuda.is_available(),
        "dataloader_pin_memory": torch.cuda.is_available(),
    }


def optimisers_of(job: dict[str, Any], model: Any) -> tuple[Any, Any]:
    rates = job["rates"]
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=1.0, betas=(0.9, 0.95), weight_decay=job["weight_decay"], fused=True
    )
    return optimiser, torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: rates[min(step, len(rates) - 1)])


def imitate(job: dict[str, Any], folder: str) -> dict[str, Any]:
    """Rows in the order in which they come, or as the trainer draws them."""
    model, tokenizer = opened(job)
    rows = [
        {"input_ids": row["ids"], "labels": [-100] * row["start"] + row["ids"][row["start"] :]} for row in job["rows"]
    ]
    losses: list[float] = []
    tokens: list[int] = []

    class Trainer(SFTTrainer):  # type: ignore[misc]
        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            dataset = self.train_dataset if train_dataset is None else train_dataset
            return SequentialSampler(dataset) if job["as_given"] else super()._get_train_sampler(train_dataset)

        def training_step(self, model: Any, inputs: Any, *more: Any, **others: Any) -> Any:
            tokens.append(int(inputs["attention_mask"].sum()))
            loss = super().training_step(model, inputs, *more, **others)
            losses.append(float(loss))
            return loss

    watch = Watch()
    arguments = SFTConfig(**settings_of(job, folder), per_device_train_batch_size=job["batch"], packing=False)
    Trainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[watch],
        optimizers=optimisers_of(job, model),
    ).train()
    return {"seconds": watch.seconds, "tokens": tokens, "losses": losses}


def reinforce(job: dict[str, Any], folder: str) -> dict[str, Any]:
    """`batch` prompts a step, `samples` answers to each; the reward is likeness to the gold answer's text."""
    model, tokenizer = opened(job)
    lengths: list[float] = []

    def likeness(completions: list[str], gold: list[str], **_: Any) -> list[float]:
        return [difflib.SequenceMatcher(None, a, b).ratio() for a, b in zip(completions, gold, strict=True)]

    watch = Watch()
    arguments = GRPOConfig(
        **settings_of(job, folder),
        per_device_train_batch_size=job["batch"] * job["samples"],
        num_generations=job["samples"],
        max_completion_length=job["longest"],
        temperature=1.0,
        beta=0.0,
    )
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=likeness,
        args=arguments,
        train_dataset=Dataset.from_list([{"prompt": row["prompt"], "gold": row["gold"]} for row in job["rows"]]),
        processing_class=tokenizer,
        callbacks=[watch],
        optimizers=optimisers_of(job, model),
    )
    trainer.train()
    for record in trainer.state.log_history:
        lengths += [record[name] for name in ("completions/mean_length",) if name in record]
    rewards = [record["reward"] for record in trainer.state.log_history if "reward" in record]
    return {"seconds": watch.seconds, "lengths": lengths, "rewards": rewards}


def peak_bytes() -> int:
    """Most memory that this process has held; on a GPU, of the GPU's."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    status = Path("/proc/self/status")
    if status.is_file():  # `getrusage` would count the parent's, too
        line = next(line for line in status.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        report = {"imitate": imitate, "reinforce": reinforce}[job["kind"]](job, folder)
    report["peak_bytes"] = peak_bytes()
    report["versions"] = {name: metadata.version(name) for name in PACKAGES}
    Path(sys.argv[2]).write_text(json.dumps(report), encoding="utf-8")


if __name__ == "__main__":
    main()
