"""The official client against a running server."""

import json

import openai
import pytest

USER = [{"role": "user", "content": "lights"}]


def _ask(served, text="lights", **fields):
    messages = [{"role": "user", "content": text}]
    return served.openai.chat.completions.create(model="home", messages=messages, **fields)


def test_a_call_comes_as_a_tool_call(served):
    reply = _ask(served)
    (choice,) = reply.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    (call,) = choice.message.tool_calls
    assert (call.type, call.function.name) == ("function", "turn_on")
    assert json.loads(call.function.arguments) == {"name": "lights"}
    assert call.id.startswith("call_")
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens, reply.usage.total_tokens) == (11, 7, 18)
    assert reply.usage.prompt_tokens_details.cached_tokens == 3
    assert reply.model_extra["supertiny"] == {"by": "kitchen", "confidence": 0.75, "doubt": 0.0}


def test_without_a_call_the_text_is_the_content(served):
    (choice,) = _ask(served, "hello").choices
    assert choice.finish_reason == "stop"
    assert choice.message.content == "no function serves"
    assert choice.message.tool_calls is None


@pytest.mark.parametrize("text", ["включи свет на кухне", "打开厨房的灯", "💡 👨‍👩‍👧 on", 'quote " \\ \n line'])
def test_every_script_passes_unharmed(served, text):
    call = _ask(served, text).choices[0].message.tool_calls[0]
    assert json.loads(call.function.arguments) == {"name": text}
    streamed = "".join(
        call.function.arguments or ""
        for chunk in _ask(served, text, stream=True)
        for call in chunk.choices[0].delta.tool_calls or ()
    )
    assert json.loads(streamed) == {"name": text}


def test_a_stream_says_what_the_completion_says(served):
    chunks = list(_ask(served, "both lamps", stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    names, arguments, ids = {}, {}, {}
    for chunk in chunks[:-1]:
        assert chunk.usage is None
        for call in chunk.choices[0].delta.tool_calls or ():
            names.setdefault(call.index, call.function.name)
            ids.setdefault(call.index, call.id)
            arguments[call.index] = arguments.get(call.index, "") + call.function.arguments
    assert names == {0: "turn_on", 1: "turn_off"}
    assert [json.loads(arguments[place]) for place in (0, 1)] == [{"name": "both lamps"}] * 2
    assert len(set(ids.values())) == 2
    assert chunks[-2].choices[0].finish_reason == "tool_calls"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.total_tokens == 18
    assert len({chunk.id for chunk in chunks}) == 1


def test_a_streamed_text_ends_with_stop_and_done(served):
    chunks = list(_ask(served, "hello", stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "no function serves"
    assert chunks[-1].choices[0].finish_reason == "stop"
    raw = served.post("hello", stream=True)
    assert raw.headers["content-type"].startswith("text/event-stream")
    assert raw.text.endswith("data: [DONE]\n\n")


def test_the_clients_own_stream_helper_reads_it(served):
    with served.openai.chat.completions.stream(model="home", messages=USER) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.tool_calls[0].function.name == "turn_on"


def test_a_conversation_with_tool_messages_and_text_parts_reaches_the_model(served):
    call = {"id": "call_1", "type": "function", "function": {"name": "turn_on", "arguments": '{"name": "a"}'}}
    messages = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "la"}, {"type": "text", "text": "mps"}]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "done"},
    ]
    served.openai.chat.completions.create(model="home", messages=messages)
    request = served.kitchen.batches[-1][-1]
    assert [m["role"] for m in request.messages] == ["system", "user", "assistant", "tool"]
    assert [m["content"] for m in request.messages] == ["be brief", "lamps", "", "done"]
    assert request.messages[2]["tool_calls"] == [call]
    assert request.tools == ()


def _tool(name):
    return {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}}


def test_offered_tools_bound_the_answer(served):
    every = _ask(served, "both", tools=[_tool("turn_on"), _tool("turn_off")])
    assert len(every.choices[0].message.tool_calls) == 2
    assert served.kitchen.batches[-1][-1].tools == ()
    fewer = _ask(served, tools=[_tool("turn_off")])  # the fake model calls turn_on whatever it is offered
    assert fewer.choices[0].message.tool_calls is None
    assert [tool.name for tool in served.kitchen.batches[-1][-1].tools] == ["turn_off"]
    one = _ask(served, "both", parallel_tool_calls=False)
    assert [call.function.name for call in one.choices[0].message.tool_calls] == ["turn_on"]


def test_tool_choice(served):
    chosen = {"type": "function", "function": {"name": "turn_on"}}
    assert _ask(served, tool_choice="none").choices[0].finish_reason == "stop"
    assert _ask(served, tool_choice="auto").choices[0].finish_reason == "tool_calls"
    assert _ask(served, tool_choice="required").choices[0].finish_reason == "tool_calls"
    assert _ask(served, tool_choice=chosen).choices[0].message.tool_calls[0].function.name == "turn_on"
    with pytest.raises(openai.UnprocessableEntityError) as refused:
        _ask(served, "hello", tool_choice="required")
    assert refused.value.param == "tool_choice"


def test_an_answer_longer_than_the_client_takes_is_cut(served):
    (choice,) = _ask(served, max_completion_tokens=6).choices
    assert (choice.finish_reason, choice.message.tool_calls) == ("length", None)
    assert _ask(served, max_tokens=7).choices[0].finish_reason == "tool_calls"


def test_what_clients_also_send_is_taken(served):
    fields = {"temperature": 0.2, "seed": 3, "top_p": 0.9, "user": "u", "store": False, "n": 1, "logit_bias": {}}
    reply = _ask(served, response_format={"type": "text"}, extra_body={"unheard_of": [1]}, **fields)
    assert reply.choices[0].finish_reason == "tool_calls"


def test_models(served):
    assert [model.id for model in served.openai.models.list()] == ["home"]
    assert served.openai.models.retrieve("home").owned_by == "supertiny"
    with pytest.raises(openai.NotFoundError):
        served.openai.models.retrieve("other")


def test_a_system_message_that_repeats_the_tasks_description_is_not_put_to_the_model(start):
    served = start(description="You are a home. " * 400)
    user = {"role": "user", "content": "lights"}
    for system, heard in (("You are a home. " * 400, ["user"]), ("You are a boat.", ["system", "user"])):
        served.kitchen.batches.clear()
        body = {"model": "home", "messages": [{"role": "system", "content": system}, user]}
        assert served.http.post("/v1/chat/completions", json=body).status_code == 200
        assert [message["role"] for message in served.kitchen.batches[0][0].messages] == heard
