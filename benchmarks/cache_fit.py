"""What it is worth that a model fits in the processor's last-level cache.

One model at several sizes (its first blocks; files of llama.cpp's types), on each engine. A step is a request of one
token that is answered by one token: every weight is read once, as for each token of an answer. It is timed right after
another step of the same model (warm); after memory was written over that pushes weights out of all caches (cold); and
after as long a pause in which the processor counts and touches no memory (rested): threads fall asleep in both. What
cold steps take more than rested ones is what came back from memory; of files far larger than the cache, whose weights
never stay, it is what anything but weights costs. Plain reads of half a cache are timed the same three ways: where
rested ones are as slow as cold ones, others may empty the cache in a pause, and cold minus warm is all that bounds it.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks._compress_rival import shortened
from benchmarks._measuring import Row
from benchmarks._table import arguments, mistakes_told, publish
from supertiny.core.errors import UserError
from supertiny.core.files import read_json
from supertiny.core.methods import build
from supertiny.core.progress import Progress
from supertiny.core.protocols import Engine
from supertiny.core.records import Prompt, Sampling

MODEL = "smollm2-135m-instruct-q4_1"
PACKAGES = ["supertiny", "torch", "transformers", "gguf", "openvino-genai", "llama-cpp-python"]
ENGINES = ("openvino", "llama_cpp")
SIZES = ((2, "q4_0"), (4, "q4_0"), (6, "q4_0"), (10, "q4_0"), (16, "q4_0"), (30, "q4_0"), (30, "q8_0"))
WORDS = ("one", "red", "off", "home", "light", "two", "up", "warm", "door", "now")
WARM_UP = 3
_TIMES_THE_CACHE = 8  # of it are written to push weights out; one would leave some where it is not a strict LRU
_SIZE_FILE = Path("/sys/devices/system/cpu/cpu0/cache/index3/size")


@dataclass(frozen=True)
class Turns:
    """What was measured of one thing in threes; of a model's steps seconds."""

    warm: Sequence[float]
    rested: Sequence[float]
    cold: Sequence[float]

    def figures(self, name: str, of: str, size: int) -> list[Row]:
        more = [1000 * (cold - rested) for cold, rested in zip(self.cold, self.rested, strict=True)]
        low, middle, high = statistics.quantiles(more, n=4)
        return [
            (f"{name}_megabytes", f"{of}: size of the file", size / 1e6),
            (f"{name}_warm", "milliseconds of a step with warm caches", 1000 * statistics.median(self.warm)),
            (f"{name}_rested", "after a pause", 1000 * statistics.median(self.rested)),
            (f"{name}_back", "cold minus rested, median of neighbours", middle),
            (f"{name}_back_low", "lower quartile", low),
            (f"{name}_back_high", "upper quartile", high),
        ]


def main() -> None:
    with mistakes_told():
        run(parser().parse_args())


def parser() -> argparse.ArgumentParser:
    made = arguments(__doc__.splitlines()[0], "cache_fit")
    made.add_argument("--student", default=MODEL, help="a model of the catalogue or a Hugging Face folder")
    made.add_argument("--engine", choices=ENGINES, action="append", help="this engine alone; may be given again")
    made.add_argument("--steps", type=int, default=80, help="of each kind and model")
    made.add_argument("--cache-megabytes", type=float, default=0, help="of the last-level cache; 0 asks the system")
    return made


def run(options: argparse.Namespace) -> None:
    count = 8 if options.quick else options.steps
    if count < 2:
        raise UserError(f"--steps {count}: a spread needs two", "give 2 or more")
    megabytes, progress = options.cache_megabytes or cache_megabytes(), Progress()
    flush = flusher(megabytes)
    rows: list[Row] = [("cache_megabytes", "last-level cache", megabytes), *reads(megabytes, flush, count)]
    with tempfile.TemporaryDirectory() as place:
        files = files_of(options.student, Path(place), progress)
        for engine in options.engine or ENGINES:
            if engine == "llama_cpp" and find_spec("llama_cpp") is None:
                progress.note("llama_cpp: not measured, llama-cpp-python is not installed")
                continue
            with progress.task(f"steps of {engine}", len(files), "models") as tick:
                for name, file in files.items():
                    turns = measured(opened(engine, file), flush, count)
                    rows += turns.figures(f"{engine}_{name}", name, file.stat().st_size)
                    tick(1)
    rows += verdicts(rows, megabytes)
    publish(f"cache_fit: {options.student}", rows, PACKAGES, options.json)


def cache_megabytes() -> float:
    """Size of the last-level cache as Linux tells it. Raises UserError where it does not."""
    words = _SIZE_FILE.read_text(encoding="ascii").strip() if _SIZE_FILE.is_file() else ""
    if not words.endswith("K") or not words[:-1].isdigit():
        raise UserError("this system does not tell its last-level cache", "give --cache-megabytes")
    return int(words[:-1]) * 1024 / 1e6


def flusher(megabytes: float) -> Callable[[], float]:
    """Writes over several times as much memory as the cache holds; gives the seconds that it took."""
    import numpy as np

    buffer = np.zeros(int(_TIMES_THE_CACHE * megabytes * 1e6) // 8)

    def flush() -> float:
        began = time.perf_counter()
        buffer[...] += 1
        return time.perf_counter() - began

    return flush


def paused(seconds: float) -> None:
    """Busy, so that the processor's clock stays as it is."""
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass


def by_turns(measure: Callable[[], float], flush: Callable[[], float], count: int) -> Turns:
    """Warm, cold and rested measurements; the first few are left out."""
    warm, rested, cold = [], [], []
    for _ in range(count + WARM_UP):
        measure()  # not counted: brings everything in
        warm.append(measure())
        spent = flush()
        cold.append(measure())
        measure()
        paused(spent)
        rested.append(measure())
    return Turns(warm[WARM_UP:], rested[WARM_UP:], cold[WARM_UP:])


def reads(megabytes: float, flush: Callable[[], float], count: int) -> list[Row]:
    """How fast one thread sums half a cache of numbers, warm, rested and cold: what a cache could be worth at most."""
    import numpy as np

    buffer = np.ones(int(megabytes * 1e6 / 2) // 8)

    def read() -> float:
        began = time.perf_counter()
        buffer.sum()
        return buffer.nbytes / 1e9 / (time.perf_counter() - began)

    turns = by_turns(read, flush, count)
    return [
        (f"read_{kind}", "GB/s of a buffer half as large", statistics.median(getattr(turns, kind)))
        for kind in ("warm", "rested", "cold")
    ]


def files_of(student: str, folder: Path, progress: Progress) -> dict[str, Path]:
    """Files of the first blocks of a model: what it writes means nothing, and takes as long as if it did."""
    from supertiny.engines._huggingface import huggingface_folder
    from supertiny.training.pupil import Pupil

    whole, made = huggingface_folder(student, "--student"), {}
    there = read_json(whole / "config.json")["num_hidden_layers"]
    sizes = dict.fromkeys((min(blocks, there), type) for blocks, type in SIZES)
    with progress.task("files", len(sizes), "models") as tick:
        for blocks, type in sizes:
            pupil = Pupil.open(whole, "float32")
            shortened(pupil.model, blocks)
            name = f"{type}_{blocks}_blocks"
            pupil.save(folder / f"{name}_student")
            exporter = build("exporters", {"method": "gguf", "type": type, "embedding": type})
            exporter.export(folder / f"{name}_student", folder / name)
            made[name] = folder / name / "model.gguf"
            tick(1)
    return made


def opened(engine: str, file: Path) -> Engine:
    settings: dict[str, Any] = {"method": engine}
    if engine == "openvino":
        settings |= {"precision": "float32", "cache_gigabytes": 1}
    made: Engine = build("engines", settings).open(file)
    return made


def measured(engine: Engine, flush: Callable[[], float], count: int) -> Turns:
    """Seconds of steps of an engine, which is closed then."""
    places = itertools.count()

    def step() -> float:
        prompt = Prompt(text=WORDS[next(places) % len(WORDS)])
        began = time.perf_counter()
        engine.complete([prompt], Sampling(max_tokens=1))
        return time.perf_counter() - began

    try:
        return by_turns(step, flush, count)
    finally:
        engine.close()


def verdicts(rows: Sequence[Row], megabytes: float) -> list[Row]:
    """Per engine: what comes back from memory, of files that fit in the cache and of those more than twice as large."""
    values = {name: value for name, _, value in rows}
    found: list[Row] = []
    for engine in ENGINES:
        names = [n.removesuffix("_megabytes") for n in values if n.startswith(engine) and n.endswith("_megabytes")]
        for what, sizes in (("fitting", (0.0, megabytes)), ("large", (2 * megabytes, float("inf")))):
            those = [name for name in names if sizes[0] <= values[f"{name}_megabytes"] <= sizes[1]]
            if those:
                meaning = "files that fit in the cache" if what == "fitting" else "files of more than twice its size"
                back = statistics.median(values[f"{name}_back"] for name in those)
                share = statistics.median(values[f"{name}_back"] / values[f"{name}_rested"] for name in those)
                found.append((f"{engine}_{what}_back", f"cold minus rested, milliseconds, median over {meaning}", back))
                found.append((f"{engine}_{what}_back_share", "the same as a share of a rested step", share))
    return found


if __name__ == "__main__":
    main()
