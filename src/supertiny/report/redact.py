"""Takes out of a report what looks like a key or a password, since reports are passed on."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "[redacted]"
_NAME = r"(?:api[_-]?key|access[_-]?key|secret\w*|pass(?:word|wd|phrase)|authorization|credentials?|(?:\w+_)?token)"
_SECRET_NAME = re.compile(rf"(?i)^{_NAME}$|(?:api|access|private)[_-]?key$|[_-](?:secret|password|token)$")
_LINE = re.compile(
    r"(?im)((?:^|[\s{,;\"'])[\w.-]*(?:api[_-]?key|access[_-]?key|private[_-]?key|secret|password|passwd|authorization|"
    r"[_-]token|\btoken)[\"']?\s*[:=]\s*)(?!null\b|~)([\"'][^\"'\n]*[\"']|[^\s,}]+)"
)
_LOOKS_SECRET = re.compile(
    r"\b(?:sk|pk|rk)-[\w-]{16,}|\bhf_\w{16,}|\bgh[pousr]_\w{20,}|\bgithub_pat_\w{20,}|\bAKIA[A-Z0-9]{12,}|\bAIza[\w-]{30,}"
    r"|\bxox[abprs]-[\w-]{10,}|\bBearer\s+[\w.~+/-]{12,}=*|\beyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]{5,}"
)
_URL_PASSWORD = re.compile(r"(\w+://[^\s/:@]*:)[^\s/@]+(@)")


def redacted(value: Any) -> Any:
    """The same plain value without secrets; numbers, and strings that do not look like a secret, are left alone."""
    if isinstance(value, Mapping):
        return {key: _hidden(item) if _SECRET_NAME.search(str(key)) else redacted(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [redacted(item) for item in value]
    if isinstance(value, str):
        text = _LINE.sub(lambda found: found.group(1) + HIDDEN, value)
        return _URL_PASSWORD.sub(rf"\1{HIDDEN}\2", _LOOKS_SECRET.sub(HIDDEN, text))
    return value


def _hidden(value: Any) -> Any:
    return HIDDEN if isinstance(value, str) and value else redacted(value)
