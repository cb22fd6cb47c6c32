"""The factor of an inverse gram matrix, with which gptq and sparsegpt make up for what a column lost."""

from __future__ import annotations

import torch

from supertiny.core.errors import UserError


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
    one = torch.eye(len(upper), dtype=upper.dtype, device=upper.device)
    factor: torch.Tensor = torch.linalg.solve_triangular(upper, one, upper=True)
    return factor.float()
