"""What a recipe asks for and does not find is told before anything is spent, each with its place."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import pytest

from supertiny.core.methods import Own, own_methods
from supertiny.core.records import Tool
from supertiny.core.task import Task
from supertiny.prototype.demands import context_tokens, missing_models, mistakes
from supertiny.prototype.settings import Settings
from tests.small_task import example, small_task

STEP = '''"""Asks for much.

Use when: testing.
"""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class {name}:
    engine: Any = field(default=None, metadata={{"family": "engines"}})
    steps: Any = field(default=(), metadata={{"family": "steps"}})
    guidelines: str = "{guidelines}"
    examples: int = 0
    max_tokens: int = 8
    needs = {needs}
    calls_per_request = 1.0

    def run(self, traces, bench):
        return traces
'''
SERVER = {"method": "openai", "model": "m", "base_url": "http://127.0.0.1:9/v1", "context_tokens": 3000}
OPENVINO, LLAMA_CPP = ({"method": name, "model": "smollm2-135m-instruct-q4_1"} for name in ("openvino", "llama_cpp"))
FREE = {"dollars_per_million_in": 0.0, "dollars_per_million_out": 0.0}


@pytest.fixture
def own(tmp_path: Path) -> Own:
    """Steps that a task brings along: what they need is in their names."""
    kinds = {"Scored": ("token_scores",), "Best": ("best_tokens",), "Sure": ("logprobs",), "Doing": ("execute",)}
    for name, needs in {**kinds, "Easy": (), "Judging": ("live_teacher",)}.items():
        text = STEP.format(name=name, needs=repr(needs), guidelines="" if name == "Judging" else "be kind")
        (tmp_path / "steps").mkdir(exist_ok=True)
        (tmp_path / "steps" / f"{name.lower()}.py").write_text(text, encoding="utf-8")
    return own_methods("steps", tmp_path / "steps")


def told(settings: Settings, task: Task, own: Own, asks: bool = True) -> list[str]:
    return [str(error) for error in mistakes(settings, task, own, asks)]


@pytest.mark.parametrize(
    ("engine", "lacking"),
    [
        (OPENVINO, ["best"]),
        (LLAMA_CPP, []),
        ({"method": "replay", "source": "x.json"}, ["scored", "best", "sure"]),
        ({**SERVER, **FREE}, ["scored", "best", "sure"]),
        ({**SERVER, **FREE, "logprobs": True}, ["scored", "best"]),
        ({**SERVER, **FREE, "dialect": "vllm"}, ["sure"]),
    ],
)
def test_steps_that_the_engine_cannot_serve(engine: Any, lacking: list[str], own: Own) -> None:
    lines = told(Settings(engine=engine, steps=("scored", "best", "sure", "easy"), curators=()), small_task(), own)
    assert len(lines) == len(lacking)
    name = engine if isinstance(engine, str) else engine["method"]
    for line, step in zip(lines, lacking, strict=True):
        place = ["scored", "best", "sure"].index(step)
        assert line.startswith(f"prototype.steps.{place}: {step} needs ")
        assert f"which {name} does not give (" in line


def test_a_step_within_a_step_and_one_with_an_engine_of_its_own(own: Own) -> None:
    both = {"method": "easy", "engine": LLAMA_CPP, "steps": ["best"]}
    (line,) = told(Settings(engine=OPENVINO, steps=(both,), curators=()), small_task(), own)
    assert line.startswith("prototype.steps.0.steps.0: best needs ")
    assert "which openvino does not give" in line  # the steps within run with both engines
    inner = {"method": "easy", "steps": ["best", {"method": "best", "engine": LLAMA_CPP}]}
    steps = ({"method": "scored", "engine": {**SERVER, **FREE}}, inner)
    lines = told(Settings(engine=OPENVINO, steps=steps, curators=()), small_task(), own)
    assert [line.split(" needs ")[0] for line in lines] == [
        "prototype.steps.0: scored",
        "prototype.steps.1.steps.0: best",
    ]
    assert "which openai does not give" in lines[0]
    assert "dialect: vllm" in lines[0]
    assert "which openvino does not give" in lines[1]


def test_a_task_without_execute_and_a_judge_without_guidelines(own: Own, tmp_path: Path) -> None:
    task = replace(small_task(), folder=tmp_path)
    settings = Settings(engine=OPENVINO, steps=("doing", "judging", "easy"), curators=())
    doing, judging = told(settings, task, own)
    assert doing.startswith("prototype.steps.0: doing needs execute(request_text, call), which the task does not have")
    assert judging.startswith("prototype.steps.1: judging has no guidelines to judge by (write them into")
    (tmp_path / "guidelines.md").write_text("Be just.", encoding="utf-8")
    able = replace(task, execute=lambda text, call: None)
    assert told(settings, able, own) == []


@pytest.mark.parametrize(
    ("engine", "words"),
    [
        ({**SERVER, "base_url": "localhost:8000"}, "not an address: 'localhost:8000'"),
        ({**SERVER, "base_url": "https://api.openai.com/v1", **FREE}, "no key for https://api.openai.com/v1"),
        ({**SERVER, "model": "nobody-knows", "base_url": "https://example.org/v1"}, "price of 'nobody-knows'"),
    ],
)
def test_a_server_that_cannot_be_asked(
    engine: Any, words: str, own: Own, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    settings = Settings(engine=engine, steps=("easy", {"method": "easy", "engine": engine}), curators=())
    lines = told(settings, small_task(), own)
    assert [line.split(": ")[0] for line in lines] == ["prototype.engine", "prototype.steps.1.engine"]
    assert all(words in line for line in lines)
    assert told(settings, small_task(), own, asks=False) == []


def test_models_that_are_nowhere_are_told_wherever_they_are_named(own: Own, tmp_path: Path) -> None:
    nowhere = {"method": "openvino", "model": "nix"}
    inner = {"method": "easy", "engine": {**nowhere, "model": "nix-in"}}
    steps = ({"method": "easy", "engine": nowhere, "steps": [inner, "easy"]},)
    lines = told(
        Settings(engine={"method": "llama_cpp", "model": str(tmp_path)}, steps=steps), small_task(), own, False
    )
    places = ["prototype.engine", "prototype.steps.0.engine", "prototype.steps.0.steps.0.engine"]
    assert [line.split(": ")[0] for line in lines] == [f"{place}.model" for place in places]
    assert [line.split("no model ")[1].split(" (")[0] for line in lines] == [repr(str(tmp_path)), "'nix'", "'nix-in'"]
    found = missing_models({"optimise.optional.0": steps[0], "optimise.steps.0.1": {"method": "easy"}}, own)
    assert [str(error).split(": ")[0] for error in found] == [
        "optimise.optional.0.engine.model",
        "optimise.optional.0.steps.0.engine.model",
    ]


def test_rows_that_are_longer_than_what_the_model_reads(own: Own) -> None:
    long = [example("turn on " + "the light and " * 1000, (), f"long-{n}") for n in range(7)]
    task = small_task(valid=[example("short"), long[0]], test=long[1:])
    settings = Settings(engine={**SERVER, **FREE}, steps=("easy",), curators=())
    lines = told(settings, task, own)
    assert lines[0].startswith("valid: the row 'long-0' takes about 3")
    assert "the model reads 3000 tokens" in lines[0]
    assert [line.split("'")[1] for line in lines[1:5]] == ["long-1", "long-2", "long-3", "long-4"]
    assert lines[5:] == ["and 2 more rows are longer than what the model reads"]
    roomy = replace(settings, engine={**SERVER, **FREE, "context_tokens": 9000})
    assert told(roomy, task, own) == []
    assert told(replace(roomy, steps=({"method": "easy", "max_tokens": 8000},)), task, own) != []


def test_functions_that_are_longer_than_what_the_model_reads(own: Own) -> None:
    tools = [Tool(f"tool_{n}", "does a thing of no use to anybody " * 4, {"type": "object"}) for n in range(400)]
    settings = Settings(engine={**SERVER, **FREE}, steps=("easy",), curators=())
    (line,) = told(settings, small_task(tools), own)
    assert line.startswith("prototype: a usual prompt takes about ")
    assert "the model reads 3000 tokens" in line
    own_tools = [replace(e, request=replace(e.request, tools=tuple(tools[:2]))) for e in small_task().valid]
    splits = dict.fromkeys(("labelled", "unlabelled", "valid", "test"), own_tools)
    assert told(settings, small_task(tools, **splits), own) == []


def test_more_examples_than_the_model_reads(own: Own) -> None:
    settings = Settings(engine={**SERVER, **FREE}, steps=({"method": "easy", "examples": 500},), curators=())
    assert told(settings, small_task(), own) == []  # it has too few to show
    rows = [example(f"turn on the light of room {n}", (), str(n)) for n in range(400)]
    (line,) = told(settings, small_task(labelled=rows), own)
    assert line.startswith("prototype: a usual prompt takes about ")
    assert " of examples (the model reads 3000 tokens" in line


class _Engine:
    def __init__(self, model: Path | str, context_tokens: int | None = None) -> None:
        self.model = str(model)
        self.context_tokens = context_tokens


def test_the_context_is_read_from_settings_or_from_the_models_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = gguf.GGUFWriter(tmp_path / "tiny.gguf", "llama")
    writer.add_context_length(777)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert context_tokens(_Engine(tmp_path / "tiny.gguf")) == 777
    assert context_tokens(_Engine(tmp_path / "tiny.gguf", 500)) == 500
    (tmp_path / "config.json").write_text(json.dumps({"max_position_embeddings": 2048}), encoding="utf-8")
    assert context_tokens(_Engine(tmp_path)) == 2048
    assert context_tokens(_Engine("a model on a server")) is None
    assert context_tokens(_Engine("a model on a server", 900)) == 900
    monkeypatch.setenv("SUPERTINY_MODELS", str(tmp_path))
    assert context_tokens(_Engine("smollm2-135m-instruct-q4_1")) is None
    (tmp_path / "tiny.gguf").rename(tmp_path / "smollm2-135m-instruct-q4_1.gguf")
    assert context_tokens(_Engine("smollm2-135m-instruct-q4_1")) == 777


def test_a_reader_must_be_there(tmp_path: Path) -> None:
    stack = {"method": "stack", "reader": "smollm3", "steps": [{"method": "stack", "reader": str(tmp_path)}]}
    lines = told(Settings(steps=(stack,)), small_task(), own_methods("steps", tmp_path))
    assert any(line.startswith("prototype.steps.0.reader: there is no model 'smollm3'") for line in lines)
    assert any(line.startswith("prototype.steps.0.steps.0.reader: there is no model") for line in lines)
    places = [error.problem.split(":")[0] for error in missing_models({"optimise.steps.0": stack})]
    assert places == ["optimise.steps.0.reader", "optimise.steps.0.steps.0.reader"]
    assert not missing_models({"optimise.steps.0": {"method": "stack", "reader": "smollm2-135m-instruct-q4_1"}})
