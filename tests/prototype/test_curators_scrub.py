"""Stand-ins for personal data: what is found, what is left, and that text and call stay of one mind."""

from __future__ import annotations

import ipaddress
import json
import re
from pathlib import Path
from typing import Any

import pytest

from supertiny.core.errors import UserError
from supertiny.core.records import Answer, Call, Example, Request, Tool, Verdict
from supertiny.core.task import Task
from supertiny.prototype.curators._reasons import reasons_heard
from supertiny.prototype.curators._stand_ins import StandIns, _luhn, _plain_iban
from tests.small_bench import curated
from tests.small_task import example, small_task

FREE = {"type": "object", "properties": {name: {} for name in ("to", "number", "name", "id")}}
SEND = Tool("Send", "", FREE)
TASK = small_task([SEND], valid=[], test=[])


def scrubbed(text: str, arguments: dict[str, Any] | None = None, seed: int = 1, **settings: Any) -> Example:
    (row,) = all_scrubbed([example(text, [Call("Send", arguments or {})], "a", source="pool")], seed, **settings)
    return row


def all_scrubbed(rows: list[Example], seed: int = 1, task: Task = TASK, **settings: Any) -> list[Example]:
    return curated({"method": "scrub", **settings}, rows, task, seed, Path("nowhere"))


def arguments(row: Example) -> dict[str, Any]:
    assert row.answer is not None
    return dict(row.answer.calls[0].arguments)


@pytest.mark.parametrize(
    ("secret", "kind"),
    [
        ("anna.meier@firma-x.de", "email"),
        ("Ünal.Öz+news@mail.example.co.uk", "email"),
        ("+49 151 2345-6789", "phone"),
        ("0151 23456789", "phone"),
        ("(0351) 123 45 67", "phone"),
        ("(212) 555-0187", "phone"),
        ("212-867-5309", "phone"),
        ("01.23.45.67.89", "phone"),
        ("1-800-555-0199", "phone"),
        ("1 (212) 555-0187", "phone"),
        ("(212)555-0187", "phone"),
        ("2128675309", "phone"),
        ("138 1234 5678", "phone"),
        ("13812345678", "phone"),
        ("98765 43210", "phone"),
        ("9876543210", "phone"),
        ("612 345 678", "phone"),
        ("4111 1111 1111 1111", "card"),
        ("5500-0000-0000-0004", "card"),
        ("378282246310005", "card"),
        ("DE89 3704 0044 0532 0130 00", "iban"),
        ("GB82WEST12345698765432", "iban"),
        ("8.8.4.4", "ip"),
        ("2001:4860:4860::8888", "ip"),
    ],
)
def test_what_is_found_gets_a_stand_in_of_its_own_shape(secret: str, kind: str) -> None:
    row = scrubbed(f"Send it to {secret}, please.", {"to": secret})
    instead = arguments(row)["to"]
    assert row.request.text == f"Send it to {instead}, please."
    assert instead != secret
    assert row.provenance == {"source": "pool", "origin": "a", "changed_by": ["scrub"], "scrubbed": {kind: 2}}
    assert secret not in json.dumps(row.to_json(), ensure_ascii=False)
    if kind in ("phone", "card", "iban"):
        assert re.sub(r"\w", "#", instead) == re.sub(r"\w", "#", secret)
    if kind == "card":
        assert _luhn(re.sub(r"\D", "", instead)) == 0
    if kind == "iban":
        assert _plain_iban(instead)
        assert instead[:2] == secret[:2]
    if kind == "ip":
        assert ipaddress.ip_address(instead) in next(
            network
            for network in map(
                ipaddress.ip_network, ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "2001:db8::/32")
            )
            if ipaddress.ip_address(instead) in network
        )


@pytest.mark.parametrize(
    "text",
    [
        "meet me on 2024-11-21 at 12:30:45",
        "between 21.11.2024 and 5/6/2025",
        "07.11.2024 um 08:00 Uhr",
        "set 10 20 30 40 and 3.14159265358979",
        "version 1.2.3 on 127.0.0.1 or ::1",
        "C::D and std::vector",
        "the kitchen to 70 percent, 0.25 more, 0.0000001 farads",
        "anna will come",
        "pay 5000000000 or 7250000000 or 600 000 000",
        "at 1700000000, or 1700000000000",
        "12 612 345 678 and 700 800 900 000",
        "part no 4111-1111-1111-1112 fails Luhn",
        "включи свет в 21:30, 打开灯 💡",
        "a@b and @home and x@",
    ],
)
def test_what_is_no_personal_data_stays(text: str) -> None:
    row = example(text, [Call("Send", {"to": text, "number": 70})], "a", source="pool")
    assert all_scrubbed([row]) == [row]


def test_same_original_same_stand_in_in_every_spelling_and_row() -> None:
    rows = [
        example("call +49 151 2345678", [Call("Send", {"to": "+491512345678", "number": 491512345678})], "a"),
        example("was it +49-151-2345678?", [], "b"),
        example("call +49 151 2345679", [], "c"),
        example("mail Anna@Web.de or anna@web.de", [], "d"),
    ]
    first, second, third, mails = all_scrubbed(rows)
    digits = re.sub(r"\D", "", first.request.text)
    assert arguments(first) == {"to": f"+{digits}", "number": int(digits)}
    assert re.sub(r"\D", "", second.request.text) == digits
    assert re.sub(r"\D", "", third.request.text) != digits
    left, right = re.findall(r"\S+@\S+", mails.request.text)
    assert left == right
    assert all_scrubbed(rows) == [first, second, third, mails]
    assert all_scrubbed(rows, seed=2)[0].request.text != first.request.text


def test_other_originals_other_stand_ins() -> None:
    texts = [f"{letter}{number}@x.de" for letter in "abc" for number in range(100)]
    texts += [f"9.9.{number // 250}.{number % 250 + 1}" for number in range(500)]
    stand_ins = StandIns(b"key", ("email", "ip", "name"))
    assert len({stand_ins.scrubbed(text) for text in texts}) == len(texts)


def test_names_are_found_by_list_and_pattern_alone() -> None:
    text = "tell Anna and ANNA, Joanna, dr. Weber and anna that 王小明 called"
    assert scrubbed(text).request.text == text
    row = scrubbed(text, {"name": "Anna"}, names=["anna", "王小明"], name_pattern=r"[Dd]r\. ([A-Z]\w+)")
    found = re.fullmatch(r"tell (\w+) and (\w+), Joanna, dr\. (\w+) and (\w+) that (\w+) called", row.request.text)
    assert found
    title, upper, weber, lower, chinese = found.groups()
    assert title == arguments(row)["name"]
    assert (upper, lower) == (title.upper(), title.lower())
    assert len({title, weber, chinese}) == 3
    assert "anna" not in row.request.text.lower().replace("joanna", "")
    assert not {"Weber", "王小明"} & {weber, chinese}
    assert row.provenance["scrubbed"] == {"name": 6}


def test_many_names_have_stand_ins_of_their_own() -> None:
    names = [f"Name{letter}{second}" for letter in "abcdefghij" for second in "abcdefghij"]
    row = scrubbed(" ".join(names), names=names)
    assert len(set(row.request.text.split())) == 100


def test_a_pattern_that_is_none_and_a_key_that_is_not_there_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="name_pattern is no regular expression"):
        scrubbed("x", name_pattern="(")
    monkeypatch.delenv("SCRUB_KEY", raising=False)
    with pytest.raises(UserError, match="SCRUB_KEY"):
        scrubbed("x", key_variable="SCRUB_KEY")
    results = []
    for value in ("one", "two"):
        monkeypatch.setenv("SCRUB_KEY", value)
        results.append(scrubbed("mail a@b.de", key_variable="SCRUB_KEY").request.text)
    assert len({*results, scrubbed("mail a@b.de").request.text}) == 3


def test_nothing_secret_is_left_anywhere_in_the_row() -> None:
    secret = "anna@firma.de"
    messages = (
        {"role": "user", "content": f"mail {secret}"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "1", "type": "function", "function": {"name": "Send", "arguments": json.dumps({"to": secret})}}
            ],
        },
        {"role": "tool", "tool_call_id": "1", "content": f"sent to {secret}"},
        {"role": "user", "content": "again"},
    )
    calls = (Call("Send", {"to": [secret, {"id": secret, "from": secret}]}),)
    answer = Answer(calls, f"I write to {secret}.", raw=f"Send to {secret}")
    provenance = {"source": "pool", "refined": {"before": [{"name": "Send", "arguments": {"from": secret}}]}}
    row = Example(Request("a", messages), answer, Verdict("pass", 0.0, f"{secret} is fine"), provenance)
    (new,) = all_scrubbed([row])
    assert secret not in json.dumps(new.to_json())
    assert new.request.messages[1]["tool_calls"][0]["function"]["name"] == "Send"
    assert set(re.findall(r"[\w.]+@[\w.]+\w", json.dumps(new.to_json()))) == {
        re.search(r"[\w.]+@[\w.]+\w", new.request.messages[0]["content"]).group()  # type: ignore[union-attr]
    }


def test_a_row_that_only_its_secret_made_right_is_dropped() -> None:
    allowed = {"type": "object", "properties": {"to": {"enum": ["anna@firma.de", "kitchen"]}}}
    task = small_task([Tool("Send", "", allowed)], valid=[], test=[])
    rows = [
        Example(Request.from_text(f"mail {to}", to), Answer((Call("Send", {"to": to}),)), Verdict("pass"))
        for to in ("anna@firma.de", "kitchen")
    ]
    with reasons_heard() as reasons:
        assert all_scrubbed(rows, task=task) == rows[1:]
    assert reasons == {"anna@firma.de": "with stand-ins the verifier fails it"}


def test_only_the_kinds_that_are_asked_for_are_replaced() -> None:
    row = scrubbed("a@b.de or 0151 23456789", kinds=["phone"])
    assert row.request.text.startswith("a@b.de or 0555")


@pytest.mark.parametrize(
    ("secret", "more"),
    [
        ("DE89 3704 0044 0532 0130 00", " now please"),
        ("DE89 3704 0044 0532 0130 00", " GB82 WEST 1234 5698 7654 32"),
        ("4111 1111 1111 1111", " 12 times"),
        ("0151 23456789", " 2024-11-21 08:30"),
        ("0151 23456789", " 0171 98765432"),
        ("2001:4860:4860::8888", " 8.8.4.4"),
    ],
)
def test_what_stands_behind_hides_nothing(secret: str, more: str) -> None:
    row = scrubbed(f"send {secret}{more}", {"to": secret})
    assert row.request.text.startswith(f"send {arguments(row)['to']} ")
    assert secret not in json.dumps(row.to_json())
    assert not any(part in row.request.text for part in ("0171 98765432", "WEST", "8.8.4.4"))


def test_a_number_that_a_text_states_with_a_leading_zero_is_replaced_in_the_call() -> None:
    row = scrubbed("call 0151 23456789", {"number": 15123456789, "to": 70})
    digits = int(re.sub(r"\D", "", row.request.text))
    assert arguments(row) == {"number": digits, "to": 70}
    assert scrubbed("call him", {"number": 15123456789}).provenance == {"source": "pool"}, "it may be a time"


def test_texts_that_are_json_stay_json() -> None:
    said = json.dumps({"note": "ask\nünal@firma.de or\n0151 23456789", "at": [1]})
    messages = ({"role": "user", "content": "go on"}, {"role": "tool", "tool_call_id": "1", "content": said})
    row = Example(Request("a", messages), Answer(), Verdict("pass"), {"source": "pool"})
    (new,) = all_scrubbed([row])
    result = json.loads(new.request.messages[1]["content"])
    assert re.fullmatch(r"ask\n[a-z]+\d{4}@example\.com or\n0555 \d{8}", result["note"])
    assert result["at"] == [1]
    assert new.provenance["scrubbed"] == {"email": 1, "phone": 1}


def test_what_an_earlier_curator_noted_stays_and_counts_add_up() -> None:
    row = example("mail a@b.de or 0151 23456789", [], "a", origin="seed", made_by="expand")
    (first,) = all_scrubbed([row], kinds=["email"])
    (second,) = all_scrubbed([first], kinds=["phone"])
    noted = {"origin": "seed", "made_by": "expand", "changed_by": ["scrub", "scrub"]}
    assert second.provenance == {**noted, "scrubbed": {"email": 1, "phone": 1}}
