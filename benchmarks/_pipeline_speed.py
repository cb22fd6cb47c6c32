"""The whole pipeline (retrieve, fill, check) on the default engine, and the same steps as one writes them first."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics.pairwise import cosine_similarity

from supertiny.core.methods import build
from supertiny.core.models import path_of
from supertiny.core.nearest import NearestExamples
from supertiny.core.protocols import Engine
from supertiny.core.records import Call, Example, Request
from supertiny.core.scoring import exact
from supertiny.core.task import Task
from supertiny.prototype.bench import Bench
from supertiny.prototype.teacher import Pipeline

EXAMPLES = 6
MAX_TOKENS = 96
CHUNK = 128
NOTHING = "none"
STEPS: tuple[Any, ...] = ({"method": "retrieve", "examples": EXAMPLES}, "fill", "check")


@dataclass(frozen=True)
class Timed:
    """Calls of each request, and how long they took in all."""

    calls: tuple[tuple[Call, ...], ...]
    seconds: float

    @property
    def requests_per_second(self) -> float:
        return len(self.calls) / self.seconds

    def right_share(self, task: Task, requests: Sequence[Request]) -> float:
        """Exact calls among the requests, where the task knows their gold."""
        known = [(c, task.pool_gold[r.id]) for c, r in zip(self.calls, requests, strict=True) if r.id in task.pool_gold]
        return sum(exact(c, gold, task.tool_map) for c, gold in known) / max(1, len(known))


def run_pipeline(task: Task, requests: Sequence[Request], engine: Engine) -> Timed:
    """The library's steps on an opened engine; nothing is read from a ledger."""
    bench = Bench(engine, task, build("formats", "compact"), NearestExamples(task.labelled), 0)
    pipeline = Pipeline([build("steps", block) for block in STEPS], bench, CHUNK)
    started = time.perf_counter()
    answers = pipeline.answer(requests)
    return Timed(tuple(answer.calls for answer in answers), time.perf_counter() - started)


def run_naive(task: Task, requests: Sequence[Request], schema: dict[str, Any], model: str) -> Timed:
    """One request after the other: cosine over TF-IDF, a chat call under the JSON Schema, the verifier, once more."""
    import llama_cpp

    index = TfidfVectorizer()
    matrix = index.fit_transform([example.request.text for example in task.labelled])
    language_model = llama_cpp.Llama(str(path_of(model)), n_ctx=8192, verbose=False)

    def chat(messages: list[dict[str, str]]) -> str:
        answer: Any = language_model.create_chat_completion(
            messages=messages,  # type: ignore[arg-type, unused-ignore]
            response_format={"type": "json_object", "schema": schema},  # type: ignore[arg-type, unused-ignore]
            max_tokens=MAX_TOKENS,
            temperature=0.0,
        )
        return str(answer["choices"][0]["message"]["content"])

    started = time.perf_counter()
    calls = []
    for request in requests:
        likeness = cosine_similarity(index.transform([request.text]), matrix)[0]
        near = [task.labelled[place] for place in likeness.argsort()[-EXAMPLES:]]
        messages = chat_messages(task, near, request.text)
        calls.append(_checked(task, request, messages, chat))
    seconds = time.perf_counter() - started
    language_model.close()
    return Timed(tuple(calls), seconds)


def _checked(task: Task, request: Request, messages: list[dict[str, str]], chat: Any) -> tuple[Call, ...]:
    text = chat(messages)
    calls = calls_in(text)
    verdict = task.verify(request, calls or ())
    if calls is None or verdict.outcome == "fail":
        complaint = f"That is wrong: {verdict.reason}. Write the right call for the same request."
        again = [*messages, {"role": "assistant", "content": text}, {"role": "user", "content": complaint}]
        second = calls_in(chat(again))
        if second is not None and task.verify(request, second).outcome != "fail":
            return second
    return calls or ()


def calls_in(text: str) -> tuple[Call, ...] | None:
    """The call in a JSON object; none for NOTHING, None where the text was cut off."""
    try:
        row = json.loads(text)
        return () if row["name"] == NOTHING else (Call(str(row["name"]), dict(row["arguments"])),)
    except (json.JSONDecodeError, KeyError, TypeError):
        return None


def chat_messages(task: Task, near: Sequence[Example], text: str) -> list[dict[str, str]]:
    """Task and functions, solved examples as turns with the nearest last, the request."""
    lines = [task.description, 'Answer with one JSON object {"name": FUNCTION, "arguments": {...}}.', "", "Functions:"]
    lines += [
        f"{tool.name}({', '.join(tool.parameters.get('properties', {}))}): {tool.description}" for tool in task.tools
    ]
    lines += [f"{NOTHING}(): no function serves the request"]
    turns = [turn for example in near for turn in _turns(example)]
    return [{"role": "system", "content": "\n".join(lines)}, *turns, {"role": "user", "content": text}]


def _turns(example: Example) -> list[dict[str, str]]:
    calls = example.answer.calls if example.answer else ()
    answer = calls[0].to_json() if calls else {"name": NOTHING, "arguments": {}}
    content = json.dumps(answer, ensure_ascii=False)
    return [{"role": "user", "content": example.request.text}, {"role": "assistant", "content": content}]
