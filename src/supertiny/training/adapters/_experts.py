"""A gated feed-forward layer, frozen, with low-rank experts beside it and a router that chooses some per token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from supertiny.training.adapters._beside import normal, uniform


@dataclass(frozen=True)
class ExpertPlan:
    """Settings that all layers of a model share."""

    experts: int
    chosen: int
    """Experts that a token goes through."""
    rank: int
    scale: float
    balance: float
    """Weight of the loss that keeps the experts equally busy."""


class ExpertLayer(torch.nn.Module):
    """act(g + dg) * (u + du) through down + dd, weighted over each token's experts; the d are each expert's own.

    The frozen products of gate and up are computed once for all experts. `load` (experts,) is the share of the last
    batch's choices that went to each.
    """

    def __init__(self, frozen: Any, plan: ExpertPlan, generator: torch.Generator) -> None:
        super().__init__()
        self.frozen, self.plan = frozen, plan
        like = frozen.gate_proj.weight
        self.router = torch.nn.Parameter(normal((plan.experts, like.shape[1]), 0.02, generator, like))
        self.downs, self.ups = torch.nn.ParameterDict(), torch.nn.ParameterDict()
        for name in ("gate_proj", "up_proj", "down_proj"):
            outputs, inputs = getattr(frozen, name).weight.shape
            self.downs[name] = torch.nn.Parameter(uniform((plan.experts, plan.rank, inputs), generator, like))
            self.ups[name] = torch.nn.Parameter(like.new_zeros(plan.experts, outputs, plan.rank))
        self.load = torch.full((plan.experts,), 1 / plan.experts)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat = x.reshape(-1, x.shape[-1])
        odds = torch.softmax(F.linear(flat, self.router).float(), dim=-1)
        weights, choice = odds.topk(self.plan.chosen, dim=-1)
        weights = (weights / weights.sum(dim=-1, keepdim=True)).to(flat.dtype)
        gate, up = self.frozen.gate_proj(flat), self.frozen.up_proj(flat)
        mixed = torch.zeros_like(flat)
        for expert in range(self.plan.experts):
            rows, place = (choice == expert).nonzero(as_tuple=True)
            inner = self.frozen.act_fn(gate[rows] + self._change("gate_proj", expert, flat[rows]))
            inner = inner * (up[rows] + self._change("up_proj", expert, flat[rows]))
            outer = self.frozen.down_proj(inner) + self._change("down_proj", expert, inner)
            mixed = mixed.index_add(0, rows, outer * weights[rows, place, None])
        self.load = F.one_hot(choice, self.plan.experts).float().mean(dim=(0, 1)).detach()
        if self.training and torch.is_grad_enabled() and self.plan.balance:
            # Paper's loss: experts * sum of (share of choices * mean odds); 1 where all are equally busy.
            unequal = self.plan.experts * (self.load * odds.mean(dim=0)).sum()
            mixed = _Beside.apply(mixed, self.plan.balance * unequal)  # type: ignore[no-untyped-call]
        return mixed.view_as(x)

    def _change(self, name: str, expert: int, x: torch.Tensor) -> torch.Tensor:
        return self.plan.scale * F.linear(F.linear(x, self.downs[name][expert]), self.ups[name][expert])


class _Beside(torch.autograd.Function):
    """Gives x as it is; on the way back the loss beside it gets a slope of 1, as if it had been added to the main one.

    So the loop that trains needs not know of it.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, loss: torch.Tensor) -> torch.Tensor:
        ctx.like = loss.dtype, loss.device
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *slopes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        dtype, device = ctx.like
        return slopes[0], torch.ones((), dtype=dtype, device=device)
