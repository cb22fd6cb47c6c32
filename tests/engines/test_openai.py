"""The client against a real server on a loopback port that fails in every way that servers do."""

import asyncio
import json
import ssl
import time
from dataclasses import replace
from datetime import UTC, date, datetime

import pytest
from starlette.responses import Response

from benchmarks._faulty_server import Plan
from supertiny.core.errors import UserError, UserErrors
from supertiny.core.ledger import Ledger
from supertiny.core.methods import build
from supertiny.core.prices import price_of, read_prices
from supertiny.core.records import Grammar, Price, Prompt, Sampling, Tool
from supertiny.engines._openai_waits import asked_wait, quota_pause
from supertiny.engines.openai import OpenAI
from supertiny.formats._lawful import complete_lawfully

SLOW = "slow_first_byte"  # 0.3 seconds, where the plan says nothing else
HI = Prompt(({"role": "user", "content": "hi"},))


def status(code, text="{}", media="application/json", **headers):
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda: Response(text, code, headers=named, media_type=media)


def opened(server, **settings):
    """An engine whose clock moves only when it sleeps; `slept` holds the waits."""
    engine = replace(OpenAI("small-one", server.url), **settings).open()
    engine.slept, now = [], [0.0]

    async def sleep(seconds):
        engine.slept.append(seconds)
        now[0] += seconds
        await asyncio.sleep(0)

    engine.caller.sleep, engine.caller.clock = sleep, lambda: now[0]
    return engine


def test_many_prompts_come_back_in_order_and_are_told_as_they_finish(server):
    prompts = [Prompt(({"role": "user", "content": str(number)},)) for number in range(40)]
    told = {}
    server.scripted = [SLOW]
    answers = opened(server, concurrency=8).complete(prompts, Sampling(), done=told.__setitem__)
    assert [answer.text for answer in answers] == [f"{number}!" for number in range(40)]
    assert [told[number] for number in range(40)] == answers
    assert list(told) != sorted(told)  # the slow one came later than its place
    assert (answers[0].tokens_in, answers[0].tokens_out, answers[0].tokens_cached) == (7, 2, 3)
    assert server.headers[0]["authorization"] == "Bearer sk-secret"


@pytest.mark.parametrize(
    "fault",
    [
        status(429),
        status(500),
        status(502, "<html>bad gateway</html>", "text/html"),
        status(503),
        status(200, '{"choices": [{"mess'),
        status(200, '{"choices": []}'),
        status(200, '{"error": {"message": "overloaded"}}'),
        status(200, '{"choices": []}', Content_Length="400"),  # cut off before its end
    ],
)
def test_a_fault_is_tried_again(server, fault):
    server.scripted = [fault, fault]
    engine = opened(server)
    assert engine.complete([HI], Sampling())[0].text == "hi!"
    assert len(server.bodies) == 3
    assert len(engine.slept) == 2
    assert engine.slept[0] <= 0.5
    assert engine.slept[1] <= 1.0


def test_a_slow_answer_is_given_up_and_asked_for_again(server):
    server.plan, server.scripted = Plan(slow_seconds=3.0), [SLOW]
    assert opened(server, timeout_seconds=1.0).complete([HI], Sampling())[0].text == "hi!"
    assert len(server.bodies) == 2
    while server.counts["lost"] + server.counts["delivered"] < 2:
        time.sleep(0.01)  # what it computes still is no part of the next test


def test_retry_after_is_the_least_wait(server):
    server.scripted = [status(429, Retry_After="7")]
    engine = opened(server)
    engine.complete([HI], Sampling())
    assert 7 <= engine.slept[0] <= 7.5


def test_a_wait_beyond_the_limit_is_told(server):
    server.scripted = [status(429, Retry_After="3600")]
    with pytest.raises(UserError, match="asks to wait 3600 seconds"):
        opened(server).complete([HI], Sampling())


def test_a_used_up_quota_holds_the_next_request(server):
    empty = {"X_RateLimit_Remaining_Tokens": "0", "X_RateLimit_Reset_Tokens": "1m2s"}
    server.scripted = [status(200, '{"choices": [{"message": {"content": "a"}}]}', **empty)]
    engine = opened(server, concurrency=1)
    assert [answer.text for answer in engine.complete([HI, HI], Sampling())] == ["a", "hi!"]
    assert engine.slept == [62.0]


def test_after_the_last_try_the_reason_is_told_and_finished_ones_were_heard(server):
    engine = opened(server, retries=1, concurrency=1)
    told = {}

    def done(index, answer):
        told[index] = answer
        server.scripted = [status(500, '{"error": {"message": "tea time"}}')] * 2

    with pytest.raises(UserError, match=r"500: tea time; given up after 2 tries"):
        engine.complete([HI, HI, HI], Sampling(), done=done)
    assert list(told) == [0]


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (
            status(401, '{"error": {"message": "bad key sk-secret"}}'),
            r"key was refused \(HTTP status 401\): bad key \(key\)",
        ),
        (status(403), "key was refused"),
        (status(404), r"HTTP status 404.*not this path"),
        (status(200, "<!doctype html><p>Welcome", "text/html"), "answers with a web page"),
        (status(400, '{"error": {"message": "no such field"}}'), "HTTP status 400: no such field"),
        (status(307, Location="http://127.0.0.1:1/"), "redirects to"),
        (status(429, '{"error": {"code": "insufficient_quota", "message": "pay first"}}'), "429: pay first"),
    ],
)
def test_what_trying_again_cannot_mend_is_told_at_once(server, fault, said):
    server.scripted = [fault]
    engine = opened(server)
    with pytest.raises(UserError, match=said) as caught:
        engine.complete([HI], Sampling())
    assert "sk-secret" not in str(caught.value)
    assert len(server.bodies) == 1
    assert engine.slept == []


def test_what_answers_but_is_no_api_is_told_at_once(server):
    server.scripted = [status(200, '{"detail": "welcome"}')]
    with pytest.raises(UserError, match="not with a completion: .*welcome") as caught:
        opened(server).complete([HI], Sampling())
    assert "base_url" in caught.value.hint
    engine = opened(server)
    engine.complete([HI], Sampling())
    server.scripted = [status(200, '{"detail": "a moment"}')]  # from a server that is known to be one
    assert engine.complete([HI], Sampling())[0].text == "hi!"


def test_a_key_that_cannot_be_one_is_told_and_not_shown(server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-sec\nret")
    with pytest.raises(UserError, match="OPENAI_API_KEY holds characters") as caught:
        opened(server)
    assert "sk-" not in str(caught.value)


@pytest.mark.parametrize(
    "fault",
    [
        status(200, '{"detail": "who is sk-secret?"}'),
        status(200, "sk-secret {"),
        status(200, '{"choices": [{"message": {"content": "a"}}], "usage": {"prompt_tokens": "sk-secret"}}'),
        status(307, Location="http://127.0.0.1:1/?key=sk-secret"),
        status(500, '{"error": {"message": "sk-secret is tired"}}'),
        status(404, "no sk-secret here", "text/plain"),
    ],
)
def test_a_key_that_a_server_repeats_is_not_shown(server, fault):
    server.scripted = [fault]
    with pytest.raises(UserError) as caught:
        opened(server, retries=0).complete([HI], Sampling())
    assert "sk-secret" not in str(caught.value)


def test_an_address_in_capitals_is_verified_like_any_other(server, monkeypatch):
    made = []
    monkeypatch.setattr("httpx.create_ssl_context", lambda: made.append(ssl.create_default_context()) or made[-1])
    for scheme, count in (("http", 0), ("HTTPS", 1)):
        with pytest.raises(UserError, match="no server answers"):
            opened(server, base_url=f"{scheme}://127.0.0.1:1/v1").complete([HI], Sampling())
        assert len(made) == count


def test_an_unknown_model_gets_the_nearest_name(server):
    server.scripted = [status(404)]
    with pytest.raises(UserError, match=r"no model 'smal-one'.*did you mean 'small-one'"):
        opened(server, model="smal-one").complete([HI], Sampling())


def test_where_nothing_listens_it_is_told_at_once(server):
    engine = opened(server, base_url="http://127.0.0.1:1/v1")
    with pytest.raises(UserError, match=r"no server answers at 127.0.0.1:1.*is it running"):
        engine.complete([HI], Sampling())
    assert engine.slept == []


def test_a_server_that_goes_away_in_between_is_waited_for(server):
    engine = opened(server, retries=2)
    engine.complete([HI], Sampling())
    engine.caller.base_url = "http://127.0.0.1:1/v1"
    with pytest.raises(UserError, match="given up after 3 tries"):
        engine.complete([HI], Sampling())
    assert len(engine.slept) == 2


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        ("This model's maximum context length is 4096 tokens, you asked for " + "9" * 900, "show fewer examples"),
        ("logprobs are not supported with this model", "set logprobs: false"),
        ("small-one does not support tools", "calls as text"),
        ("Invalid parameter: response_format of type json_schema", "strict_schema: false"),
        ("Unsupported parameter: max_tokens; use max_completion_tokens", "max_tokens_name"),
        ("temperature does not support 0 with this model", "send_temperature: false"),
    ],
)
def test_what_a_model_cannot_do_is_told_with_what_to_do(server, words, hint):
    server.scripted = [status(400, json.dumps({"error": {"message": words}}))]
    with pytest.raises(UserError, match="HTTP status 400") as caught:
        opened(server).complete([HI], Sampling())
    assert hint in caught.value.hint
    assert words[:40] in caught.value.problem
    assert len(caught.value.problem) < 420


def test_a_model_that_leaves_out_log_probabilities_is_told_and_its_answer_kept(server):
    server.scripted = [status(200, '{"choices": [{"message": {"content": "a"}}]}')]
    told = {}
    with pytest.raises(UserError, match="gives no log-probabilities"):
        opened(server, logprobs=True).complete([HI], Sampling(), done=told.__setitem__)
    assert told[0].text == "a"


def keys_sent(server):
    return [headers["idempotency-key"] for headers in server.headers]


def test_a_key_goes_along_that_stays_until_the_outcome_is_known(server):
    cut = status(200, '{"choices": []}', Content_Length="400")
    server.scripted = [cut, status(200, "{"), status(200, "{"), status(429)]
    opened(server, concurrency=1).complete([HI], Sampling())
    # Computed perhaps, or broken on its way: a server that keeps answers sends it again.
    assert len(set(keys_sent(server))) == 1
    server.headers.clear()
    server.scripted = [status(429), status(500)]
    opened(server, concurrency=1).complete([HI], Sampling())
    # Nothing was computed, and some servers answer a key again with its refusal.
    assert len(set(keys_sent(server))) == 3


def test_an_answer_that_stays_broken_is_asked_for_under_another_key_at_last(server):
    server.scripted = [status(200, "{")] * 3
    assert opened(server, retries=3).complete([HI], Sampling())[0].text == "hi!"
    first, second, third, last = keys_sent(server)
    assert first == second == third
    assert last != first  # what is kept under that key is broken


def test_a_begun_answer_is_not_repeated(server):
    begun = replace(HI, text='{"name": ')
    assert opened(server).complete([begun], Sampling())[0].text == "!"
    assert server.bodies[-1][1]["messages"][-1] == {"role": "assistant", "content": '{"name": '}
    opened(server, dialect="vllm").complete([begun], Sampling())
    assert server.bodies[-1][1]["continue_final_message"] is True
    assert server.bodies[-1][1]["add_generation_prompt"] is False


def test_text_alone_is_completed_as_it_is(server):
    answer = opened(server).complete([Prompt(text="raw")], Sampling())[0]
    assert (answer.text, answer.finish) == ("RAW", "length")
    assert server.bodies[-1][0] == "completions"


def test_grammars_are_said_in_the_servers_words(server):
    schema, regex = Grammar("json_schema", '{"type": "object"}'), Grammar("regex", "a+")
    opened(server).complete([HI], Sampling(), [schema])
    bound = server.bodies[-1][1]["response_format"]
    assert bound["json_schema"] == {"name": "answer", "schema": {"type": "object"}, "strict": True}
    opened(server, dialect="vllm").complete([HI], Sampling(), [regex])
    assert server.bodies[-1][1]["structured_outputs"] == {"regex": "a+"}
    opened(server, dialect="sglang").complete([HI], Sampling(), [regex])
    assert server.bodies[-1][1]["regex"] == "a+"
    engine = opened(server)
    assert engine.complete([HI], Sampling(), [regex])[0].text == "hi!"
    assert not {"regex", "grammar", "response_format"} & set(server.bodies[-1][1]), "OpenAI's own API knows none"
    assert (engine.binds(schema), engine.binds(regex)) == (True, False)


def test_a_server_that_cannot_be_bound_is_not_asked_twice(server, tmp_path):
    form, wrapped = build("formats", "compact"), Ledger(tmp_path / "l.sqlite").wrap(opened(server), "test")
    (answer,) = complete_lawfully(wrapped, [HI], Sampling(), form, [[Tool("Dim", "", {})]])
    assert (answer.text, len(server.bodies)) == ("hi!", 1)
    bound = Ledger(tmp_path / "m.sqlite").wrap(opened(server, dialect="vllm"), "test")
    complete_lawfully(bound, [HI], Sampling(), form, [[Tool("Dim", "", {})]])
    assert len(server.bodies) == 3


def test_settings_reach_the_body(server):
    sampling = Sampling(max_tokens=5, temperature=0.7, seed=3, stop=("\n",))
    engine = opened(server, logprobs=True, max_tokens_name="max_completion_tokens", extra_body={"top_k": 4})
    assert engine.complete([HI], sampling)[0].logprob == pytest.approx(-0.75)
    body = server.bodies[-1][1]
    assert (body["max_completion_tokens"], body["temperature"], body["seed"]) == (5, 0.7, 3)
    assert (body["stop"], body["top_k"]) == (["\n"], 4)
    assert engine.name != opened(server).name


def test_score_reads_the_continuations_part(server):
    scores = opened(server, dialect="vllm").score([HI], ["ab"], top=2)[0]
    assert scores.tokens.tolist() == [97, 98]
    assert scores.token_logprobs.tolist() == pytest.approx([-0.1, -2.5])
    assert scores.ids.tolist() == [[97, 98]] * 2
    assert (scores.tokens_in, scores.tokens_out) == (7, 2), "as the server counts"
    with pytest.raises(UserError, match="cannot score"):
        opened(server).score([HI], ["ab"])


def test_settings_are_checked_before_anything_is_sent(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    for settings, said in [
        ({"base_url": "api.example"}, "not an address"),
        ({"base_url": "http://me:pw@localhost/v1"}, "holds a key"),
        ({"base_url": "http://[::1"}, "not an address"),
        ({"base_url": "http://localhost:port/v1"}, "not an address"),
        ({"concurrency": 0}, "concurrency: Input should be greater"),
        ({"extra_body": {"n": 4, "max_tokens": 9, "top_k": 2}}, "extra_body: may not set max_tokens, n"),
        ({}, "no key for"),
    ]:
        with pytest.raises(UserError, match=said):
            build("engines", {"method": "openai", "model": "small-one", **settings}).open()


def test_waits_are_read_from_every_form_of_header():
    now = datetime(2026, 1, 1, tzinfo=UTC)
    assert asked_wait({"retry-after": "Thu, 01 Jan 2026 00:00:30 GMT"}, now) == 30
    assert asked_wait({"retry-after-ms": "250"}) == 0.25
    assert asked_wait({"retry-after": "soon"}) == 0
    empty = {"x-ratelimit-remaining-requests": "0"}
    pauses = [quota_pause({**empty, "x-ratelimit-reset-requests": text}) for text in ("20ms", "6m0s", "1.5s", "3", "x")]
    assert pauses == [0.02, 360, 1.5, 3, 0]
    assert quota_pause({"x-ratelimit-remaining-requests": "1", "x-ratelimit-reset-requests": "9s"}) == 0


def test_prices_by_date_by_place_and_by_table(tmp_path, monkeypatch):
    monkeypatch.setenv("SUPERTINY_PRICES", str(tmp_path / "none.yaml"))
    file = tmp_path / "prices.yaml"
    file.write_text("m:\n  2026-01-01: {in: 1, out: 2}\n  2026-06-01: {in: 0.5, out: 1, cached: 0.1}\n")
    url = "https://api.openai.com/v1"
    assert price_of("m", url, file, date(2026, 3, 1)) == Price(1, 2, 1)
    assert price_of("m", url, file, date(2026, 7, 1)) == Price(0.5, 1, 0.1)
    assert price_of("m", url, file, date(2025, 7, 1)) is None
    assert price_of("gpt-4o-mini", url) == Price(0.15, 0.6, 0.075)
    assert price_of("m", "http://10.0.0.4:8000/v1") == Price()
    with pytest.raises(UserError, match="nobody knows the price"):
        OpenAI("m", "https://models.example.com/v1").open()
    assert OpenAI("m", url, dollars_per_million_in=3, dollars_per_million_out=4).price() == Price(3, 4, 3)


def test_every_mistake_of_a_price_file_is_told(tmp_path):
    file = tmp_path / "prices.yaml"
    file.write_text("a: 3\nb:\n  soon: {in: 1, out: 2}\n  2026-01-01: {in: free, out: 2}\n")
    with pytest.raises(UserErrors) as caught:
        read_prices(file)
    assert len(caught.value.errors) == 3


def test_no_key_is_in_what_an_engine_shows(server):
    engine = opened(server)
    assert "sk-secret" not in engine.name + json.dumps(str(OpenAI("small-one", server.url)))
