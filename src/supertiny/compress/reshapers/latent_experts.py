"""Lets the experts of a mixture read the hidden state through one narrow matrix that they share.

Paper: MoLAE, Mixture of Latent Experts, 2025, arXiv:2503.23100.
Use when: the student is a mixture of alike experts and distinct weights are what counts; the file and the time of an
answer stay as they are.
Differs from the paper: the shared matrix is found in the directions that the calibration rows' states have, which
stands for the paper's first phase; a stock mixture has no place for a factor, so saved files hold the products.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field
from torch.nn.utils import parametrize

from supertiny.compress.reshapers._cutting import blocks_of
from supertiny.compress.reshapers._shared_factor import factors
from supertiny.compress.reshapers._task_loss import with_answers
from supertiny.core.errors import UserError
from supertiny.training.lessons import Batch

_KNOWN = ("mixtral", "olmoe", "qwen2_moe", "qwen3_moe")
_WEIGHT = "gate_up_proj"


@dataclass(frozen=True)
class LatentExperts:
    """Expert i's gate and up become A_i B, best by squared error of their outputs; down and the router stay."""

    share: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Share of the hidden state's dimensions that B takes away."""
    group: Annotated[int, Field(ge=0)] = 0
    """Neighbouring experts that share a B; it must divide their number, and 0 is all of a block's."""

    needs = ("calibration",)

    def reshape(self, model: Any, calibration: Sequence[Batch]) -> Any:
        """The mixture with latent experts. Raises UserError for other models and where nothing would be saved."""
        blocks = blocks_of(model, "latent_experts", _KNOWN)
        found = [block.mlp for block in blocks if hasattr(block.mlp, "experts")]
        if not found:
            raise UserError("latent_experts: no block of this student has experts", "narrow and drop_blocks may serve")
        for mixture in found:
            _check(mixture.experts, self._kept(mixture.experts), self.group)
        for mixture, seen in _inputs(model, found, with_answers(calibration, "latent_experts", model)).items():
            own, shared = factors(mixture.experts.gate_up_proj, seen, self._kept(mixture.experts), self.group)
            _join(mixture.experts, own, shared)
        model.register_state_dict_post_hook(_multiplied)
        return model

    def _kept(self, experts: Any) -> int:
        return max(1, round((1 - self.share) * int(experts.gate_up_proj.shape[-1])))


def _check(experts: Any, kept: int, group: int) -> None:
    if parametrize.is_parametrized(experts, _WEIGHT):
        raise UserError("latent_experts: these experts are latent already", "give one step, with the smaller share")
    count, rows, width = experts.gate_up_proj.shape
    if group and count % group:
        raise UserError(f"latent_experts: group {group} does not divide {count} experts", "0 is all of a block's")
    groups = count // (group or count)
    if kept * (count * rows + groups * width) >= count * rows * width:
        most = count * rows * width / (count * rows + groups * width) / width
        raise UserError(
            f"latent_experts: two factors of width {kept} would be larger than the experts",
            f"a share above {1 - most:.2f} saves something",
        )


@torch.inference_mode()
def _inputs(model: Any, mixtures: Sequence[Any], batches: Sequence[Batch]) -> Mapping[Any, torch.Tensor]:
    """Per mixture, (width, width): the second moment of what its experts read, over all tokens but padding."""
    sums: dict[Any, torch.Tensor] = {}
    mask = torch.zeros(0)

    def watch(module: Any, given: tuple[torch.Tensor, ...]) -> None:
        rows = given[0][mask].float()
        sums[module] = sums.get(module, 0) + (rows.T @ rows).double().cpu()

    handles = [mixture.register_forward_pre_hook(watch) for mixture in mixtures]
    try:
        for batch in batches:
            mask = batch.mask.bool()
            model.base_model(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return sums


class _Shared(torch.nn.Module):
    """A_i B for each expert, out of its own A_i."""

    def __init__(self, shared: torch.Tensor) -> None:
        super().__init__()
        self.shared = torch.nn.Parameter(shared)

    def forward(self, own: torch.Tensor) -> torch.Tensor:
        each = own.reshape(len(self.shared), -1, *own.shape[1:])
        return torch.einsum("gerk,gkw->gerw", each, self.shared).flatten(0, 1)


def _join(experts: Any, own: torch.Tensor, shared: torch.Tensor) -> None:
    """From here on what is trained are the factors."""
    experts.gate_up_proj = torch.nn.Parameter(own)
    parametrize.register_parametrization(experts, _WEIGHT, _Shared(shared), unsafe=True)


def _multiplied(module: Any, state: dict[str, torch.Tensor], prefix: str, metadata: Any) -> None:
    """Puts the products where a stock file has the experts' weights."""
    inner = f"parametrizations.{_WEIGHT}."
    for name, part in module.named_modules():
        if parametrize.is_parametrized(part, _WEIGHT):
            for one in [key for key in state if key.startswith(f"{prefix}{name}.{inner}")]:
                del state[one]
            state[f"{prefix}{name}.{_WEIGHT}"] = getattr(part, _WEIGHT).detach().clone()
