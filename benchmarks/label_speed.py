"""Requests labelled per second: the default engine, against a plain loop over llama-cpp-python's own chat call.

Both answer the same real requests with the same messages, held to the same JSON Schema, with the same model, greedily;
once with the plain prompt (task and functions, which every prompt shares, and the request), once with the six nearest
solved examples between them (which no two prompts share; the loop answers fewer of these, and rates are compared).
The default engine is used as the report and the pipeline use it: the plain prompt under the schema at once, since a
model without examples leaves it nearly always; prompts with examples freely, since what stands in the schema is what
the schema would have given, and only the rest is written again under it.

The hardware's limit is the time that the tokens' matrix products alone would take: prompt tokens that no earlier prompt
shares at the measured rate of products, and per decoding step of a full batch one reading of the weights at the
measured memory bandwidth.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jsonschema import Draft202012Validator

from benchmarks._table import arguments, publish
from supertiny.core.methods import build
from supertiny.core.models import path_of
from supertiny.core.nearest import NearestExamples
from supertiny.core.records import Completion, Example, Grammar, Prompt, Sampling, Tool
from supertiny.core.task import Task, load_task

MODEL = "qwen2.5-coder-1.5b-instruct-q4_k_m"
PARAMETERS = 1.31e9  # that every prompt token is multiplied with: all but the embedding table
TASK = Path(__file__).parents[1] / "examples" / "smart_home"
EXAMPLES = 6
MAX_TOKENS = 96
NOTHING = "none"


def main() -> None:
    parser = arguments(__doc__.splitlines()[0], "label_speed")
    parser.add_argument("--task", type=Path, default=TASK, help="task folder with requests")
    options = parser.parse_args()
    if importlib.util.find_spec("llama_cpp") is None:
        print("error: llama-cpp-python, the peer, is not installed (run: make benchmarks)", file=sys.stderr)
        raise SystemExit(2)
    task = load_task(options.task)
    count, few = (20, 6) if options.quick else (200, 60)
    rates = hardware_rates()
    publish(
        f"label_speed: {count} requests, {MODEL}",
        [
            ("requests", "requests answered by the engine", float(count)),
            *compared(task, 0, count, count, rates),
            *compared(task, EXAMPLES, count, few, rates),
            ("product_gigaflops", "measured matrix products, bf16", rates["product_gigaflops"]),
            ("read_gigabytes_per_second", "measured reading of memory", rates["read_gigabytes_per_second"]),
        ],
        ["supertiny", "openvino", "openvino-genai", "llama-cpp-python", "torch"],
        options.json,
    )


def compared(
    task: Task, examples: int, count: int, loop_requests: int, rates: dict[str, float]
) -> list[tuple[str, str, float]]:
    """Figures of one kind of prompt: the engine on all of them, the plain loop on the first `loop_requests`."""
    prefix, what = ("nearest_", f"{examples} nearest examples") if examples else ("", "plain prompt")
    prompts, schema = prompts_of(task, count, examples), schema_of(task.tools)
    ours, ours_seconds = run_engine(prompts, schema, freely=examples > 0)
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


def prompts_of(task: Task, count: int, examples: int) -> list[Prompt]:
    """Requests of the pool with the task's functions and so many nearest solved examples."""
    lines = [task.description, 'Answer with one JSON object {"name": FUNCTION, "arguments": {...}}.', "", "Functions:"]
    lines += [
        f"{tool.name}({', '.join(tool.parameters.get('properties', {}))}): {tool.description}" for tool in task.tools
    ]
    lines += [f"{NOTHING}(): no function serves the request"]
    system = {"role": "system", "content": "\n".join(lines)}
    index = NearestExamples(task.labelled)
    requests = [example.request for example in task.unlabelled[:count]]
    prompts = []
    for request, near in zip(requests, index.nearest([r.text for r in requests], examples), strict=True):
        turns = [turn for place, _ in reversed(near) for turn in _turns(task.labelled[place])]
        prompts.append(Prompt((system, *turns, {"role": "user", "content": request.text}), shared=1))
    return prompts


def _turns(example: Example) -> list[dict[str, str]]:
    calls = example.answer.calls if example.answer else ()
    answer = calls[0].to_json() if calls else {"name": NOTHING, "arguments": {}}
    content = json.dumps(answer, ensure_ascii=False)
    return [{"role": "user", "content": example.request.text}, {"role": "assistant", "content": content}]


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


def _ticker(total: int) -> Any:
    done = np.zeros(1, dtype=int)

    def tick(index: int, completion: Completion) -> None:
        done[0] += 1
        print(f"\r{done[0]} of {total}", end="\n" if done[0] == total else "", file=sys.stderr, flush=True)

    return tick


if __name__ == "__main__":
    main()
