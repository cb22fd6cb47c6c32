"""From 0.5 to less than 0.4 billion weights, and from 135 million to 100 and 70, at 4 bits: what the task loses.

Students are taught on gold labels (or on a finished run's rows: --run) and compressed by the real stages. Student and
artifact answer the same rows of valid, without a grammar, as GGUF files on one engine: the student as f16. The student
was chosen among its checkpoints on valid too, which flatters the student alone. Finished stages and measurements are
files and are not done again.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks._staged import (
    Bench,
    Figure,
    as_gguf,
    difference_figures,
    mean_by_row,
    median,
    opened,
    opens_in_transformers,
    parameters_of,
    prepared,
    settings_of,
    share_figures,
    staged,
)
from benchmarks._table import arguments, mistakes_told, print_rows, publish
from supertiny.core.artifact import Artifact
from supertiny.core.files import read_json
from supertiny.core.methods import build
from supertiny.core.progress import Progress
from supertiny.core.recipe import Recipe, read_recipe
from supertiny.core.run import Run

PARTS = ("half", "small")
PACKAGES = ["supertiny", "torch", "transformers", "peft", "gguf", "openvino-genai", "llama-cpp-python"]
LATENCY_REQUESTS = 30
LIMIT, MARGIN = 0.40e9, 0.01
_EXAMPLE = Path(__file__).parents[1] / "examples" / "smart_home"
_LLAMA = {"method": "llama_cpp"}
_LET_PASS = {"margin": 1.0, "trust_margin": 1.0, "trust_rows": 0}  # what is asked here is how much is lost
_QUICK = {"evaluations": 1, "valid_rows": 20}


@dataclass(frozen=True)
class Rung:
    """How far the small student is to be brought, and by what."""

    steps: tuple[Mapping[str, Any], ...]
    most_weights: float
    margin: float
    """Share of valid by which exact calls may fall."""
    most_bytes: float = float("inf")
    speedup: float = 0.0
    """Against the unpruned student as q8_0."""


_TRIM = {"method": "trim_vocabulary", "extra_tokens": 4096}
_FILE = {"method": "gguf", "type": "q4_0"}
LADDER: Mapping[str, Rung] = {
    "100m": Rung((_TRIM, {"method": "narrow", "channels": 0.125}, _FILE), 100e6, 0.01, 60e6, 1.5),
    # In two cuts, each taught again: a student that has lost half its channels at once has little left to learn from.
    "70m": Rung(
        (_TRIM, {"method": "narrow", "channels": 0.27}, {"method": "narrow", "channels": 0.314}, _FILE), 70e6, 0.03
    ),
}
RECOVERY = {"method": "distil", "learning_rate": 2e-4, "passes": 3, "rows": 16}


@dataclass(frozen=True)
class Seen:
    """What one seed's student and artifact did."""

    student_hits: Sequence[bool]
    artifact_hits: Sequence[bool]
    seconds: Mapping[str, Sequence[float]]
    before: int
    after: int
    bytes: int
    more: Mapping[str, Any]


def main() -> None:
    options = parser().parse_args()
    with mistakes_told():
        run(options)


def parser() -> argparse.ArgumentParser:
    made = arguments(__doc__.splitlines()[0], "half_billion")
    made.add_argument("--part", choices=PARTS, action="append", help="this part alone; may be given again")
    made.add_argument("--seeds", type=int, nargs="+", default=[7], metavar="SEED")
    made.add_argument("--rows", type=int, default=0, help="rows to learn from; 0 is all")
    made.add_argument("--valid-rows", type=int, default=0, help="rows of valid to measure on; 0 is all")
    made.add_argument("--run", type=Path, metavar="FOLDER", help="a finished run, whose verified rows are learned")
    made.add_argument("--recipe", type=Path, default=_EXAMPLE / "recipe_half_billion.yaml", help="of the part half")
    made.add_argument("--small-recipe", type=Path, default=_EXAMPLE / "recipe.yaml", help="of the part small")
    made.add_argument(
        "--set", nargs="+", default=[], metavar="A.B=VALUE", help="other settings: transfer.adapter=full with a GPU"
    )
    made.add_argument("--folder", type=Path, default=Path("runs/benchmarks/half_billion"), help="of what was done")
    return made


def run(options: argparse.Namespace) -> None:
    parts, progress = options.part or list(PARTS), Progress()
    seeds = options.seeds[:1] if options.quick else options.seeds
    recipes = {(part, seed): recipe_of(part, seed, options) for part in parts for seed in seeds}  # mistakes come first
    figures: list[Figure] = []
    demands: list[dict[str, Any]] = []
    details: dict[str, Any] = {"seeds": seeds, "set": options.set, "run": str(options.run or "")}
    for part in parts:
        seen: dict[str, list[Seen]] = {}
        for seed in seeds:
            with opened(recipes[part, seed], progress) as opened_run:
                measure = half if part == "half" else small
                for name, one in measure(opened_run, options).items():
                    seen.setdefault(name, []).append(one)
        for name, several in seen.items():
            rung = LADDER.get(name) or Rung((), LIMIT, MARGIN)
            found = figures_of("" if part == "half" else f"small_{name}_", several)
            figures += found
            demands += demanded(name, rung, found)
            details[name] = [dict(one.more) for one in several]
    print_rows("half_billion: what is asked, and what was found", demands)
    publish("half_billion: student and artifact", figures, PACKAGES, options.json, {**details, "demands": demands})


def recipe_of(part: str, seed: int, options: argparse.Namespace) -> Recipe:
    """The recipe of a part, its results in a folder of the benchmark's. Raises UserErrors with its mistakes."""
    path = options.recipe if part == "half" else options.small_recipe
    overrides = [f"folder={options.folder / f'{part}-{seed}'}", f"seed={seed}", *options.set]
    recipe = read_recipe(path, overrides)
    transfer = {**recipe.sections["transfer"], "labelled_only": []}  # a floor that nobody looks at here
    compress = dict(recipe.sections["compress"])
    if options.quick:
        transfer |= _QUICK
        compress |= {"valid_rows": 20, "gate": _LET_PASS, "parity": 0.0}
    settings_of("transfer", transfer)
    settings_of("compress", compress)
    return replace(recipe, sections={**recipe.sections, "transfer": transfer, "compress": compress})


def half(run: Run, options: argparse.Namespace) -> dict[str, Seen]:
    """The recipe as it stands, in one artifact."""
    sections = dict(run.recipe.sections)
    student, read = taught(run, sections["transfer"], options)
    settings = settings_of("compress", sections["compress"])
    made, _ = staged(run, "compress", settings, read)
    bench = bench_of(run, settings, student, options)
    return {"half": seen_of(bench, student, made, {})}


def small(run: Run, options: argparse.Namespace) -> dict[str, Seen]:
    """The small student at every rung of the ladder."""
    sections = dict(run.recipe.sections)
    student, read = taught(run, sections["transfer"], options)
    found = {}
    for name, rung in LADDER.items():
        section = {**sections["compress"], "steps": list(rung.steps), "recovery": _recovery(options)}
        settings = settings_of("compress", {**section, "gate": _LET_PASS, "parity": 0.0})
        made, _ = staged(run, "compress", settings, read, f"compress_{name}")
        bench = bench_of(run, settings, student, options)
        beside = {"unpruned_q8_0": as_gguf(student, "q8_0", run.folder / "measured")}
        found[name] = seen_of(bench, student, made, beside)
    return found


def _recovery(options: argparse.Namespace) -> dict[str, Any]:
    return {**RECOVERY, "passes": 1} if options.quick else RECOVERY


def taught(run: Run, section: Mapping[str, Any], options: argparse.Namespace) -> tuple[Path, str]:
    """(folder of the transferred student, key of the stage)."""
    count = min(options.rows or 64, 64) if options.quick else options.rows
    read = prepared(run, run.recipe.sections["prototype"].get("curators", ()), count, options.run)
    place, key = staged(run, "transfer", settings_of("transfer", section), read)
    return place / "student", key


def bench_of(run: Run, settings: Any, student: Path, options: argparse.Namespace) -> Bench:
    rows = run.task.valid[: 20 if options.quick else options.valid_rows or None]
    form = build("formats", read_json(student / "supertiny.json")["format"])
    return Bench(run, form, settings.engine, rows, run.folder / "cells", settings.max_tokens)


def seen_of(bench: Bench, student: Path, made: Path, beside: Mapping[str, Path]) -> Seen:
    """Measures a student and the artifact that was made of it."""
    artifact = Artifact.open(made / "artifact")
    models = {"student": as_gguf(student, "f16", bench.run.folder / "measured"), "artifact": artifact.model}
    last = read_json(made / "steps.json")[-1]
    weights = opens_in_transformers(made / "student")
    more = {
        "type": artifact.type, "steps": read_json(made / "steps.json"), "fell_back": last["fell_back"],
        "opens_in_transformers": True, "llama_cpp": llama_exact(bench, artifact.model),
    }  # fmt: skip
    timed, count = {**models, **beside}, min(LATENCY_REQUESTS, len(bench.rows))
    seconds = bench.seconds(timed, count)
    if find_spec("llama_cpp") is not None:  # the same files elsewhere: engines differ in what four bits buy
        there = replace(bench, engine=_LLAMA).seconds(timed, count)
        seconds |= {f"llama_cpp_{name}": taken for name, taken in there.items()}
    hits = {name: bench.hits(model) for name, model in models.items()}
    before = parameters_of(student)
    return Seen(hits["student"], hits["artifact"], seconds, before, weights, artifact.bytes, more)


def llama_exact(bench: Bench, model: Path) -> float | str:
    """Share of valid that the artifact answers exactly in llama.cpp, or why that is not known."""
    if find_spec("llama_cpp") is None:
        return "not measured: llama-cpp-python is not installed"
    hits = replace(bench, engine=_LLAMA).hits(model)
    return sum(hits) / max(1, len(hits))


def figures_of(prefix: str, several: Sequence[Seen]) -> list[Figure]:
    """Figures of one artifact, over seeds: shares by row, sizes of the largest, times of all requests."""
    student = mean_by_row([one.student_hits for one in several])
    artifact = mean_by_row([one.artifact_hits for one in several])
    figures: list[Figure] = [
        (f"{prefix}parameters_before", "weights of the student", float(max(one.before for one in several))),
        (f"{prefix}parameters_after", "weights of the artifact", float(max(one.after for one in several))),
        *share_figures(f"{prefix}student_exact", "exact calls of the student on valid", student),
        *share_figures(f"{prefix}artifact_exact", "exact calls of the artifact", artifact),
        *difference_figures(f"{prefix}difference", "artifact minus student", artifact, student),
        (f"{prefix}artifact_bytes", "size of the artifact", float(max(one.bytes for one in several))),
        (f"{prefix}fell_back", "1 where the gate refused it and the student stands in its place",
         float(any(one.more["fell_back"] for one in several))),
    ]  # fmt: skip
    medians = {name: median([taken for one in several for taken in one.seconds[name]]) for name in several[0].seconds}
    for name, taken in medians.items():
        where = "in llama.cpp" if name.startswith("llama_cpp_") else "on the recipe's engine"
        figures.append((f"{prefix}{name}_p50_seconds", f"a single request, {where}", taken))
    for engine, where in (("", "on the recipe's engine"), ("llama_cpp_", "in llama.cpp")):
        for name in ("student", "unpruned_q8_0"):
            if engine + name in medians:
                ratio = medians[engine + name] / medians[f"{engine}artifact"]
                figures.append((f"{prefix}{engine}speedup_over_{name}", f"ratio of p50, {where}", ratio))
    if "llama_cpp_unpruned_q8_0" in medians:
        least = {name: min(medians[name], medians[f"llama_cpp_{name}"]) for name in ("unpruned_q8_0", "artifact")}
        ratio = least["unpruned_q8_0"] / least["artifact"]
        figures.append(
            (f"{prefix}fastest_speedup", "ratio of p50, each file on the engine that serves it faster", ratio)
        )
    known = [one.more["llama_cpp"] for one in several if not isinstance(one.more["llama_cpp"], str)]
    if known:
        figures.append(
            (f"{prefix}llama_cpp_exact", "exact calls of the artifact in llama.cpp", sum(known) / len(known))
        )
    return figures


def demanded(name: str, rung: Rung, figures: Sequence[Figure]) -> list[dict[str, Any]]:
    """What is asked of an artifact, and whether it was reached; of exact calls the mean counts, its interval beside."""
    values = {key.removeprefix(f"small_{name}_"): value for key, _, value in figures}
    apart, low, high = (values[f"difference{end}"] for end in ("", "_low", "_high"))
    lines = [
        ("weights", f"<= {rung.most_weights:,.0f}", f"{values['parameters_after']:,.0f}",
         values["parameters_after"] <= rung.most_weights),
        ("exact calls, minus the student's", f">= -{rung.margin}", f"{apart:.4f} [{low:.4f}, {high:.4f}]",
         apart >= -rung.margin - 1e-9),
    ]  # fmt: skip
    if not rung.steps:  # of the ladder's rungs it is asked how much is lost: their gate lets all pass
        lines.append(("promoted by the gate", "yes", "no" if values["fell_back"] else "yes", not values["fell_back"]))
    if rung.most_bytes < float("inf"):
        size = values["artifact_bytes"]
        lines.append(("bytes", f"<= {rung.most_bytes:,.0f}", f"{size:,.0f}", size <= rung.most_bytes))
    if rung.speedup:
        faster = values["speedup_over_unpruned_q8_0"]
        asked = f">= {rung.speedup}"
        lines.append(("p50, unpruned q8_0 over it", asked, f"{faster:.2f}", faster >= rung.speedup))
        if "fastest_speedup" in values:  # nobody need serve a file by an engine that is slow on the machine at hand
            faster = values["fastest_speedup"]
            lines.append(("p50, each on its faster engine", asked, f"{faster:.2f}", faster >= rung.speedup))
    llama = f"{values['llama_cpp_exact']:.3f} exact" if "llama_cpp_exact" in values else "not measured"
    lines.append(("opens in stock transformers", "yes", "yes", True))
    lines.append(("opens in llama.cpp", "yes", llama, "llama_cpp_exact" in values))
    return [
        {"artifact": name, "what": what, "asked": asked, "found": found, "reached": "yes" if reached else "no"}
        for what, asked, found, reached in lines
    ]


if __name__ == "__main__":
    main()
