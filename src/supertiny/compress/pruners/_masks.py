"""Which weights go: exactly as many as asked, over the matrix, row by row, or so many of each few neighbours."""

from __future__ import annotations

import re

import torch

from supertiny.core.errors import UserError


def pattern_of(pattern: str) -> tuple[int, int] | None:
    """(n, m) of "n:m": n of each m neighbours of a row stay. None where there is no pattern.

    Raises ValueError where that is no pattern.
    """
    if not pattern:
        return None
    found = re.fullmatch(r"(\d{1,4}):(\d{1,4})", pattern)
    if not found or not 0 < int(found[1]) < int(found[2]):
        raise ValueError(f"pattern must be '' or like '2:4', where 2 of each 4 neighbours stay; found {pattern!r}")
    return int(found[1]), int(found[2])


def matrix_of(weight: torch.Tensor, sparsity: float, pattern: str, who: str) -> torch.Tensor:
    """A float32 copy (out, in). Raises UserError where it cannot be pruned so."""
    if weight.ndim != 2 or not weight.numel() or not weight.is_floating_point() or weight.element_size() == 1:
        raise UserError(f"{who} prunes unquantized matrices; found {weight.dtype} of shape {tuple(weight.shape)}")
    if not 0 <= sparsity < 1:
        raise UserError(f"{who}: a sparsity of {sparsity} is asked for", "it is a share: at least 0, less than 1")
    parts = pattern_of(pattern)
    if parts:
        stay, of = parts
        if abs(sparsity - (1 - stay / of)) > 1e-6:
            raise UserError(
                f"{who}: pattern {pattern} is a sparsity of {1 - stay / of:g}, and {sparsity:g} is asked for",
                "ask for that, or for no pattern",
            )
        if weight.shape[1] % of:
            raise UserError(f"{who}: runs of {of} do not fill {weight.shape[1]} columns", "choose another pattern")
    single = weight.detach().to(torch.float32, copy=True)
    if not bool(single.isfinite().all()):
        raise UserError(f"{who}: the matrix has weights that are not finite", "look at how the student was trained")
    return single


def lowest(scores: torch.Tensor, sparsity: float, pattern: str = "", by_row: bool = False) -> torch.Tensor:
    """(out, in) bool: true at the weights with the lowest scores, as many as the share says, rounded to whole ones.

    By row, every row has its share; what does not divide goes to rows whose next weight is the least.
    """
    parts = pattern_of(pattern)
    if parts:
        runs = scores.reshape(-1, parts[1])
        places = runs.argsort(dim=1, stable=True)[:, : parts[1] - parts[0]]
        return torch.zeros_like(runs, dtype=torch.bool).scatter_(1, places, True).reshape(scores.shape)
    count = round(sparsity * scores.numel())
    gone = torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
    if not by_row:
        gone.view(-1)[scores.reshape(-1).argsort(stable=True)[:count]] = True
        return gone
    each, more = divmod(count, len(scores))
    order = scores.argsort(dim=1, stable=True)
    gone.scatter_(1, order[:, :each], True)
    if more:
        next_ones = order[:, each]
        rows = scores.gather(1, next_ones[:, None])[:, 0].argsort(stable=True)[:more]
        gone[rows, next_ones[rows]] = True
    return gone
