"""Prompts of a batch that begin alike."""

from __future__ import annotations

import json

from supertiny.core.records import Prompt


def family_of(prompt: Prompt) -> str:
    """Equal for prompts whose declared shared messages are equal; empty where none is declared."""
    leading = [dict(message) for message in prompt.messages[: prompt.shared]]
    return json.dumps(leading, ensure_ascii=False, sort_keys=True) if leading else ""
