"""Completions that keep to a format's grammar, at the price of free ones.

A greedy completion that stands in the grammar is the completion that the grammar would have given: at each place the
most probable token was a lawful one. So prompts are completed freely first, and only those that left the grammar are
completed again under it. Compiling and applying a grammar of forty functions costs more than the answer itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from supertiny.core.protocols import Engine, Format
from supertiny.core.records import Completion, Grammar, Prompt, Sampling, Tool
from supertiny.core.scoring import typed
from supertiny.core.verifying import schema_problem


def complete_lawfully(
    engine: Engine,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    form: Format,
    tools: Sequence[Sequence[Tool]],
    advance: Callable[[int], None] = lambda count: None,
    stands: Callable[[int, Completion], bool] = lambda index, completion: False,
    again: Callable[[int, Completion], None] = lambda index, completion: None,
    words: bool = True,
) -> list[Completion]:
    """One completion per prompt, in order, each in the grammar of its prompt's tools; costs of both tries are added.

    `stands` lets a free completion through that is more than its prompt's tools allow; `again` is told of each second
    try; without `words`, words alone have left the grammar, too. A completion that was cut off at `max_tokens` under
    the grammar may still be unreadable.
    """
    free = engine.complete(prompts, sampling, None, lambda index, completion: advance(1))
    maps = [{tool.name: tool for tool in known} for known in tools]
    broken = [i for i, done in enumerate(free) if not is_lawful(done, form, maps[i], words) and not stands(i, done)]
    bounds = {i: form.grammar(tools[i], words) for i in broken}
    # Where an engine cannot be bound, the same prompt would only give the same words for more money.
    grammars = {i: bound for i, bound in zip(bounds, bindable(engine, list(bounds.values())), strict=True) if bound}
    broken = list(grammars)
    if not broken:
        return free
    tried = engine.complete([prompts[i] for i in broken], sampling, list(grammars.values()))
    whole = list(free)
    for i, second in zip(broken, tried, strict=True):
        again(i, second)
        first = free[i]
        whole[i] = replace(
            second,
            tokens_in=first.tokens_in + second.tokens_in,
            tokens_out=first.tokens_out + second.tokens_out,
            tokens_cached=first.tokens_cached + second.tokens_cached,
            seconds=first.seconds + second.seconds,
        )
    return whole


def bindable(engine: Any, grammars: Sequence[Grammar | None]) -> list[Grammar | None]:
    """The grammars, with None for those that the engine, behind its wrappers, cannot be held to."""
    while hasattr(engine, "engine"):
        engine = engine.engine
    binds = getattr(engine, "binds", lambda grammar: True)
    return [grammar if grammar is not None and binds(grammar) else None for grammar in grammars]


def is_lawful(completion: Completion, form: Format, tools: Mapping[str, Tool], words: bool = True) -> bool:
    """Whether a completion ended by itself and reads as calls of known functions with valid arguments.

    Words alone stand for no call, but not where `words` is False.
    """
    if completion.finish != "stop":
        return False
    try:
        answer = typed(form.decode(completion.text.removesuffix(form.stop)), tools)
    except ValueError:
        return False
    if not words and answer.text and not answer.calls:
        return False
    return not any(schema_problem(call, tools) for call in answer.calls)
