"""The same descent in several processes: each takes its share of a batch's rows, gradients are summed over all.

Start the processes by `accelerate launch` or, on a CPU, torchrun, and let `accelerate.PartialState()` join them. Whole
weights in each (DDP) need nothing more; weights and moments cut into shards (FSDP) come with `sharded(pupil)`. What one
process alone would do is done here too. Where a batch of one process does not fit, shards cannot be helped by halving:
all processes gather each block together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import distributed
from transformers import AutoModelForCausalLM

from supertiny.training.lessons import Batch
from supertiny.training.pupil import Pupil

_Row = TypeVar("_Row")
_BUCKET = 1 << 23  # numbers that are summed over the processes in one message


def processes() -> int:
    """Processes that train together; 1 where none were started."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def is_first() -> bool:
    """Whether this process is the one that writes files."""
    return processes() == 1 or distributed.get_rank() == 0


def wait_for_all() -> None:
    """Returns when all processes are here."""
    if processes() > 1:
        distributed.barrier()


def share_of(rows: Sequence[_Row]) -> list[_Row]:
    """Rows of this process: every n-th, so that each has some of each length."""
    return list(rows) if processes() == 1 else list(rows[distributed.get_rank() :: processes()])


def summed(number: float) -> float:
    """The sum over all processes."""
    if processes() == 1:
        return number
    whole = torch.tensor(number, dtype=torch.float64)
    distributed.all_reduce(whole)
    return whole.item()


def sum_gradients(weights: Sequence[torch.Tensor]) -> None:
    """Leaves in each process the gradients' sum over all. Shards have theirs already, by FSDP's backward pass."""
    if processes() == 1:
        return
    whole = [weight for weight in weights if not _is_shard(weight)]
    for weight in whole:
        if weight.grad is None:  # this process had no row
            weight.grad = torch.zeros_like(weight)
    for bucket in _buckets([weight.grad for weight in whole if weight.grad is not None]):
        # In float32: a sum of bfloat16 numbers would be rounded once for each process.
        flat = torch.cat([gradient.flatten().float() for gradient in bucket])
        distributed.all_reduce(flat)
        parts = torch.split(flat, [gradient.numel() for gradient in bucket])
        for gradient, part in zip(bucket, parts, strict=True):
            gradient.copy_(part.view_as(gradient))


def _buckets(tensors: Sequence[torch.Tensor]) -> list[list[torch.Tensor]]:
    buckets: list[list[torch.Tensor]] = []
    filled = _BUCKET
    for tensor in tensors:
        if filled + tensor.numel() > _BUCKET:
            buckets.append([])
            filled = 0
        buckets[-1].append(tensor)
        filled += tensor.numel()
    return buckets


def squares_summed(gradients: Sequence[torch.Tensor]) -> float:
    """Sum of squares, accumulated in float32, of gradients that are alike in all processes or sharded over them."""
    own, apart = 0.0, 0.0
    for gradient in gradients:
        square = float(torch.linalg.vector_norm(local(gradient), dtype=torch.float32).double().square())
        if _is_shard(gradient):
            apart += square
        else:
            own += square
    return own + summed(apart) if any(_is_shard(gradient) for gradient in gradients) else own


def local(tensor: torch.Tensor) -> torch.Tensor:
    """What this process holds of a tensor."""
    part: torch.Tensor = tensor.to_local() if _is_shard(tensor) else tensor  # type: ignore[attr-defined]
    return part


def gathered(tensor: torch.Tensor) -> torch.Tensor:
    """The whole of a tensor, in every process; all of them must ask for it."""
    whole: torch.Tensor = tensor.full_tensor() if _is_shard(tensor) else tensor  # type: ignore[attr-defined]
    return whole


def shared_like(whole: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A whole tensor where, and cut as, the other is; a single number stays whole."""
    if not _is_shard(like) or whole.dim() == 0:
        return whole.to(like.device)
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(whole, like.device_mesh, like.placements)  # type: ignore[attr-defined]


def is_sharded(model: Any) -> bool:
    """Whether the model's weights are cut into shards."""
    return any(_is_shard(weight) for weight in model.parameters())


def _is_shard(tensor: torch.Tensor) -> bool:
    # Without loading DTensor, which takes a while, where one process works alone.
    return hasattr(tensor, "device_mesh")


def sharded(pupil: Pupil) -> Sharded:
    """The pupil with its weights cut into one shard a process (FSDP2), block by block.

    Gradients, masters and moments are then shards too. Each block is gathered for its turn only.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(pupil.device.type, (processes(),))
    for block in pupil.model.base_model.layers:
        fully_shard(block, mesh=mesh)
    fully_shard(pupil.model, mesh=mesh)
    # Asked for by this name, the model gathers embedding and head first, as it does for its `forward`.
    whole = replace(pupil)
    pupil.model.answer_logits = partial(type(whole).logits_at, whole)
    register_fsdp_forward_method(pupil.model, "answer_logits")
    return Sharded(pupil.model, pupil.tokenizer, pupil.device, pupil.note)


@dataclass
class Sharded(Pupil):
    """A pupil whose weights are spread over processes."""

    def logits_at(self, ids: torch.Tensor, mask: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.model.answer_logits(ids, mask, wanted)
        return logits

    def answer_loss(self, batch: Batch) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(self.logits_at(batch.ids, batch.mask, batch.wanted), batch.targets)

    def save(self, folder: Path, dtype: torch.dtype = torch.bfloat16) -> None:
        """Gathers the weights, and the first process writes them. All must call it."""
        state = {name: gathered(tensor).to(dtype) for name, tensor in self.model.state_dict().items()}
        if is_first():
            stock: Any = AutoModelForCausalLM.from_config(self.model.config)  # type: ignore[no-untyped-call]
            stock.to(dtype).load_state_dict(state)
            Pupil(stock, self.tokenizer, self.device).save(folder, dtype)
        wait_for_all()
