"""What looks like a key is taken out; what only reads a bit like one stays."""

from __future__ import annotations

import pytest

from supertiny.report.redact import HIDDEN, redacted


@pytest.mark.parametrize(
    "secret",
    [
        "sk-abcdefghijklmnopqrstuvwx",
        "sk-proj-AbCdEf0123456789_xyz",
        "hf_AbCdEfGhIjKlMnOpQrSt",
        "ghp_0123456789abcdefghij0123456789abcdef",
        "AKIAABCDEFGHIJKLMNOP",
    ],
)
def test_keys_are_hidden_wherever_they_stand(secret: str) -> None:
    value = {"settings": f"engine: {{model: m}} # {secret}", "list": [secret, 1], "nested": {"deep": f"x {secret} y"}}
    assert secret not in str(redacted(value))


@pytest.mark.parametrize(
    ("line", "clean"),
    [
        ("api_key: hunter2", f"api_key: {HIDDEN}"),
        ("  OPENAI_API_KEY: 'my key'", f"  OPENAI_API_KEY: {HIDDEN}"),
        ("{method: openai, api_key: abc, model: m}", f"{{method: openai, api_key: {HIDDEN}, model: m}}"),
        ('password = "p w"', f"password = {HIDDEN}"),
        ("url: https://me:secretword@host/v1", f"url: https://me:{HIDDEN}@host/v1"),
    ],
)
def test_named_secrets_are_hidden_in_text(line: str, clean: str) -> None:
    assert redacted(line) == clean


def test_secrets_are_hidden_by_the_name_of_their_field() -> None:
    assert redacted({"api_key": "abc", "password": "x"}) == {"api_key": HIDDEN, "password": HIDDEN}


def test_what_is_no_secret_is_left_alone() -> None:
    value = {
        "tokens_in": 18.0,
        "max_tokens": 96,
        "settings": "max_tokens: 96\ntokenizer: own\nfamily: tokens\nseed: 7",
        "artifact sha256": "8c2f91b0a7d34e5566778899aabbccddeeff00112233445566778899aabbccdd",
        "prototype key": "0123456789abcdef01234567",
        "text": "schalte das Licht im Büro ein; включи свет; 打开厨房的灯 😀",
        "none": None,
        "flag": True,
    }
    assert redacted(value) == value
