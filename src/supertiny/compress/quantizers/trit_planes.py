"""Two planes of -1, 0, 1 with a scale each: products become additions, at about three bits.

Paper: PTQTP, Post-Training Quantization to Trit-Planes, 2025, arXiv:2509.16989.
Use when: about 3 bits, without calibration rows, for kernels that add and subtract.
Differs from the paper: written from descriptions of it; the ridge is fixed at a small share of the planes' size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field

from supertiny.compress.inputs import Inputs
from supertiny.compress.packed import Packed, pack_trits
from supertiny.compress.quantizers._grids import halved, matrix_of, nearest_level

_PAIRS = ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 0), (0, 1), (1, -1), (1, 0), (1, 1))
_RIDGE = 1e-5


@dataclass(frozen=True)
class TritPlanes:
    """Alternates scales by a 2 x 2 ridge regression, and the nearest of 9 sums. Bits: 3.2 + 32 / group."""

    group: Annotated[int, Field(ge=0)] = 64
    """Neighbouring weights of a row that share both scales; must divide the row, 0 is the whole row."""
    rounds: Annotated[int, Field(ge=1)] = 50
    """Most times that both steps are done."""
    tolerance: Annotated[float, Field(gt=0)] = 1e-4
    """A group is done when no scale changes by more than this share of its largest weight."""

    def quantize(self, weight: torch.Tensor, inputs: Inputs | None) -> Packed:
        """Does not look at the inputs."""
        matrix, group = matrix_of(weight, self.group, "trit_planes")
        groups = matrix.reshape(-1, group)
        scales = self._scales(groups)
        first, second = _nearest(groups, scales)[:2]
        height, width = weight.shape
        tensors = {
            "trits": pack_trits(torch.stack([first, second])),
            "scales": scales.half().reshape(height, -1, 2),
        }
        settings = {"planes": 2, "group": group}
        return Packed("trits", (height, width), str(weight.dtype).removeprefix("torch."), settings, tensors)

    def _scales(self, groups: torch.Tensor) -> torch.Tensor:
        """(groups, 2), as float16 keeps them, the best that were met on the way."""
        known = _recovered(groups)
        if known is not None:
            return known
        first = groups.sign()
        second = (groups - first * groups.abs().mean(dim=1, keepdim=True)).sign()
        best = halved(_ridge(groups, first, second))
        least = _nearest(groups, best)[2]
        scales, live = best.clone(), torch.arange(len(groups), device=groups.device)
        limit = self.tolerance * groups.abs().amax(dim=1, keepdim=True)
        for _ in range(self.rounds):
            part = groups[live]
            first, second, _ = _nearest(part, scales[live])
            fresh = halved(_ridge(part, first, second))
            moved = (fresh - scales[live]).abs().amax(dim=1, keepdim=True) > limit[live]
            error = _nearest(part, fresh)[2]
            better = (error < least[live]).squeeze(1)
            best[live[better]], least[live[better]] = fresh[better], error[better]
            scales[live] = fresh
            live = live[moved.squeeze(1)]
            if not len(live):
                break
        return best


def _nearest(groups: torch.Tensor, scales: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Trits of both planes (groups, group), and the squared error (groups, 1)."""
    pairs = torch.tensor(_PAIRS, dtype=groups.dtype, device=groups.device)
    places, values = nearest_level(groups, scales[:, :1] * pairs[:, 0] + scales[:, 1:] * pairs[:, 1])
    return pairs[places, 0], pairs[places, 1], (groups - values).square_().sum(dim=1, keepdim=True)


def _ridge(groups: torch.Tensor, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """(groups, 2) scales of least squares for given trits; solved by hand, as there are but two."""
    ridge = _RIDGE * groups.shape[1]
    a, b, c = (first * first).sum(1) + ridge, (first * second).sum(1), (second * second).sum(1) + ridge
    x, y = (first * groups).sum(1), (second * groups).sum(1)
    below = a * c - b * b
    return torch.stack([(c * x - b * y) / below, (a * y - b * x) / below], dim=1)


def _recovered(groups: torch.Tensor) -> torch.Tensor | None:
    """Scales of groups that all are such sums already, so that nothing is lost; else None."""
    for part in (groups[:256], groups):  # few groups tell it of nearly every matrix
        found, done = _exact_scales(part)
        if not bool(done.all()):
            return None
    return found


def _exact_scales(groups: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales (groups, 2), and (groups,) whether they hold every weight of the group exactly.

    Magnitudes are among a, b, a + b and |a - b|: any two of them, or one and a difference, may be the scales.
    """
    found = torch.zeros(len(groups), 2, device=groups.device)
    done = (groups == 0).all(dim=1)
    rest, sizes = groups.abs(), []
    for _ in range(4):
        sizes.append(rest.amax(dim=1))
        rest = torch.where(rest < sizes[-1][:, None], rest, 0.0)
    for one, two in ((left, right) for place, left in enumerate(sizes) for right in sizes[place:]):
        for scales in ((one, two), (one, one - two), (two, one - two), ((one + two) / 2, (one - two) / 2)):
            tried = halved(torch.stack(scales, dim=1))
            new = (_nearest(groups, tried)[2] == 0).squeeze(1) & ~done
            found[new], done = tried[new], done | new
    return found, done
