"""The steps of a recipe: what family each block is of, and what the stage itself must know of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from supertiny.core.errors import UserError, UserErrors, gathered, nearest_word
from supertiny.core.methods import build, cards

FAMILIES = ("reshapers", "pruners", "quantizers", "exporters")
_PLACE = "compress.steps"
# Types of five bits or less, which do not hold what lies on a type's grid or is rounded by a method to uneven levels.
_MOVING = {
    "q4_0": {"q4_k", "q5_k"},
    "q4_1": {"q4_0", "q4_k", "q5_0", "q5_k"},
    "q5_0": {"q4_0", "q4_1", "q4_k", "q5_k"},
    **{grid: {"q4_0", "q4_1", "q4_k", "q5_0", "q5_1", "q5_k"} for grid in ("q8_0", "nf4", "trit_planes")},
}


@dataclass(frozen=True)
class Step:
    """A method and, where it changes matrix by matrix, how much of which ones."""

    family: str
    method: Any
    sparsity: float = 0.0
    """Share of zeros that a pruner makes."""
    skip: tuple[str, ...] = ()
    """Matrices that a pruner or quantizer leaves alone: names of the student, where `*` stands for anything."""

    @property
    def needs(self) -> set[str]:
        """What the method asks for, by the words of its `needs`."""
        return {word for need in getattr(self.method, "needs", ()) for word in need.split("|")}

    @property
    def trains(self) -> bool:
        """Whether the recovery trains through the method: it has no result of its own worth keeping."""
        return hasattr(self.method, "attach")

    def skips(self, name: str) -> bool:
        """Whether the matrix of this name, without ".weight", is left alone."""
        return any(fnmatchcase(name, own) or fnmatchcase(f"{name}.weight", own) for own in self.skip)


def name_of(block: Any) -> str:
    return block if isinstance(block, str) else str(block.get("method"))


def title_of(block: Any) -> str:
    """A block as people read it: `drop_blocks (share 0.2)`."""
    if isinstance(block, str):
        return block
    settings = ", ".join(f"{key} {value}" for key, value in block.items() if key != "method")
    return f"{block['method']} ({settings})" if settings else str(block["method"])


def family_of(name: str) -> str | None:
    """The family among a recipe's that has a method of this name; None where none has."""
    return next((family for family in FAMILIES if name in cards(family)), None)


def step_of(block: Any, place: str) -> Step:
    """The step of a block: a method's name, or {method, its settings}; a pruner's has `sparsity`.

    Pruners and quantizers may `skip` matrices. Raises UserErrors with every mistake of the block.
    """
    named = {"method": block} if isinstance(block, str) else block
    if not isinstance(named, Mapping) or not isinstance(named.get("method"), str):
        raise UserError(f"{place}: needs a method's name, or {{method: NAME, ...}}; found {block!r}")
    family = family_of(named["method"])
    if family is None:
        known = [name for each in FAMILIES for name in cards(each)]
        problem = f"{place}: there is no reshaper, pruner, quantizer or exporter {named['method']!r}"
        raise UserError(problem, nearest_word(named["method"], known))
    errors: list[UserError] = []
    rest, spot = dict(named), f"{place}.{named['method']}"
    sparsity = _sparsity(rest.pop("sparsity", None), spot, errors) if family == "pruners" else 0.0
    skip = _skip(rest.pop("skip", ()), spot, errors) if family in ("pruners", "quantizers") else ()
    method = None
    with gathered(errors):
        method = build(family, rest, place)
    if skip and hasattr(method, "attach"):
        errors.append(UserError(f"{spot}: it is trained in all matrices and can skip none", "leave `skip` out"))
    if errors:
        raise errors[0] if len(errors) == 1 else UserErrors(errors)
    return Step(family, method, sparsity, skip)


def _sparsity(value: Any, spot: str, errors: list[UserError]) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1:
        return float(value)
    found = "none" if value is None else repr(value)
    told = f"{spot}: needs `sparsity`, the share of zeros, above 0 and below 1"
    errors.append(UserError(f"{told}, such as {{method: {spot.rpartition('.')[2]}, sparsity: 0.5}}; found {found}"))
    return 0.0


def _skip(value: Any, spot: str, errors: list[UserError]) -> tuple[str, ...]:
    if isinstance(value, list | tuple) and all(isinstance(name, str) for name in value):
        return tuple(value)
    errors.append(UserError(f"{spot}: skip must be a list of matrices' names; found {value!r}"))
    return ()


def steps_of(blocks: Sequence[Any]) -> list[Step]:
    """The steps of a recipe, in order. Raises UserErrors with every mistake, each with its place."""
    steps, errors = list[Step](), list[UserError]()
    for number, block in enumerate(blocks):
        with gathered(errors):
            steps.append(step_of(block, f"{_PLACE}.{number}"))
    if errors:
        raise errors[0] if len(errors) == 1 else UserErrors(errors)
    _check_order(blocks, steps)
    return steps


def _check_order(blocks: Sequence[Any], steps: Sequence[Step]) -> None:
    exports = [step.family == "exporters" for step in steps]
    if exports != [False] * (len(steps) - 1) + [True]:
        raise UserError(f"{_PLACE}: must end with one exporter, and have no other", "for example gguf")
    rounded = pruned = None
    for place, step in enumerate(steps[:-1]):
        pruned = place if step.family == "pruners" else pruned
        if step.family == "quantizers":
            rounded = place
            # One that skips matrices may skip those that were pruned: their names are not known yet.
            if pruned is not None and getattr(step.method, "zeroless", False) and not step.skip:
                later, before = name_of(blocks[place]), name_of(blocks[pruned])
                problem = f"{_PLACE}.{place}: zero is no point of {later}'s grid: what {before} removed would come back"
                raise UserError(problem, "let it `skip` what was pruned, or choose a grid with zero, such as q4_0")
        elif rounded is not None:
            later, fitted = name_of(blocks[place]), name_of(blocks[rounded])
            problem = f"{_PLACE}.{place}: {later} would move what {fitted} rounded off its grid"
            raise UserError(problem, "let quantizers stand last, before the exporter")
    _check_grids(blocks, steps)


def _check_grids(blocks: Sequence[Any], steps: Sequence[Step]) -> None:
    file = steps[-1].method
    for place, step in enumerate(steps[:-1] if name_of(blocks[-1]) == "gguf" else ()):
        grid = getattr(step.method, "grid", "") or name_of(blocks[place])
        # A type of single matrices may be that of those which the quantizer rounded.
        if {file.type, *file.types.values()} <= _MOVING.get(grid, set()):
            problem = f"{_PLACE}.{place}: gguf's {file.type} would round again what {name_of(blocks[place])} rounded"
            raise UserError(problem, "choose the same grid and type, such as gptq with grid: q4_0 and type: q4_0")
