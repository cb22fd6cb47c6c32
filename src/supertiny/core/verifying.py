"""The generic verifier: is this call one that the task's functions allow, and does the task's own hook confirm it?"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, cast

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, ValidationError, best_match

from supertiny.core.errors import UserError, nearest_word
from supertiny.core.files import hash_of
from supertiny.core.records import Call, Outcome, Request, Tool, Verdict
from supertiny.core.scoring import plain_value, similarity

Hook = Callable[[str, list[dict[str, Any]]], tuple[str, str]]
Execute = Callable[[str, dict[str, Any]], Any]
OUTCOMES = ("pass", "fail", "abstain")


def load_hooks(path: Path) -> tuple[Hook | None, Execute | None]:
    """The functions `verify` and `execute` of a task's hooks.py; None for each that is not there.

    This runs code of the task's author: open only tasks whose hooks you would run by hand.
    Raises UserError where the file cannot be imported or has neither.
    """
    if not path.is_file():
        return None, None
    spec = importlib.util.spec_from_file_location(f"task_hooks_{hash_of(str(path.resolve()))}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"{path} cannot be read as Python")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever the author's code does wrong is told with its place
        raise UserError(f"{path} cannot be imported: {type(error).__name__}: {error}") from error
    verify, execute = getattr(module, "verify", None), getattr(module, "execute", None)
    if not callable(verify) and not callable(execute):
        raise UserError(f"{path} has no function verify(request_text, calls)", "and no execute(request_text, call)")
    return cast(Hook, verify) if callable(verify) else None, cast(Execute, execute) if callable(execute) else None


def schema_problem(call: Call, tools: Mapping[str, Tool]) -> str:
    """What is wrong with a call by its function's schema, in words; empty where nothing is."""
    if call.tool not in tools:
        return f"unknown function {call.tool!r}; {nearest_word(call.tool, tools)}"
    if not isinstance(call.arguments, Mapping):
        return f"{call.tool}: arguments must be a JSON object; found {call.arguments!r}"
    schema = tools[call.tool].parameters
    known = schema.get("properties", {})
    for name in call.arguments:
        if name not in known and not schema.get("additionalProperties", False):
            return f"{call.tool} has no argument {name!r}; {nearest_word(name, known) if known else 'it takes none'}"
    error = best_match(_validator(json.dumps(schema)).iter_errors(plain_value(call.arguments, schema)))
    return f"{call.tool}: {_told(error)}" if error else ""


def check_schema(tool: Tool) -> str:
    """What is wrong with a tool's own parameters, or nothing."""
    fault = _fault(json.dumps(tool.parameters))
    if fault:
        return f"parameters of {tool.name!r} are no JSON Schema: {fault}"
    if tool.parameters.get("type", "object") != "object":
        return f"parameters of {tool.name!r} must be an object; found type {tool.parameters['type']!r}"
    return ""


def verified(
    request: Request,
    calls: Sequence[Call],
    tools: Mapping[str, Tool],
    hook: Hook | None = None,
    gold: Sequence[Call] | None = None,
) -> Verdict:
    """Schema first, then the hook. Without calls, and without a hook that knows better, it abstains.

    `similarity` is 0..1 against `gold`, 0 where there is none. Raises UserError where the hook answers with
    something else than (outcome, reason).
    """
    near = similarity(calls, gold, tools) if gold is not None else 0.0
    for call in calls:
        problem = schema_problem(call, tools)
        if problem:
            return Verdict("fail", near, problem)
    if hook is not None:
        given = hook(request.text, [call.to_json() for call in calls])
        if not isinstance(given, tuple) or len(given) != 2 or given[0] not in OUTCOMES:
            hint = "it must give (outcome, reason), outcome one of " + ", ".join(OUTCOMES)
            raise UserError(f"the task's verify gave {given!r}", hint)
        return Verdict(cast(Outcome, given[0]), near, str(given[1]))
    if not calls:
        return Verdict("abstain", near, "no call: nothing can be executed to confirm it")
    return Verdict("pass", near, "")


def _told(error: ValidationError) -> str:
    place = ".".join(str(part) for part in error.absolute_path)
    if error.validator == "enum":
        allowed = [str(value) for value in cast(list[Any], error.validator_value)]
        return f"{place}: {error.instance!r} is not allowed; {nearest_word(str(error.instance), allowed)}"
    return f"{place}: {error.message}" if place else error.message


@cache
def _fault(schema_text: str) -> str:
    try:
        Draft202012Validator.check_schema(json.loads(schema_text))
    except SchemaError as error:
        return error.message
    return ""


@cache
def _validator(schema_text: str) -> Draft202012Validator:
    return Draft202012Validator(json.loads(schema_text))
