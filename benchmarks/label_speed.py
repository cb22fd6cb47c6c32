"""Requests labelled per second: the default engine, and the whole pipeline on it, against what one writes first.

`engine`: the same real requests with the same messages, the same JSON Schema and the same model, greedily, against a
plain loop over llama-cpp-python's own chat call; once with the plain prompt (task and functions, which every prompt
shares, and the request), once with the six nearest solved examples between them (which no two prompts share). The
default engine is used as the report and the pipeline use it: the plain prompt under the schema at once, since a model
without examples leaves it nearly always; prompts with examples freely, since what stands in the schema is what the
schema would have given, and only the rest is written again under it. `pipeline`: retrieve, fill and check against the
same steps in such a loop. `rivals`: our client, distilabel's and curator's on one local server. Loops over long prompts
are slow and are timed on fewer of the requests; rates are compared.

The hardware's limit is the time that the tokens' matrix products alone would take: prompt tokens that no earlier prompt
shares at the measured rate of products, and per decoding step of a full batch one reading of the weights at the
measured memory bandwidth.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

from benchmarks._pipeline_speed import EXAMPLES, MAX_TOKENS, NOTHING, chat_messages, run_naive, run_pipeline
from benchmarks._table import arguments, mistakes_told, publish
from supertiny.core.errors import UserError
from supertiny.core.methods import build
from supertiny.core.models import path_of
from supertiny.core.nearest import NearestExamples
from supertiny.core.protocols import Done
from supertiny.core.records import Completion, Grammar, Prompt, Sampling, Tool
from supertiny.core.task import Task, load_task

MODEL = "qwen2.5-coder-1.5b-instruct-q4_k_m"
PARAMETERS = 1.31e9  # that every prompt token is multiplied with: all but the embedding table
TASK = Path(__file__).parents[1] / "examples" / "smart_home"
PARTS = ("engine", "pipeline", "rivals")
REQUESTS, REQUESTS_OF_LOOPS = 200, 60
PACKAGES = ["supertiny", "openvino", "openvino-genai", "llama-cpp-python", "torch", "distilabel", "bespokelabs-curator"]
Row = tuple[str, str, float]


def main() -> None:
    with mistakes_told():
        run(options_of(sys.argv[1:]))


def run(options: argparse.Namespace) -> None:
    if importlib.util.find_spec("llama_cpp") is None:
        raise UserError("llama-cpp-python, the peer, is not installed", "run: make benchmarks")
    task = load_task(options.task)
    count, few = (20, 6) if options.quick else (options.requests, min(options.requests, REQUESTS_OF_LOOPS))
    rows: list[Row] = [("requests", "requests answered by ours", float(count)), ("loop_requests", "by loops", few)]
    details: dict[str, Any] = {}
    try:
        for part in options.part or PARTS:
            if part == "engine":
                rows += engine_rows(task, count, few)
            elif part == "pipeline":
                rows += pipeline_rows(task, count, few)
            else:
                rival_rows, details = rivals_rows(task, count, options.rivals_python)
                rows += rival_rows
    finally:  # a part takes many minutes: what was measured before one fails is not lost
        if len(rows) > 2:
            publish(f"label_speed: {count} requests, {MODEL}", rows, PACKAGES, options.json, details)


def options_of(words: Sequence[str]) -> argparse.Namespace:
    parser = arguments(__doc__.splitlines()[0], "label_speed")
    parser.add_argument("--task", type=Path, default=TASK, help="task folder with requests")
    parser.add_argument("--part", choices=PARTS, action="append", help="this part alone; may be given again")
    parser.add_argument("--requests", type=int, default=REQUESTS, help="requests answered by ours")
    parser.add_argument("--rivals-python", type=Path, metavar="PYTHON", help="one that has distilabel or curator")
    return parser.parse_args(words)


def engine_rows(task: Task, count: int, few: int) -> list[Row]:
    """The default engine against the plain loop, and against what the hardware can do."""
    rates = hardware_rates()
    return [
        *compared(task, prompts_of(task, count, 0), count, "", "plain prompt", rates),
        *compared(task, prompts_of(task, count, EXAMPLES), few, "nearest_", "six nearest examples", rates),
        ("product_gigaflops", "measured matrix products, bf16", rates["product_gigaflops"]),
        ("read_gigabytes_per_second", "measured reading of memory", rates["read_gigabytes_per_second"]),
    ]


def compared(
    task: Task, prompts: Sequence[Prompt], loop_requests: int, prefix: str, what: str, rates: dict[str, float]
) -> list[Row]:
    """Figures of one kind of prompt: the engine on all of them, the plain loop on the first `loop_requests`."""
    schema = schema_of(task.tools)
    ours, ours_seconds = run_engine(prompts, schema, freely=bool(prefix))
    theirs, theirs_seconds = run_plain_loop(prompts[:loop_requests], schema)
    limit = limit_seconds(ours, rates)
    ours_rate, theirs_rate = len(prompts) / ours_seconds, len(theirs) / theirs_seconds
    same = sum(_meaning(a.text) == _meaning(b) for a, b in zip(ours, theirs, strict=False)) / len(theirs)
    return [
        (f"{prefix}engine_requests_per_second", f"{what}: openvino, the default engine", ours_rate),
        (f"{prefix}plain_loop_requests_per_second", f"{what}: create_chat_completion in a loop", theirs_rate),
        (f"{prefix}plain_loop_requests", f"{what}: requests answered by the loop", float(len(theirs))),
        (f"{prefix}engine_ratio", f"{what}: the default engine over the plain loop", ours_rate / theirs_rate),
        (f"{prefix}same_answer_share", f"{what}: answers that mean the same in both", same),
        (f"{prefix}tokens_in", f"{what}: prompt tokens, all requests", float(sum(c.tokens_in for c in ours))),
        (f"{prefix}tokens_cached", f"{what}: of these, shared, once", float(sum(c.tokens_cached for c in ours))),
        (f"{prefix}tokens_out", f"{what}: tokens written by the engine", float(sum(c.tokens_out for c in ours))),
        (f"{prefix}limit_requests_per_second", f"{what}: the hardware's limit", len(prompts) / limit),
        (f"{prefix}share_of_limit", f"{what}: the default engine's share of that", limit / ours_seconds),
    ]


def pipeline_rows(task: Task, count: int, few: int) -> list[Row]:
    """Retrieve, fill and check: the library's against the same steps one request after the other."""
    requests = [example.request for example in task.unlabelled[:count]]
    engine = build("engines", {"method": "openvino", "model": MODEL}).open()
    ours = run_pipeline(task, requests, engine)
    engine.close()
    naive = run_naive(task, requests[:few], schema_of(task.tools), MODEL)
    return [
        ("pipeline_requests_per_second", "retrieve, fill, check", ours.requests_per_second),
        ("naive_requests_per_second", "the same steps on llama-cpp-python", naive.requests_per_second),
        ("pipeline_ratio", "the pipeline over the naive one", ours.requests_per_second / naive.requests_per_second),
        ("pipeline_right_share", "exact calls of the pipeline", ours.right_share(task, requests)),
        ("naive_right_share", "exact calls of the naive one, on its requests", naive.right_share(task, requests[:few])),
    ]


def rivals_rows(task: Task, count: int, python: Path | None) -> tuple[list[Row], dict[str, Any]]:
    """Our client against others on the same local server; those that are not installed are named in a line."""
    from benchmarks._rivals import drive

    block = {"method": "openvino", "model": MODEL}
    rates, versions, missing = drive(
        lambda: build("engines", block).open(), prompts_of(task, count, EXAMPLES), MODEL, python
    )
    rows = [(f"server_{name}_requests_per_second", f"{name} on the local server", rate) for name, rate in rates.items()]
    ours = rates["supertiny"]
    rows += [(f"{name}_ratio", f"ours over {name}", ours / rate) for name, rate in rates.items() if name in versions]
    for line in missing:
        print(line)
    return rows, {"rivals": versions, "rivals_missing": missing}


def prompts_of(task: Task, count: int, examples: int) -> list[Prompt]:
    """Requests of the pool with the task's functions and so many nearest solved examples."""
    index = NearestExamples(task.labelled)
    texts = [example.request.text for example in task.unlabelled[:count]]
    prompts = []
    for text, near in zip(texts, index.nearest(texts, examples), strict=True):
        shown = [task.labelled[place] for place, _ in reversed(near)]
        prompts.append(Prompt(tuple(chat_messages(task, shown, text)), shared=1))
    return prompts


def schema_of(tools: Sequence[Tool]) -> dict[str, Any]:
    """One call of one function, or none."""
    empty: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
    shapes = [(NOTHING, empty), *((tool.name, dict(tool.parameters)) for tool in tools)]
    return {
        "anyOf": [
            {
                "type": "object",
                "properties": {"name": {"const": name}, "arguments": {**shape, "additionalProperties": False}},
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
            for name, shape in shapes
        ]
    }


def run_engine(prompts: Sequence[Prompt], schema: dict[str, Any], freely: bool) -> tuple[list[Completion], float]:
    """Completions that keep to the schema, and the seconds of all; `freely` asks for the schema where it was left."""
    engine = build("engines", {"method": "openvino", "model": MODEL}).open()
    grammar, lawful = Grammar("json_schema", json.dumps(schema)), Draft202012Validator(schema)
    bounds = None if freely else [grammar] * len(prompts)
    started = time.perf_counter()
    completions = engine.complete(prompts, Sampling(MAX_TOKENS), bounds, _ticker(len(prompts)))
    broken = [index for index, each in enumerate(completions) if freely and not _is_lawful(each.text, lawful)]
    again = engine.complete([prompts[i] for i in broken], Sampling(MAX_TOKENS), [grammar] * len(broken))
    seconds = time.perf_counter() - started
    engine.close()
    for index, each in zip(broken, again, strict=True):
        completions[index] = each
    print(f"{len(broken)} of {len(prompts)} were written again under the schema", file=sys.stderr)
    return completions, seconds


def _is_lawful(text: str, schema: Draft202012Validator) -> bool:
    try:
        return bool(schema.is_valid(json.loads(text)))
    except json.JSONDecodeError:
        return False


def run_plain_loop(prompts: Sequence[Prompt], schema: dict[str, Any]) -> tuple[list[str], float]:
    """What a person writes first: one chat call after another; the package reuses the last prompt's beginning."""
    import llama_cpp

    model = llama_cpp.Llama(str(path_of(MODEL)), n_ctx=8192, verbose=False)
    tick = _ticker(len(prompts))
    texts = []
    started = time.perf_counter()
    for index, prompt in enumerate(prompts):
        messages: Any = [dict(message) for message in prompt.messages]
        answer: Any = model.create_chat_completion(
            messages=messages,
            response_format={"type": "json_object", "schema": schema},
            max_tokens=MAX_TOKENS,
            temperature=0.0,
        )
        texts.append(str(answer["choices"][0]["message"]["content"]))
        tick(index, Completion(texts[-1]))
    seconds = time.perf_counter() - started
    model.close()
    return texts, seconds


def hardware_rates() -> dict[str, float]:
    """Best of several: bf16 matrix products in GFLOP/s, and reading of memory in GB/s, with all threads."""
    import torch

    left, right = torch.randn(512, 1536).bfloat16(), torch.randn(1536, 8960).bfloat16()
    weights = torch.ones(1 << 28, dtype=torch.float32)  # 1 GiB, far beyond any cache
    products, reads = [], []
    for _ in range(8):
        started = time.perf_counter()
        torch.mm(left, right)
        products.append(time.perf_counter() - started)
    for _ in range(4):
        started = time.perf_counter()
        weights.sum()
        reads.append(time.perf_counter() - started)
    operations = 2 * left.shape[0] * left.shape[1] * right.shape[1]
    return {
        "product_gigaflops": operations / min(products) / 1e9,
        "read_gigabytes_per_second": weights.numel() * 4 / min(reads) / 1e9,
    }


def limit_seconds(completions: Sequence[Completion], rates: dict[str, float]) -> float:
    fresh = sum(c.tokens_in - c.tokens_cached for c in completions)
    written = sum(c.tokens_out for c in completions)
    reading = 2 * PARAMETERS * fresh / (rates["product_gigaflops"] * 1e9)
    passes = written / build("engines", "openvino").max_batch
    weights = path_of(MODEL).stat().st_size / (rates["read_gigabytes_per_second"] * 1e9)
    per_pass = 2 * PARAMETERS * written / max(passes, 1) / (rates["product_gigaflops"] * 1e9)
    return float(reading + passes * max(weights, per_pass))


def _meaning(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _ticker(total: int) -> Done:
    done: list[int] = []

    def tick(index: int, completion: Completion) -> None:
        done.append(index)
        end = "\n" if len(done) == total else ""
        print(f"\r{len(done)} of {total}", end=end, file=sys.stderr, flush=True)

    return tick


if __name__ == "__main__":
    main()
