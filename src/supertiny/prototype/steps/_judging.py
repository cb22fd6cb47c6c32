"""What a judge is asked and what it says: one answer, guidelines, a verdict with its reason."""

from __future__ import annotations

import json

from supertiny.core.records import Completion, Grammar, Prompt, Verdict, said
from supertiny.prototype.bench import Bench, Trace
from supertiny.prototype.prompting import function_list
from supertiny.prototype.steps._executing import told

_SCHEMA = {
    "type": "object",
    "properties": {"reason": {"type": "string"}, "verdict": {"type": "string", "enum": ["pass", "fail"]}},
    "required": ["reason", "verdict"],
    "additionalProperties": False,
}
_RULES = (
    'Say whether the answer is right, as JSON and nothing else: {"reason": "...", "verdict": "pass"} or '
    '{"reason": "...", "verdict": "fail"}, the reason in at most twenty words.'
)
GRAMMAR = Grammar("json_schema", json.dumps(_SCHEMA))


def judgement_prompt(trace: Trace, guidelines: str, bench: Bench) -> Prompt:
    """The trace's answer, with its results where there are some, put to a judge."""
    words = f"{guidelines}\n\n{function_list(bench.tools_of(trace))}\n\n{_RULES}"
    asked = [f"{message.get('role')}: {said(message)}" for message in trace.request.messages]
    request = trace.request.text if len(asked) == 1 else "\n".join(asked)
    answer = (
        json.dumps([call.to_json() for call in trace.calls or ()], ensure_ascii=False) if trace.calls else "no call"
    )
    lines = [f"Request: {request}", f"Answer: {answer} {trace.text}".rstrip()]
    lines += [f"Results:\n{told(trace.results)}"] if trace.results else []
    return Prompt(({"role": "system", "content": words}, {"role": "user", "content": "\n".join(lines)}), shared=1)


def read_judgement(completion: Completion) -> Verdict:
    """The verdict in a judgement; whatever is none abstains."""
    try:
        judgement = json.loads(completion.text) if completion.finish == "stop" else {}
        outcome, reason = judgement["verdict"], str(judgement["reason"])
    except (ValueError, KeyError, TypeError):
        return Verdict("abstain", 0.0, "the judgement cannot be read")
    return Verdict(outcome, 0.0, reason) if outcome in ("pass", "fail") else Verdict("abstain", 0.0, reason)
