"""Matrices that read the same inputs, as products with one factor that they share."""

from __future__ import annotations

import torch

_FLOOR = 1e-6  # of the mean variance: directions that no calibration row has would divide by nothing


@torch.no_grad()
def factors(weights: torch.Tensor, seen: torch.Tensor, kept: int, group: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(experts, rows, kept) and (groups, kept, width): the best of that rank for inputs of second moment `seen`.

    `weights` is (experts, rows, width). With seen = S S^T the error |(W - A B) S|^2, summed over a group, is least
    where B S spans the strongest eigenvectors of the sum of (W S)^T (W S): what is lost are the other eigenvalues.
    Of all pairs with that product, rows of B are orthonormal: a learning rate then means as much to it as to A.
    """
    values, vectors = torch.linalg.eigh(seen.double())
    values = values.clamp_min(_FLOOR * float(values.mean().clamp_min(1e-30)))
    root, inverse = vectors * values.sqrt(), (vectors / values.sqrt()).T
    own, shared = [], []
    for part in torch.split(weights, group or len(weights)):
        scaled = part.double().cpu() @ root
        strongest = torch.linalg.eigh(torch.einsum("erx,ery->xy", scaled, scaled)).eigenvectors[:, -kept:]
        directions, rest = torch.linalg.qr((strongest.T @ inverse).T)
        own.append(scaled @ strongest @ rest.T)
        shared.append(directions.T)
    return torch.cat(own).to(weights), torch.stack(shared).to(weights)
