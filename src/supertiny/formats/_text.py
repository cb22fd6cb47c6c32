"""Text that a tokenizer reads back as it was meant: JSON in one spelling, and prose that cannot be taken for it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

_SPECIAL = "<|"  # Begins the special tokens of the chat models that students are made from.


def json_text(value: Any) -> str:
    """The one JSON spelling of a value: keys sorted, one line, every script readable, no special token in it."""
    text = json.dumps(value, ensure_ascii=False, sort_keys=True)
    return text.replace(_SPECIAL, "\\u003c|")


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


def said(message: Mapping[str, Any]) -> str:
    """The text of a chat message; of content given in parts, the texts one after the other."""
    content = message.get("content")
    if isinstance(content, str) or content is None:
        return content or ""
    return "\n".join(str(part.get("text", "")) for part in content if isinstance(part, Mapping))
