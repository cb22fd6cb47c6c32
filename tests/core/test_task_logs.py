"""Task folders from chat logs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from supertiny.core.tables import read_table
from supertiny.core.task import DESCRIPTION, load_task
from supertiny.core.task_import import new_task


def test_a_system_message_that_all_logs_share_becomes_the_description(tmp_path: Path) -> None:
    def log(number: int, system: str) -> dict[str, Any]:
        arguments = json.dumps({"area": f"area {number % 3}"})
        call = {"id": "1", "type": "function", "function": {"name": "TurnOn", "arguments": arguments}}
        words = f"{'abcdefghijklmnopqrstuvwxyz'[number] * 9} {number * 7919}"
        messages = [{"role": "system", "content": system}, {"role": "user", "content": words}]
        return {"messages": messages, "tool_calls": [call]}  # the answer beside the messages

    for name, system in (("same", lambda n: "You are a home."), ("other", lambda n: f"It is {n} o'clock.")):
        lines = [json.dumps(log(number, system(number))) for number in range(16)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
        assert sum(new_task(read_table(tmp_path / f"{name}.jsonl"), tmp_path / name).values()) == 16
    same, other = load_task(tmp_path / "same"), load_task(tmp_path / "other")
    assert same.description == "You are a home."
    assert [message["role"] for message in same.labelled[0].request.messages] == ["user"]
    assert same.labelled[0].answer is not None
    assert same.labelled[0].answer.calls[0].tool == "TurnOn"
    assert other.description == DESCRIPTION
    assert [message["role"] for message in other.labelled[0].request.messages] == ["system", "user"]
