"""The speed benchmark without models: the pipeline's and the naive steps, and clients on a local server."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import httpx
import pytest

from benchmarks import _rivals, label_speed
from benchmarks._pipeline_speed import EXAMPLES, Timed, _checked, calls_in, chat_messages, run_pipeline
from benchmarks._rivals import drive, is_there, ours, served
from benchmarks.label_speed import options_of, prompts_of, run
from supertiny.core.records import Call, Prompt
from tests.fake_engine import FakeEngine
from tests.small_task import small_task

HALL = '{"name": "TurnOn", "arguments": {"area": "Hall"}}'
# Stands in for distilabel: the same names, and one request after the other.
DISTILABEL = """
import json, urllib.request

class OpenAILLM:
    def __init__(self, model, base_url, api_key):
        self.url, self.model = base_url, model

    def load(self):
        pass

    def generate_outputs(self, inputs, max_new_tokens, temperature):
        return [{"generations": [self.ask(messages)]} for messages in inputs]

    def ask(self, messages):
        body = json.dumps({"model": self.model, "messages": messages}).encode()
        request = urllib.request.Request(self.url + "/chat/completions", body, {"content-type": "application/json"})
        with urllib.request.urlopen(request) as reply:
            return json.loads(reply.read())["choices"][0]["message"]["content"]
"""


def prompts(count: int = 5) -> list[Prompt]:
    return [Prompt(({"role": "user", "content": f"request {place}"},)) for place in range(count)]


def an_engine() -> FakeEngine:
    return FakeEngine(lambda prompt, sampling, grammar: f"re: {prompt.messages[-1]['content']}")


def test_naive_steps_hand_the_verifiers_complaint_back_once() -> None:
    task = small_task()
    request = task.unlabelled[0].request
    said = iter(['{"name": "TurnOn", "arguments": {"area": "Moon"}}', HALL])
    heard: list[list[dict[str, str]]] = []

    def chat(messages: list[dict[str, str]]) -> str:
        heard.append(messages)
        return next(said)

    first = chat_messages(task, task.labelled[:2], request.text)
    assert _checked(task, request, first, chat) == (Call("TurnOn", {"area": "Hall"}),)
    assert len(heard) == 2
    assert "Moon" in heard[1][-1]["content"]
    assert [message["role"] for message in first] == ["system", "user", "assistant", "user", "assistant", "user"]


def test_an_answer_of_none_is_no_call_and_a_broken_one_is_none() -> None:
    assert calls_in('{"name": "none", "arguments": {}}') == ()
    assert calls_in('{"name": "TurnOn", "argum') is None
    assert calls_in(HALL) == (Call("TurnOn", {"area": "Hall"}),)


def test_the_pipeline_answers_every_request_in_order() -> None:
    task = small_task()
    requests = [row.request for row in task.unlabelled]
    engine = FakeEngine(lambda prompt, sampling, grammar: "TurnOn area Hall")
    timed = run_pipeline(task, requests, engine)
    assert len(timed.calls) == len(requests)
    assert list(timed.calls) == [(Call("TurnOn", {"area": "Hall"}),)] * len(requests)
    assert timed.requests_per_second == pytest.approx(len(requests) / timed.seconds)


def test_right_answers_are_counted_where_gold_is_known() -> None:
    task = replace(small_task(), pool_gold=MappingProxyType({"a": (Call("TurnOn", {"area": "Hall"}),), "b": ()}))
    requests = [replace(task.unlabelled[0].request, id=name) for name in ("a", "b", "c")]
    hall = (Call("TurnOn", {"area": "Hall"}),)
    assert Timed((hall, hall, hall), 2.0).right_share(task, requests) == 0.5


def test_prompts_share_their_system_message_and_show_the_nearest_last() -> None:
    task = small_task()
    made = prompts_of(task, 4, EXAMPLES)
    assert len(made) == 4
    assert len({json.dumps(prompt.messages[0]) for prompt in made}) == 1
    assert all(prompt.shared == 1 and len(prompt.messages) == 14 for prompt in made)


def test_the_server_answers_in_openais_format() -> None:
    with served(an_engine()) as url:
        reply = httpx.post(f"{url}/chat/completions", json={"model": "m", "messages": [*prompts(1)[0].messages]})
    assert reply.json()["choices"][0]["message"]["content"] == "re: request 0"
    assert reply.json()["usage"] == {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12}


def test_a_conversation_without_a_word_is_refused() -> None:
    engine = an_engine()
    with served(engine) as url:
        reply = httpx.post(f"{url}/chat/completions", json={"model": "m", "messages": []})
    assert reply.status_code == 400
    assert not engine.asked


def test_our_client_sends_every_prompt() -> None:
    engine = an_engine()
    with served(engine) as url:
        assert ours(url, prompts(), "m") > 0
    assert len(engine.asked) == 5


def test_projects_that_are_not_installed_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_rivals, "MODULES", {"distilabel": "no_such_project.models"})
    rates, versions, missing = drive(an_engine, prompts(2), "m", None)
    assert list(rates) == ["supertiny"]
    assert versions == {}
    assert len(missing) == 1
    assert "distilabel: not installed" in missing[0]


def test_another_projects_client_is_driven_in_its_own_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "distilabel").mkdir()
    (tmp_path / "distilabel" / "models.py").write_text(DISTILABEL, encoding="utf-8")
    card = tmp_path / "distilabel-9.9.dist-info"
    card.mkdir()
    (card / "METADATA").write_text("Metadata-Version: 2.1\nName: distilabel\nVersion: 9.9\n", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(_rivals, "MODULES", {"distilabel": "distilabel.models"})
    assert is_there("distilabel", Path(sys.executable))
    opened: list[FakeEngine] = []

    def open_engine() -> FakeEngine:
        opened.append(an_engine())
        return opened[-1]

    rates, versions, missing = drive(open_engine, prompts(3), "m", Path(sys.executable))
    assert set(rates) == {"supertiny", "distilabel"}
    assert versions == {"distilabel": "9.9"}
    assert missing == []
    assert [len(engine.asked) for engine in opened] == [3, 3]


def test_a_client_that_fails_is_told_in_a_line_and_stops_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "distilabel").mkdir()
    (tmp_path / "distilabel" / "models.py").write_text("raise RuntimeError('no such thing')", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(_rivals, "MODULES", {"distilabel": "distilabel.models"})
    rates, versions, missing = drive(an_engine, prompts(1), "m", Path(sys.executable))
    assert list(rates) == ["supertiny"]
    assert versions == {}
    assert len(missing) == 1
    assert "distilabel failed" in missing[0]
    assert "no such thing" in missing[0]


def test_what_was_measured_before_a_part_failed_is_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label_speed, "pipeline_rows", lambda *_: [("pipeline_ratio", "measured", 9.0)])
    monkeypatch.setattr(label_speed, "rivals_rows", lambda *_: {}["no server"])
    monkeypatch.setattr(label_speed.importlib.util, "find_spec", lambda name: name)
    written = tmp_path / "figures.json"
    with pytest.raises(KeyError):
        run(options_of(["--quick", "--part", "pipeline", "--part", "rivals", "--json", str(written)]))
    assert "pipeline_ratio" in written.read_text(encoding="utf-8")
    written.unlink()
    with pytest.raises(KeyError):
        run(options_of(["--quick", "--part", "rivals", "--json", str(written)]))
    assert not written.exists(), "nothing was measured"


def test_the_command_line_takes_parts() -> None:
    chosen = options_of(["--part", "pipeline", "--part", "engine", "--quick"])
    assert chosen.part == ["pipeline", "engine"]
    assert chosen.quick
