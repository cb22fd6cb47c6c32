"""Lets runs of blocks use one feed-forward network, so that far fewer weights are learned.

Paper: Thawakar et al., MobiLlama, 2024, arXiv:2402.16840.
Use when: distinct weights are what counts; the file and the time of an answer stay as they are.
Differs from the paper: a trained model is converted, where the paper trains one from nothing; a stock configuration
has no word for shared blocks, so saved files hold a copy for each block, which are equal bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, Literal

import torch
from pydantic import Field

from supertiny.compress.reshapers._cutting import blocks_of
from supertiny.compress.reshapers._sharing import write_copies
from supertiny.compress.reshapers._task_loss import mean_loss, with_answers
from supertiny.core.errors import UserError
from supertiny.training.lessons import Batch


@dataclass(frozen=True)
class ShareFfn:
    """The recovery that follows trains the shared weights as one; norms and attention stay a block's own."""

    networks: Annotated[int, Field(ge=1)] = 1
    """Feed-forward networks that are left; each serves a run of blocks, as long as the others or one longer."""
    start: Literal["best", "mean"] = "best"
    """The one of the run whose use in all of its blocks costs least, tried one by one; or the mean of their weights."""

    needs = ("calibration",)

    def reshape(self, model: Any, calibration: Sequence[Batch]) -> Any:
        """The model with shared networks. Raises UserError where more are asked for than there are blocks."""
        layers = blocks_of(model, "share_ffn")
        if self.networks >= len(layers):
            raise UserError(
                f"share_ffn: {self.networks} networks for {len(layers)} blocks share nothing", "ask for fewer"
            )
        batches = with_answers(calibration, "share_ffn", model) if self.start == "best" else []
        bounds = [len(layers) * place // self.networks for place in range(self.networks + 1)]
        for first, end in pairwise(bounds):
            run = list(layers)[first:end]
            _share(run, _best(model, run, batches) if self.start == "best" else _mean(run))
        write_copies(model)
        return model


def _share(run: Sequence[Any], network: Any) -> None:
    for block in run:
        block.mlp = network


def _best(model: Any, run: Sequence[Any], batches: Sequence[Batch]) -> Any:
    own, losses = [block.mlp for block in run], []
    for network in own:
        _share(run, network)
        losses.append(mean_loss(model, batches))
    return own[losses.index(min(losses))]


@torch.no_grad()
def _mean(run: Sequence[Any]) -> Any:
    network = run[0].mlp
    for name, weight in network.named_parameters():
        weight.copy_(torch.stack([block.mlp.get_parameter(name).float() for block in run]).mean(0))
    return network
