"""Text that a tokenizer reads back as it was meant: JSON in one spelling, and prose that cannot be taken for it."""

from __future__ import annotations

import json
from typing import Any

from supertiny.core.records import Answer

_SPECIAL = "<|"  # Begins the special tokens of the chat models that students are made from.


def json_text(value: Any) -> str:
    """The one JSON spelling of a value: keys sorted, one line, every script readable, no special token in it."""
    text = json.dumps(value, ensure_ascii=False, sort_keys=True)
    return text.replace(_SPECIAL, "\\u003c|")


def is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def bare_value(text: str) -> Any:
    """A number, true, false or null in the spelling of `json_text`; in any other, such as 1.10, the text itself."""
    value = json.loads(text) if is_json(text) else text
    return value if json_text(value) == text else text


def prose(text: str, reserved: str = "") -> str:
    """A text as it stands, or as a JSON string where it could be misread: see `is_plain`."""
    return text if is_plain(text, reserved) else json_text(text)


def is_plain(text: str, reserved: str = "") -> bool:
    """Whether a text begins with no quote and none of `reserved`, has no blanks at its ends, no control characters but
    line feeds and tabs, and no special token."""
    clean = text.strip() == text and _SPECIAL not in text and not text.startswith(('"', *reserved))
    return clean and all(letter >= " " or letter in "\n\t" for letter in text)


def read_prose(text: str) -> str:
    """Inverse of `prose`. Raises ValueError where a quoted text is broken."""
    if not text.startswith('"'):
        return text
    value = json.loads(text)
    if not isinstance(value, str):
        raise ValueError(f"not a quoted text: {text!r}")
    return value


def whole(answer: Answer) -> Answer:
    """The answer itself. Raises ValueError where an escape in its text, such as `\\ud83d`, names half a character."""
    for call in answer.calls:
        json.dumps([call.tool, dict(call.arguments)], ensure_ascii=False).encode()
    answer.text.encode()
    return answer
