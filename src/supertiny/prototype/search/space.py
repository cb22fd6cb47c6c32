"""The pipelines that a search tries: each is one choice of steps, examples, engine, format and wording."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import product
from typing import Any

from supertiny.core.errors import UserError, gathered
from supertiny.core.files import hash_of
from supertiny.core.methods import Own, build, cards
from supertiny.prototype.search.settings import Settings as Search
from supertiny.prototype.settings import Settings
from supertiny.prototype.steps._order import misplaced

_EXAMPLES = (0, 3, 6, 10)
_MOST = 300  # pipelines; of a larger space, first rounds alone take longer than anybody waits
_ADDED = ("check", "vote")  # tried beside the recipe's own steps where the recipe says nothing
# Steps that write the answer or show examples: a pipeline without them is not one that anybody wants to see tried.
_ESSENTIAL = {"retrieve", "fill", "plain", "plan", "cascade", "mark", "stack"}
Block = Any


@dataclass(frozen=True)
class Candidate:
    """A pipeline that may be tried, in the words of a recipe."""

    steps: tuple[Block, ...]
    engine: Block
    format: Block
    wording: str = ""
    """Empty is the task's description."""
    note: str = field(default="", compare=False)
    """What it has beside its steps that others of its search have not."""

    @property
    def key(self) -> str:
        """Under which its results are kept."""
        steps = [_as_mapping(block) for block in self.steps]
        return hash_of([steps, _as_mapping(self.engine), _as_mapping(self.format), self.wording])

    @property
    def name(self) -> str:
        steps = " + ".join(_titled(block) for block in self.steps) or "no step"
        return f"{steps} ({self.note})" if self.note else steps

    def within(self, settings: Settings) -> Settings:
        """The prototype's settings with this pipeline in place of theirs."""
        return replace(settings, steps=self.steps, engine=self.engine, format=self.format, wording=self.wording)

    def without_each_step(self) -> list[tuple[str, Candidate]]:
        """(step, the pipeline without it) for each of several steps, those within others too."""
        return [(title, replace(self, steps=steps)) for title, steps in _without_each(self.steps)]


def present(settings: Settings) -> Candidate:
    """The recipe's own pipeline."""
    return Candidate(settings.steps, settings.engine, settings.format, settings.wording)


def mistakes(search: Search, settings: Settings, own: Own | None = None) -> list[UserError]:
    """What is wrong with a search, each with its place; `own` are steps that the task brings along."""
    errors: list[UserError] = []
    places = [(f"optimise.steps.{n}.{m}", b) for n, steps in enumerate(search.steps or ()) for m, b in enumerate(steps)]
    places += [(f"optimise.optional.{n}", block) for n, block in enumerate(search.optional or ())]
    for n, block in enumerate(search.examples or ()):
        if isinstance(block, Mapping):
            places.append((f"optimise.examples.{n}", block))
            if block.get("method") != "retrieve":
                errors.append(UserError(f"optimise.examples.{n}: must be a number or a retrieve block; found {block}"))
    for place, block in places:
        with gathered(errors):
            build("steps", block, place, own)
    if not errors:
        for n, steps in enumerate(search.steps or ()):
            errors += misplaced([build("steps", block, own=own) for block in steps], f"optimise.steps.{n}")
    for name in ("steps", "examples"):
        if getattr(search, name) == ():
            errors.append(
                UserError(f"optimise.{name}: is empty, so there is nothing to try", "leave it out, or fill it")
            )
    errors += [
        UserError(f"optimise.steps.{n}: has no step", "list steps, such as [fill, check]")
        for n, steps in enumerate(search.steps or ())
        if not steps
    ]
    if search.selector is not None and not search.wordings:
        errors.append(UserError("optimise.selector: there are no wordings to select from", "list some in wordings"))
    count = 0 if errors else len(candidates(search, settings, own=own))
    if count > _MOST:
        errors.append(UserError(f"optimise: {count} pipelines are more than {_MOST}", "list fewer steps or examples"))
    return errors


def candidates(
    search: Search, settings: Settings, wordings: Sequence[str] | None = None, own: Own | None = None
) -> list[Candidate]:
    """Every pipeline of the space once, the recipe's own first; with these `wordings` alone beside it, where given.

    The search must be without mistakes. A wording's number is its place in the recipe, whatever is left out.
    """
    texts = list(dict.fromkeys([settings.wording, *search.wordings]))
    tried = texts if wordings is None else wordings
    engines = search.engines or (settings.engine,)
    formats = search.formats or (settings.format,)
    found: dict[str, Candidate] = {}

    def add(steps: Sequence[Block], engine: Block, form: Block, wording: str) -> None:
        built = [build("steps", block, own=own) for block in steps]
        note = _note(engine, form, texts.index(wording), search, texts)
        candidate = Candidate(tuple(steps), engine, form, wording, note)
        # Two ways of saying the same thing are one pipeline; one that asks nothing, or whose steps cannot follow each
        # other, is none, but for the recipe's own.
        key = replace(candidate, steps=tuple(repr(step) for step in built)).key
        if not found or (sum(step.calls_per_request for step in built) > 0 and not misplaced(built, "")):
            found.setdefault(key, candidate)

    add(settings.steps, settings.engine, settings.format, settings.wording)
    for choice in product(_pipelines(search, settings), engines, formats, tried):
        add(*choice)
    return list(found.values())


def _pipelines(search: Search, settings: Settings) -> Iterator[tuple[Block, ...]]:
    examples, optional = search.examples, search.optional
    if search.steps is None:
        own = tuple(block for block in _all_steps(settings.steps) if _method(block) == "retrieve")[:1]
        examples = (*_EXAMPLES, *(_as_mapping(block) for block in own)) if examples is None else examples
        optional = _optional(settings) if optional is None else optional
        if "plain" in cards("steps"):
            yield ("plain",)
    for pipeline in search.steps or (settings.steps,):
        for shown in examples or (None,):
            for chosen in product(*_alternatives(optional or ())):
                steps = _with_examples(pipeline, shown)
                for method, block in chosen:
                    steps = _with_step(steps, method, block)
                yield steps


def _optional(settings: Settings) -> tuple[Block, ...]:
    """The recipe's steps that can be left out, and those that are always worth a try."""
    names = [_method(block) for block in _all_steps(settings.steps)]
    own = [name for name in names if name not in _ESSENTIAL] if _ESSENTIAL & {*names} - {"retrieve"} else []
    return (*dict.fromkeys([*own, *_ADDED]),)


def _alternatives(optional: Sequence[Block]) -> list[list[tuple[str, Block | None]]]:
    """By method: (method, None), which is without it, and (method, block) for each block given."""
    by_method: dict[str, list[tuple[str, Block | None]]] = {}
    for block in optional:
        method = _method(block)
        by_method.setdefault(method, [(method, None)]).append((method, block))
    return list(by_method.values())


def _with_examples(steps: Sequence[Block], shown: int | Mapping[str, Any] | None) -> tuple[Block, ...]:
    """The pipeline with this choice of examples; None leaves it as it is.

    Where it had none they come first: within a step that has steps of its own, as that starts from the bare request.
    """
    if shown is None:
        return tuple(steps)

    def chosen(block: Block) -> list[Block]:
        if _method(block) != "retrieve":
            return [block]
        return [] if shown == 0 else [_retrieve(block, shown)]

    if shown == 0 or any(_method(block) == "retrieve" for block in _all_steps(steps)):
        return _each(steps, chosen)
    first = _retrieve("retrieve", shown)
    if any(map(_inner, steps)):
        return tuple(_with_inner(block, (first, *_inner(block))) if _inner(block) else block for block in steps)
    return (first, *steps)


def _retrieve(block: Block, shown: int | Mapping[str, Any]) -> Block:
    return dict(shown) if isinstance(shown, Mapping) else {**_as_mapping(block), "examples": shown}


def _with_step(steps: Sequence[Block], method: str, block: Block | None) -> tuple[Block, ...]:
    """The pipeline with the step in its place, or at its end; without it where the block is None."""
    if block is not None and method not in [_method(known) for known in _all_steps(steps)]:
        return (*steps, block)

    def chosen(known: Block) -> list[Block]:
        if _method(known) != method:
            return [known]
        return [] if block is None else [known if isinstance(block, str) else block]

    return _each(steps, chosen)


def _inner(block: Block) -> tuple[Block, ...]:
    """The steps within a step, as its block or its defaults have them."""
    said = _as_mapping(block).get("steps")
    card = cards("steps").get(_method(block))  # a step that the task brings along says its own itself
    if said is None and card is not None:
        said = next((one.default for one in fields(card.load()) if one.name == "steps"), ())
    return tuple(said) if isinstance(said, list | tuple) else ()


def _with_inner(block: Block, steps: Sequence[Block]) -> Block:
    return {**_as_mapping(block), "steps": list(steps)}


def _all_steps(steps: Sequence[Block]) -> Iterator[Block]:
    """The steps in order, each followed by those within it."""
    for block in steps:
        yield block
        yield from _all_steps(_inner(block))


def _each(steps: Sequence[Block], chosen: Callable[[Block], list[Block]]) -> tuple[Block, ...]:
    """The steps, those within others too, with what `chosen` has in place of each."""
    found: list[Block] = []
    for block in steps:
        inner = _each(_inner(block), chosen)
        found += chosen(block if inner == _inner(block) else _with_inner(block, inner))
    return tuple(found)


def _without_each(steps: Sequence[Block]) -> Iterator[tuple[str, tuple[Block, ...]]]:
    for place, block in enumerate(steps):
        before, after = tuple(steps[:place]), tuple(steps[place + 1 :])
        if len(steps) > 1:
            yield _titled(block), before + after
        for title, inner in _without_each(_inner(block)):
            yield f"{title} within {_method(block)}", (*before, _with_inner(block, inner), *after)


def _note(engine: Block, form: Block, wording: int, search: Search, texts: Sequence[str]) -> str:
    """What tells a candidate from those with the same steps."""
    parts = [str(_as_mapping(engine).get("model") or _titled(engine))] if search.engines else []
    parts += [_titled(form)] if search.formats else []
    parts += [f"wording {wording}"] if len(texts) > 1 else []
    return ", ".join(parts)


def _titled(block: Block) -> str:
    said = {name: value for name, value in _as_mapping(block).items() if name != "method"}
    if isinstance(said.get("steps"), list | tuple):
        said["steps"] = f"[{' + '.join(map(_titled, said['steps']))}]"
    settings = ", ".join(f"{name}={value}" for name, value in said.items())
    return f"{_method(block)}({settings})" if settings else _method(block)


def _method(block: Block) -> str:
    return str(_as_mapping(block).get("method"))


def _as_mapping(block: Block) -> dict[str, Any]:
    return dict(block) if isinstance(block, Mapping) else {"method": block}
