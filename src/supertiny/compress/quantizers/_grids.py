"""Even grids: per group of a row a scale and a range of integers; what rtn, gptq, hqq and llama.cpp round to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch

from supertiny.compress.packed import BLOCK, Packed, llama_blocks, pack_bits
from supertiny.core.errors import UserError

Zero = Literal["middle", "integer", "offset"]
LlamaType = Literal["q4_0", "q4_1", "q5_0", "q8_0"]
_LARGEST = 65504.0  # of float16, which scales are stored in
_SAMPLE = 256  # groups that are looked at before all are
_SHARES = 8  # of a group's range that a search begins with
_NUMBERS = 1 << 20  # weights times candidates that are looked at together
_AGAIN = 2  # times that the best points of a search are fitted to their own codes once more


class Points(NamedTuple):
    """Where the points of each group stand: scale * (lowest + code) + offset. Each is (groups, 1)."""

    scale: torch.Tensor
    lowest: torch.Tensor
    offset: torch.Tensor

    def inverse(self) -> torch.Tensor:
        """Of the scale, and 0 where that is 0."""
        return self.scale.reciprocal().masked_fill_(self.scale == 0, 0)


class _Reach(NamedTuple):
    """Of each group the lowest weight, the highest, and the one of the two that is further from zero."""

    low: torch.Tensor
    high: torch.Tensor
    extreme: torch.Tensor


class _Sought(NamedTuple):
    """What a search looks at: weights (group, groups), their cost (group,), its sum, their means (1, groups) on an
    offset grid and else 0, and cost * (weight - mean).
    """

    columns: torch.Tensor
    cost: torch.Tensor
    total: torch.Tensor
    centre: torch.Tensor
    pull: torch.Tensor


@dataclass(frozen=True)
class Grid:
    """What is possible within a group; `type` is the type of llama.cpp that it is stored as, or ""."""

    bits: int
    group: int
    zero: Zero
    type: str = ""

    @classmethod
    def of_type(cls, type: LlamaType) -> Grid:
        bits = {"q4_0": 4, "q4_1": 4, "q5_0": 5, "q8_0": 8}[type]
        return cls(bits, BLOCK, "offset" if type == "q4_1" else "middle", type)

    @property
    def span(self) -> int:
        """The largest code; the smallest is 0."""
        return 254 if self.type == "q8_0" else (1 << self.bits) - 1

    def groups(self, weight: torch.Tensor) -> torch.Tensor:
        """(groups, group) of a matrix (out, in)."""
        return weight.reshape(-1, self.group)

    def codes(self, groups: torch.Tensor, points: Points) -> torch.Tensor:
        """The nearest points' codes, 0 to `span`, as float32."""
        scaled = (groups - points.offset).mul_(points.inverse()).add_(0.5).floor_()  # halves go up, as in llama.cpp
        return scaled.sub_(points.lowest).clamp_(0, self.span)

    def steps(
        self, weights: torch.Tensor, points: Points, inverse: torch.Tensor, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The nearest points' distances in scales from zero, or from the offset: codes + `lowest`.

        `inverse` is that of the points, which loops make once.
        """
        from_zero = weights - points.offset if self.zero == "offset" else weights
        steps = torch.mul(from_zero, inverse, out=out).round_()
        if self.zero == "integer":
            return steps.clamp_(points.lowest, points.lowest + self.span)
        return steps.clamp_(self._bottom, self._bottom + self.span)

    def values(self, codes: torch.Tensor, points: Points) -> torch.Tensor:
        values = (codes + points.lowest).mul_(points.scale)
        return values.add_(points.offset) if self.zero == "offset" else values

    def plain(self, groups: torch.Tensor) -> tuple[torch.Tensor, Points]:
        """Codes and points by the largest weights alone; in llama.cpp's types as llama.cpp does it."""
        exact = self._spread(_reach(groups, 1))
        stored = _stored(exact)
        # llama.cpp counts the steps before it rounds the scale.
        return self.codes(groups, exact if self.type else stored), stored

    def fitted(self, groups: torch.Tensor, cost: torch.Tensor | None = None) -> Points:
        """The points with the least squared error, each weight's times its cost (group,), that a search finds."""
        # One group a column, so that neighbours in memory have scales of their own: a processor likes long runs.
        columns = groups.T.contiguous()
        cost = torch.ones(self.group, device=groups.device) if cost is None else cost
        total = cost.sum().clamp_min(1e-30)
        centre = (cost @ columns / total)[None] if self.zero == "offset" else torch.zeros_like(columns[:1])
        sought = _Sought(columns, cost, total, centre, (columns - centre).mul_(cost[:, None]))
        candidates = self._candidates(_reach(columns, 0))
        size = max(1, _NUMBERS // columns.numel())
        parts = zip(*(torch.split(part, size) for part in candidates), strict=True)
        best = _least([self._refitted(sought, Points(*part)) for part in parts])
        for _ in range(_AGAIN):
            best, _ = self._refitted(sought, best)
        return Points(*(part.reshape(-1, 1) for part in best))

    def recovered(self, groups: torch.Tensor) -> tuple[torch.Tensor, Points] | None:
        """Codes and points of groups that all lie on such a grid already, so that nothing is lost; else None."""
        for part in (groups[:_SAMPLE], groups):
            points, done = self._exact_points(part)
            if not bool(done.all()):
                return None
        return self.codes(groups, points), points

    def settled(self, codes: torch.Tensor, points: Points) -> tuple[torch.Tensor, Points]:
        """The same with code 0 in use in every group of an offset grid: only so can the grid be found again."""
        if self.zero != "offset":
            return codes, points
        lowest = codes.amin(dim=1, keepdim=True)
        offset = halved(points.offset + points.scale * lowest)
        return codes - lowest, points._replace(offset=offset)

    def packed(self, codes: torch.Tensor, points: Points, weight: torch.Tensor) -> Packed:
        """Codes (groups, group) of a matrix as it is stored."""
        height, width = weight.shape
        shape, dtype = (height, width), str(weight.dtype).removeprefix("torch.")
        if self.type:
            blocks = llama_blocks(self.type, codes, points.scale, points.offset)
            return Packed("llama", shape, dtype, {"type": self.type}, {"blocks": blocks.reshape(height, -1)})
        tensors = {"codes": pack_bits(codes, self.bits), "scales": points.scale.half().reshape(height, -1)}
        if self.zero == "integer":
            tensors["zeros"] = pack_bits(-points.lowest, self.bits)
        elif self.zero == "offset":
            tensors["offsets"] = points.offset.half().reshape(height, -1)
        return Packed("uniform", shape, dtype, {"bits": self.bits, "group": self.group, "zero": self.zero}, tensors)

    def _spread(self, reach: _Reach, share: float | torch.Tensor = 1.0, flipped: bool = False) -> Points:
        """Points that reach over `share` of each group's range, not yet rounded to what is stored."""
        low, high, extreme = reach
        nothing = torch.zeros_like(low)
        if self.zero == "middle":
            half = -self._bottom
            scale = extreme.abs() / 127 if self.type == "q8_0" else extreme / (half - 1 if flipped else -half)
            return Points(scale * share, torch.full_like(nothing, -half), nothing)
        if self.zero == "integer":
            low, high = low.clamp(max=0) * share, high.clamp(min=0) * share
            scale = (high - low) / self.span
            zero = torch.where(scale > 0, -low / scale, 0.0).round().clamp(0, self.span)
            return Points(scale, -zero, nothing)
        cut = (high - low) * (1 - share) / 2
        return Points((high - low - 2 * cut) / self.span, nothing, low + cut)

    def _candidates(self, reach: _Reach) -> Points:
        """Points to begin a search with, (candidates, 1, groups): clipping pays the more, the fewer bits there are."""
        least = {2: 0.45, 3: 0.6, 4: 0.7}.get(self.bits, 0.85)
        shares = torch.linspace(1.0, least, _SHARES, device=reach.low.device)[:, None, None]
        sides = (False, True) if self.zero == "middle" and self.type != "q8_0" else (False,)
        spread = [torch.broadcast_tensors(*self._spread(reach, shares, side)) for side in sides]  # type: ignore[no-untyped-call]
        return _stored(Points(*(torch.cat(parts) for parts in zip(*spread, strict=True))))

    def _refitted(self, sought: _Sought, points: Points) -> tuple[Points, torch.Tensor]:
        """Scale (and offset) of least squares for the codes that these points (candidates, 1, groups) give.

        And the error that they leave, less the weights' squares, which are the same for all candidates.
        """
        steps = self.steps(sought.columns, points, points.inverse())
        mean = torch.zeros_like(points.scale)
        if self.zero == "offset":
            mean = (sought.cost @ steps / sought.total)[:, None]
            steps -= mean
        along = (steps * sought.pull).sum(dim=1, keepdim=True)
        squares = (sought.cost @ steps.square_())[:, None]
        scale = along / squares
        fine = (squares > 0) & (scale > 0 if self.zero == "offset" else scale != 0)
        scale = halved(torch.where(fine, scale, points.scale))
        offset = points.offset
        if self.zero == "offset":
            offset = halved(torch.where(fine, sought.centre - scale * mean, offset))
        return Points(scale, points.lowest, offset), scale * (scale * squares - 2 * along)

    @property
    def _bottom(self) -> int:
        """`lowest` where it is the same in all groups."""
        if self.zero == "offset":
            return 0
        return -127 if self.type == "q8_0" else -(1 << (self.bits - 1))

    def _exact_points(self, groups: torch.Tensor) -> tuple[Points, torch.Tensor]:
        """Points that hold every weight of a group exactly, and (groups, 1) whether there are any."""
        low, high, extreme = reach = _reach(groups, 1)
        points = self._spread(reach)._replace(scale=torch.zeros_like(low))
        if self.zero == "offset":
            points, extreme = points._replace(offset=halved(low)), high - low
        done = (self.values(torch.zeros_like(groups), points) == groups).all(dim=1, keepdim=True)
        # The extreme weight stands so many steps from zero, or from the lowest one.
        for steps in self._extremes():
            if bool(done.all()):
                break
            tried = points._replace(scale=halved((extreme.abs() if self.zero == "integer" else extreme) / steps))
            if self.zero == "integer":
                tried = tried._replace(lowest=(low / tried.scale).round().clamp(-self.span, 0).nan_to_num(0.0))
            exact = (self.values(self.codes(groups, tried), tried) == groups).all(dim=1, keepdim=True)
            new = exact & ~done & (tried.scale != 0)
            points = Points(*(torch.where(new, a, b) for a, b in zip(tried, points, strict=True)))
            done = done | new
        return points, done

    def _extremes(self) -> list[int]:
        if self.zero != "middle":
            return list(range(self.span, 0, -1))
        half = 1 << (self.bits - 1)
        return [*([] if self.type == "q8_0" else [-half]), *range(half - 1, 0, -1)]


def matrix_of(weight: torch.Tensor, group: int, who: str) -> tuple[torch.Tensor, int]:
    """A float32 copy (out, in) and the group, where 0 means the whole row.

    Raises UserError where the weights cannot be quantized, or groups of that size do not fill a row.
    """
    if weight.ndim != 2 or not weight.numel():
        raise UserError(f"{who} quantizes matrices; found a tensor of shape {tuple(weight.shape)}")
    if not weight.is_floating_point() or weight.element_size() == 1:
        raise UserError(
            f"{who}: the weights are {weight.dtype}: quantized already", "begin with the unquantized student"
        )
    width = weight.shape[1]
    size = group or width
    if width % size:
        known = [str(number) for number in range(8, width + 1) if width % number == 0]
        raise UserError(f"{who}: groups of {size} do not fill {width} columns", f"it divides by {', '.join(known)}")
    single = weight.detach().to(torch.float32, copy=True)
    if not bool(single.isfinite().all()):
        raise UserError(f"{who}: the matrix has weights that are not finite", "look at how the student was trained")
    return single, size


def nearest_level(groups: torch.Tensor, levels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """For weights (groups, group) and levels (groups, levels) in any order: the nearest ones' places and values."""
    ordered, order = levels.sort(dim=1)
    found = torch.searchsorted((ordered[:, 1:] + ordered[:, :-1]) / 2, groups)
    return order.gather(1, found), ordered.gather(1, found)


def halved(numbers: torch.Tensor) -> torch.Tensor:
    """As float16 keeps them, in float32; numbers beyond its range stand at its end."""
    return numbers.clamp(-_LARGEST, _LARGEST).half().float()


def _reach(groups: torch.Tensor, dim: int) -> _Reach:
    # Of weights that are as far from zero the first one, as in llama.cpp.
    extreme = groups.gather(dim, groups.abs().argmax(dim=dim, keepdim=True))
    return _Reach(groups.amin(dim=dim, keepdim=True), groups.amax(dim=dim, keepdim=True), extreme)


def _least(tried: Sequence[tuple[Points, torch.Tensor]]) -> Points:
    """Of all candidates those of the least error for each group: (1, 1, groups)."""
    place = torch.cat([error for _, error in tried]).nan_to_num_(nan=torch.inf).argmin(dim=0, keepdim=True)
    return Points(*(torch.cat(parts).gather(0, place) for parts in zip(*(points for points, _ in tried), strict=True)))


def _stored(points: Points) -> Points:
    """With scale and offset as float16 keeps them."""
    return Points(halved(points.scale), points.lowest, halved(points.offset))
