"""The factor of an inverse gram matrix, with which gptq and sparsegpt make up for what a column lost."""

from __future__ import annotations

import torch

from supertiny.core.errors import UserError

_SMALL = 128  # columns that are left to the solver


def inverse_factor(damped: torch.Tensor) -> torch.Tensor:
    """U (in, in), upper, float32, with inverse = U^T U, of a positive matrix in float64.

    The matrix turned around has a Cholesky factor that, turned back, is upper: damped = R R^T. So U is R's inverse, and
    the inverse itself, which squares the rounding errors, is never made. Raises UserError where the matrix is not
    positive.
    """
    turned, failed = torch.linalg.cholesky_ex(damped.flip(0, 1))
    if int(failed):
        raise UserError("the calibration rows leave the inputs' gram matrix without an inverse", "raise `damping`")
    upper = turned.flip(0, 1)
    return _inverse(upper).float()


def _inverse(upper: torch.Tensor) -> torch.Tensor:
    """Of an upper matrix, by halves: a third of the work of a solver, which does not know that zeros come out too."""
    size = len(upper)
    if size <= _SMALL:
        one = torch.eye(size, dtype=upper.dtype, device=upper.device)
        solved: torch.Tensor = torch.linalg.solve_triangular(upper, one, upper=True)
        return solved
    half, result = size // 2, torch.zeros_like(upper)
    result[:half, :half] = first = _inverse(upper[:half, :half])
    result[half:, half:] = last = _inverse(upper[half:, half:])
    result[:half, half:] = -(first @ (upper[:half, half:] @ last))
    return result
