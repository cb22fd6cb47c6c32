"""Tokens a second and peak memory of training, side by side with TRL's SFTTrainer and GRPOTrainer.

`sft`: the imitate learner and SFTTrainer on the same rows of SNIPS, same model, batch, precision, optimiser and
schedule, one pass each; both sides see the same rows, ours in batches of like length. TRL stands three times: as it is
fastest here (plain attention, no checkpointing) with its own random order, which `sft_tokens_ratio` and
`sft_memory_ratio` compare with; the same in our very batches, whose first 20 losses stand beside ours; and with all its
defaults (checkpointing on), which need less memory. `grpo`: reinforce and GRPOTrainer from the same taught student.

Each run is a process of its own; ours and TRL's alternate, ratios are of neighbours, and their median, lowest and
highest are told. Tokens are those of the rows, padding is not counted. The hardware's limit is the best measured rate
of matrix products in the same run; our share of it counts only what rows without padding and answer logits need. Where
the processor does not multiply bfloat16 itself, float32 is measured, and bfloat16 is left out: it would be emulated.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks import _speed_jobs as jobs
from benchmarks._data import folder_of, snips_task
from benchmarks._speed_jobs import Report, Setting, ratios, with_spread
from benchmarks._table import arguments, mistakes_told, print_rows, publish
from supertiny.engines._huggingface import huggingface_folder
from supertiny.training.learners.imitate import Imitate

MODEL = "smollm2-135m-instruct-q4_1"
PACKAGES = ["supertiny", "torch", "transformers", "accelerate"]
PARTS = ("sft", "losses", "grpo")
BATCH, STEPS, QUICK_STEPS = 16, 22, 5
COMPARED = 20  # losses that stand side by side
SAMPLES, REQUESTS, LONGEST = 8, 8, 48
TEACHING = Imitate(learning_rate=3e-4, passes=2, rows=BATCH)
Row = tuple[str, str, float]


def main() -> None:
    with mistakes_told():
        run(options_of(sys.argv[1:]))


def options_of(words: Sequence[str]) -> argparse.Namespace:
    parser = arguments(__doc__.splitlines()[0], "transfer_speed")
    parser.add_argument("--part", choices=PARTS, action="append", help="this part alone; may be given again")
    parser.add_argument("--data", type=Path, help="folder that holds the folder snips")
    parser.add_argument("--student", default=MODEL, help="a model of the catalogue or a Hugging Face folder")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each side")
    parser.add_argument("--precision", choices=("auto", "float32", "bfloat16"), default="auto")
    parser.add_argument("--rival-python", type=Path, metavar="PYTHON", help="one that has trl and datasets")
    return parser.parse_args(words)


@dataclass
class Found:
    """What the parts measured."""

    rows: list[Row] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)
    losses: list[dict[str, Any]] = field(default_factory=list)


def run(options: argparse.Namespace) -> None:
    rival = jobs.check_rival(options.rival_python)
    setting = setting_of(options, rival)
    found = Found([("rows", f"rows of SNIPS, {setting.precision}", float(len(setting.lessons)))])
    try:
        for part in options.part or PARTS:
            {"sft": sft, "losses": losses, "grpo": grpo}[part](setting, options, found)
    finally:  # a part takes many minutes: what was measured before one fails is not lost
        if len(found.rows) > 1:
            if found.losses:
                print_rows("losses of the same batches, step by step", found.losses)
            publish(
                f"transfer_speed: {options.student}, batch {BATCH}", found.rows, PACKAGES, options.json, found.details
            )


def setting_of(options: argparse.Namespace, rival: Path) -> Setting:
    from transformers import AutoTokenizer

    from supertiny.training.pupil import resolved

    steps = QUICK_STEPS if options.quick else STEPS
    task = snips_task(folder_of("snips", options.data), steps * BATCH, jobs.SEED)
    folder = huggingface_folder(options.student, "--student")
    lessons = jobs.lessons_of(task, AutoTokenizer.from_pretrained(folder), steps * BATCH)
    precision = str(resolved(options.precision)).removeprefix("torch.")
    return Setting(folder, task, precision, lessons, rival, BATCH)


def sft(setting: Setting, options: argparse.Namespace, found: Found) -> None:
    """Speed and memory of supervised fine-tuning, ours and three of TRL's by turns."""
    arms = {
        "trl": jobs.rival_imitation(setting, False, "eager", False),
        "trl_same_batches": jobs.rival_imitation(setting, True, "eager", False),
        "trl_default": jobs.rival_imitation(setting, False, "sdpa", True),
    }
    reports: dict[str, list[Report]] = {name: [] for name in ("ours", *arms)}
    limits: list[float] = []
    for turn in range(1 if options.quick else options.repeats):
        _tell(f"sft, run {turn + 1}: matrix products, ours, TRL {len(arms)} times")
        limits.append(limit_of(setting.precision))
        reports["ours"].append(jobs.ours(jobs.imitation(setting)))
        for name, job in arms.items():
            reports[name].append(jobs.rivals(job, rival_of(setting)))
    speeds = {name: [jobs.rate_of(report) for report in of] for name, of in reports.items()}
    peaks = {name: [report["peak_bytes"] / 1e9 for report in of] for name, of in reports.items()}
    titles = {
        "ours": "supertiny",
        "trl": "TRL, plain attention, no checkpointing",
        "trl_same_batches": "the same in our batches",
        "trl_default": "TRL, all defaults (checkpointing)",
    }
    for name, title in titles.items():
        found.rows += with_spread(f"sft_{name}_tokens_per_second", f"{title}: tokens/s", speeds[name])
        found.rows += with_spread(f"sft_{name}_peak_gigabytes", f"{title}: peak memory", peaks[name])
    for name in arms:
        figure = "sft" + name.removeprefix("trl")
        title = titles[name]
        found.rows += with_spread(
            f"{figure}_tokens_ratio", f"tokens/s over {title}", ratios(speeds["ours"], speeds[name])
        )
        found.rows += with_spread(f"{figure}_memory_ratio", f"memory over {title}", ratios(peaks["ours"], peaks[name]))
    done = [operations(setting, report) / 1e9 for report in reports["ours"]]
    found.rows += with_spread("arithmetic_gigaflops", "our arithmetic, padding not counted", done)
    found.rows += with_spread("product_gigaflops", f"measured matrix products, {setting.precision}", limits)
    found.rows += with_spread("matmul_share", "our arithmetic over matrix products", ratios(done, limits))
    found.details["versions_of_rival"] = reports["trl"][0]["versions"]
    compare(found, setting.precision, reports["ours"][0], reports["trl_same_batches"][0])


def losses(setting: Setting, options: argparse.Namespace, found: Found) -> None:
    """First losses in the same batches in the precision that `sft` did not take; each side against its own float32."""
    other = "float32" if setting.precision == "bfloat16" else "bfloat16"
    if other == "bfloat16" and not multiplies_bfloat16():
        _tell("losses in bfloat16 are left out: this processor does not multiply it")
        return
    _tell(f"losses in {other}: ours, TRL")
    mine = jobs.ours(jobs.imitation(setting, other))
    theirs = jobs.rivals(jobs.rival_imitation(setting, True, "eager", False, other), rival_of(setting))
    compare(found, other, mine, theirs)
    columns = {f"{side}_{precision}" for side in ("ours", "trl") for precision in ("float32", "bfloat16")}
    if found.losses and columns <= found.losses[0].keys():
        for side in ("ours", "trl"):
            apart = [abs(row[f"{side}_bfloat16"] - row[f"{side}_float32"]) for row in found.losses]
            found.rows.append((f"loss_{side}_bfloat16_apart", f"{side}: bf16 from its own fp32, mean", _mean(apart)))


def compare(found: Found, precision: str, mine: Report, theirs: Report) -> None:
    """Puts the first losses of both sides beside each other."""
    pairs = list(zip(mine["losses"], theirs["losses"], strict=False))[:COMPARED]
    if not found.losses:
        found.losses += [{"step": place + 1} for place in range(len(pairs))]
    for row, (own, other) in zip(found.losses, pairs, strict=True):
        row |= {f"ours_{precision}": own, f"trl_{precision}": other}
    apart = [abs(own - other) for own, other in pairs]
    own, other = (_mean(values) for values in zip(*pairs, strict=True))
    found.rows += [
        (f"loss_{precision}_apart_most", f"losses of {len(pairs)} equal batches: furthest apart", max(apart)),
        (f"loss_{precision}_apart_of_means", "their means apart", abs(own - other)),
    ]
    found.details["losses"] = found.losses


def grpo(setting: Setting, options: argparse.Namespace, found: Found) -> None:
    """Steps of reinforcement a second, both from one student that was taught first."""
    steps = 3 if options.quick else 6
    with tempfile.TemporaryDirectory() as folder:
        _tell("grpo: teaching the student that both start from")
        taught = Path(folder) / "taught"
        teaching = jobs.imitation(replace(setting, learner=TEACHING))
        jobs.ours({**teaching, "passes": TEACHING.passes, "into": str(taught)})
        job = jobs.practice_job(setting, taught, steps, REQUESTS, SAMPLES, LONGEST)
        mine, theirs = [], []
        for turn in range(1 if options.quick else options.repeats):
            _tell(f"grpo, run {turn + 1}: ours, TRL")
            mine.append(jobs.ours(job))
            theirs.append(jobs.rivals(job, rival_of(setting)))
    speeds = [[jobs.steps_rate_of(report) for report in side] for side in (mine, theirs)]
    what = f"{REQUESTS} requests, {SAMPLES} answers each"
    found.rows += with_spread("grpo_ours_steps_per_second", f"supertiny: steps/s, {what}", speeds[0])
    found.rows += with_spread("grpo_trl_steps_per_second", "TRL, plain attention, no checkpointing", speeds[1])
    found.rows += with_spread("grpo_steps_ratio", "steps/s over TRL", ratios(*speeds))
    for name, side in (("ours", mine), ("trl", theirs)):
        found.rows.append((f"grpo_{name}_answer_tokens", f"{name}: tokens an answer", _mean(side[0]["lengths"])))
        found.rows.append((f"grpo_{name}_peak_gigabytes", f"{name}: peak memory", side[0]["peak_bytes"] / 1e9))
    found.rows.append(
        ("grpo_signal", "ours: share of requests whose answers differ in reward", _mean(mine[0]["signal"]))
    )


def operations(setting: Setting, report: Report) -> float:
    """Operations a second of one forward and two backward products with each weight, of rows without padding."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(setting.model)
    width, deep = config.hidden_size, config.num_hidden_layers
    head = getattr(config, "head_dim", None) or width // config.num_attention_heads
    attended = head * (config.num_attention_heads + config.num_key_value_heads)
    block = 2 * width * attended + 3 * width * config.intermediate_size
    tokens = sum(len(lesson.ids) for lesson in setting.lessons)
    answers = sum(len(lesson.ids) - lesson.answer_start for lesson in setting.lessons)
    pairs = sum(len(lesson.ids) ** 2 for lesson in setting.lessons)
    whole = 6.0 * (deep * block * tokens + width * config.vocab_size * answers)
    whole += 12.0 * deep * config.num_attention_heads * head * pairs
    # Of all rows, by the tokens that were timed.
    share = sum(report["tokens"][jobs.UNTIMED :]) / tokens
    return whole * share / sum(report["seconds"][jobs.UNTIMED :])


def limit_of(precision: str) -> float:
    """Measured GFLOP/s of matrix products."""
    return float(jobs.ours({"kind": "products", "precision": precision, "repeats": 8})["gigaflops"])


def multiplies_bfloat16() -> bool:
    import torch

    from supertiny.training.pupil import resolved

    return resolved("auto") == torch.bfloat16


def rival_of(setting: Setting) -> Path:
    assert setting.rival is not None
    return setting.rival


def _mean(values: Sequence[float]) -> float:
    return sum(values) / max(1, len(values))


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
