"""What is wrong with a request is told by the name of its field, and never as a failure of the server."""

import json
import logging
import socket

import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from supertiny.serve.refusals import Refusal
from supertiny.serve.schema import read_chat
from supertiny.serve.settings import Limits
from tests.serve.conftest import TOOLS

USER = {"role": "user", "content": "lights"}
CALL = {"function": {"name": "turn_on", "arguments": "[1"}}


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"n": 2}, "n"),
        ({"messages": []}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": [USER, {"role": "wizard", "content": "x"}]}, "messages[1].role"),
        ({"messages": [USER, {"role": "user"}]}, "messages[1].content"),
        ({"messages": [USER, {"role": "user", "content": 3}]}, "messages[1].content"),
        ({"messages": [{"role": "system", "content": "x"}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].type"),
        (
            {"messages": [USER, {"role": "assistant", "tool_calls": [CALL]}]},
            "messages[1].tool_calls[0].function.arguments",
        ),
        ({"messages": [USER] * 65}, "messages"),
        ({"messages": [USER, {"role": "user", "content": "x" * 4001}]}, "messages[1].content"),
        ({"tools": []}, "tools"),
        (
            {
                "tools": [
                    {"type": "function", "function": {"name": "turn_on"}},
                    {"type": "function", "function": {"name": "fly"}},
                ]
            },
            "tools[1].function.name",
        ),
        ({"tool_choice": "often"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "fly"}}}, "tool_choice.function.name"),
        ({"temperature": 9}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"response_format": {"type": "poem"}}, "response_format.type"),
        ({"stream": "yes"}, "stream"),
    ],
)
def test_bad_request_names_the_field(served, change, param):
    fields = {"model": "home", "messages": [USER], **change}
    with pytest.raises(openai.BadRequestError) as refused:
        served.openai.chat.completions.create(**fields)
    assert refused.value.param == param
    assert param in refused.value.body["message"]
    assert refused.value.type == "invalid_request_error"


def test_unknown_model_is_404(served):
    with pytest.raises(openai.NotFoundError) as refused:
        served.openai.chat.completions.create(model="gpt-4o", messages=[USER])
    assert (refused.value.code, refused.value.param) == ("model_not_found", "model")


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b'{"model": NaN}', b"\xff\xfe", b"[" * 100_000, b'{"model": "\\ud800"}', b"1" * 5000],
)
def test_what_is_not_json_is_400(served, body):
    reply = served.http.post("/v1/chat/completions", content=body)
    assert reply.status_code == 400
    assert set(reply.json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("declared", [True, False])
def test_an_oversized_body_is_413_and_the_next_request_is_served(served, declared):
    large = b'{"model": "' + b"x" * 3_000_000 + b'"}'
    content = large if declared else iter([large[start : start + 65536] for start in range(0, len(large), 65536)])
    reply = served.http.post("/v1/chat/completions", content=content)
    assert reply.status_code == 413
    assert reply.json()["error"]["code"] == "body_too_large"
    assert served.post().status_code == 200


def test_a_declared_length_is_refused_before_the_body_is_sent(served):
    with socket.create_connection(("127.0.0.1", served.port), 20) as line:
        line.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 999999999\r\n\r\n")
        assert line.recv(4096).startswith(b"HTTP/1.1 413")


def test_a_body_that_never_ends_is_408(start):
    served = start(limits=Limits(request_seconds=0.05))
    with socket.create_connection(("127.0.0.1", served.port), 20) as line:
        line.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{")
        assert line.recv(4096).startswith(b"HTTP/1.1 408")


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/nowhere", 404), ("GET", "/v1/chat/completions", 405)])
def test_wrong_addresses_are_told_in_the_same_words(served, method, path, status):
    reply = served.http.request(method, path)
    assert reply.status_code == status
    assert set(reply.json()["error"]) == {"message", "type", "param", "code"}


def test_an_engine_failure_is_500_without_its_words_and_the_log_has_the_traceback(start, caplog):
    served = start()
    with caplog.at_level(logging.INFO):
        reply = served.post("boom of a private text")
    assert reply.status_code == 500
    assert "secret" not in reply.text
    assert reply.json()["error"]["type"] == "server_error"
    assert any(record.exc_info and "secret" in str(record.exc_info[1]) for record in caplog.records)
    assert "private text" not in caplog.text
    assert served.post().status_code == 200


def test_a_key_is_asked_for(start):
    served = start(api_key="клюкva")
    assert served.http.get("/healthz").status_code == 200
    for path in ("/v1/models", "/metrics"):
        assert served.http.get(path).status_code == 401
        assert served.http.get(path, headers={"Authorization": "Bearer wrong"}).status_code == 401
        assert served.http.get(path, headers={"Authorization": "Bearer клюкva".encode()}).status_code == 200
    with pytest.raises(openai.AuthenticationError):
        served.openai.chat.completions.create(model="home", messages=[USER])


def test_no_other_site_is_let_in(served):
    reply = served.http.get("/v1/models", headers={"Origin": "http://elsewhere.example"})
    assert not [name for name in reply.headers if name.startswith("access-control")]


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
_FIELDS = ("messages", "tools", "tool_choice", "n", "stream", "stream_options", "max_tokens", "temperature", "seed")
_MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "tool", "system"]) | _VALUES},
    optional={"content": _VALUES | st.just([{"type": "text", "text": "a"}]), "tool_calls": _VALUES | st.just([CALL])},
)
_BODIES = st.fixed_dictionaries(
    {"model": st.just("home"), "messages": st.lists(_MESSAGE, max_size=3) | st.just([USER])},
    optional=dict.fromkeys(_FIELDS[1:], _VALUES),
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(body=_BODIES)
def test_no_body_makes_the_server_fail(served, body):
    raw = json.dumps(body)  # with escapes, so that halves of surrogate pairs are sent too
    reply = served.http.post("/v1/chat/completions", content=raw.encode())
    assert reply.status_code in (200, 400, 422), reply.text


@settings(max_examples=100, deadline=None)
@given(raw=st.binary(max_size=60) | _BODIES.map(lambda body: json.dumps(body).encode()))
def test_reading_a_body_raises_nothing_but_refusals(raw):
    refusal, chat = None, None
    try:
        chat = read_chat(raw, "id", "home", {tool.name: tool for tool in TOOLS}, Limits())
    except Refusal as refused:
        refusal = refused
    if refusal:
        assert 400 <= refusal.status < 500
        assert json.dumps(refusal.body, ensure_ascii=False).encode()
    else:
        assert all(isinstance(message["content"], str) for message in chat.request.messages)
