"""The one walk over a model's blocks: what flows into each matrix is seen, the matrix changed, the rest sees it so."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from supertiny.compress.inputs import Gathering, Inputs
from supertiny.core.errors import UserError
from supertiny.training.lessons import Batch

ARCHITECTURES = ("llama", "mistral", "qwen2")
# Matrices of a block that see the same input stand together.
SHARING = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
)
Change = Callable[[str, torch.Tensor, Inputs], torch.Tensor]


@dataclass(frozen=True)
class Block:
    """A block of a model and what flows into its matrices."""

    place: int
    of: int
    module: torch.nn.Module
    matrices: dict[str, torch.nn.Linear]
    """By their names in the whole model, without ".weight"."""
    inputs: dict[str, Inputs]
    """Of the same names; those that share an input share the object."""


def blocks_of(model: Any) -> torch.nn.ModuleList:
    """The transformer blocks. Raises UserError where the architecture is none of those that are known."""
    layers = getattr(getattr(model, "base_model", None), "layers", None)
    kind = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    if kind not in ARCHITECTURES or not isinstance(layers, torch.nn.ModuleList):
        raise UserError(f"compress does not know the blocks of {kind!r}", f"known: {', '.join(ARCHITECTURES)}")
    return layers


def matrices_of(model: Any, place: int) -> dict[str, torch.nn.Linear]:
    """The matrices of a block by their names in the whole model.

    Raises UserError where one is no plain matrix: an adapter that was not merged, or a quantized layer.
    """
    block, prefix = blocks_of(model)[place], f"{model.base_model_prefix}.layers.{place}"
    found: dict[str, torch.nn.Linear] = {}
    for name in (name for group in SHARING for name in group):
        layer = block.get_submodule(name)
        if not isinstance(layer, torch.nn.Linear) or not layer.weight.is_floating_point():
            raise UserError(f"{prefix}.{name} is a {type(layer).__name__}", "merge adapters, begin unquantized")
        found[f"{prefix}.{name}"] = layer
    return found


def walk(model: Any, calibration: Sequence[Batch], gram: bool = True, head: bool = False) -> Iterator[Block]:
    """Yields block after block. Whoever asks for the next one may have changed the block's weights before.

    A block sees the calibration rows as the blocks before it, changed, pass them on. In memory stand the hidden states
    (tokens, width) of all rows, and the inputs of one block. Padding counts nowhere. With `head` a last one holds the
    output matrix alone. Raises UserError where there are no rows, or the architecture is unknown.
    """
    layers = blocks_of(model)
    batches = [batch.to(model.device) for batch in calibration if batch.tokens]
    if not batches:
        raise UserError("there are no calibration rows", "see prototype/train.jsonl, or raise calibration_rows")
    was_training, of = model.training, len(layers) + head
    model.eval()
    try:
        states, given = _beginning(model, layers, batches)
        for place, layer in enumerate(layers):
            matrices = matrices_of(model, place)
            with _watched(matrices, gram) as (gathered, mask):
                for number, batch in enumerate(batches):
                    mask[:] = [batch.mask.bool()]
                    _through(layer, states[number], given[number][place])
            yield Block(place, of, layer, matrices, _shared(matrices, gathered))
            for number in range(len(batches)):
                states[number] = _through(layer, states[number], given[number][place])
        if head:
            yield _head(model, states, batches, gram, of)
    finally:
        model.train(was_training)


def change_matrices(
    model: Any,
    calibration: Sequence[Batch],
    change: Change,
    gram: bool = True,
    head: bool = False,
    tick: Callable[[int, int], None] = lambda done, of: None,
) -> None:
    """Puts `change(name, weight, inputs)` in each matrix's place, block by block; `tick(done, of)` after each block.

    Embedding and head stay as they are. With `head` the output matrix is changed at the end, and with it the embedding
    where that is the same matrix. Raises ValueError where a change has another shape.
    """
    for block in walk(model, calibration, gram, head):
        for name, layer in block.matrices.items():
            new = change(name, layer.weight.detach(), block.inputs[name])
            if new.shape != layer.weight.shape:
                raise ValueError(f"{name} was {tuple(layer.weight.shape)} and became {tuple(new.shape)}")
            with torch.no_grad():
                layer.weight.copy_(new)
        tick(block.place + 1, block.of)


@contextmanager
def attached(model: Any, method: Any, seed: int, **settings: Any) -> Iterator[None]:
    """Within the block every matrix is trained through `method.attach`; at its end it is what `method.bake` leaves.

    Where the method freezes the matrices and learns beside them, nothing else learns either. Raises UserError where
    the method leaves biases that the architecture has no room for.
    """
    layers = [layer for place in range(len(blocks_of(model))) for layer in matrices_of(model, place).values()]
    biased = bool(getattr(method, "bias", 0.0))
    if biased and model.config.model_type != "llama":
        raise UserError(f"a stock {model.config.model_type} has no room for biases", "set `bias` to 0")
    learning = {parameter: parameter.requires_grad for parameter in model.parameters()}
    for number, layer in enumerate(layers):
        method.attach(layer, seed + number, **settings)
    if not any(layer.parametrizations.weight.original.requires_grad for layer in layers):  # type: ignore[union-attr]
        for parameter in learning:
            parameter.requires_grad_(False)
    try:
        yield
    finally:
        for layer in layers:
            method.bake(layer)
        for parameter in model.parameters():
            parameter.requires_grad_(learning.get(parameter, True))
        if biased:
            model.config.attention_bias = model.config.mlp_bias = True


def _beginning(
    model: Any, layers: torch.nn.ModuleList, batches: Sequence[Batch]
) -> tuple[list[torch.Tensor], list[list[dict[str, Any]]]]:
    """Per batch, what the first block gets, and what else each block is called with: masks and positions.

    The model itself is run for it, with blocks that note how they are called and pass on what they got.
    """
    states: list[torch.Tensor] = []
    given: list[list[dict[str, Any]]] = []

    def note(hidden_states: torch.Tensor, *others: Any, **keywords: Any) -> torch.Tensor:
        if others:
            raise TypeError("blocks are called with keywords")
        given[-1].append(keywords)
        if len(given[-1]) == 1:
            states.append(hidden_states)
        return hidden_states

    try:
        for layer in layers:
            layer.forward = note
        with torch.no_grad():
            for batch in batches:
                given.append([])
                model.base_model(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False)
    finally:
        for layer in layers:
            del layer.forward
    return states, given


def _through(layer: torch.nn.Module, states: torch.Tensor, keywords: dict[str, Any]) -> torch.Tensor:
    with torch.no_grad():
        result = layer(states, **keywords)
    passed: torch.Tensor = result[0] if isinstance(result, tuple) else result
    return passed


@contextmanager
def _watched(
    matrices: dict[str, torch.nn.Linear], gram: bool
) -> Iterator[tuple[dict[str, Gathering], list[torch.Tensor]]]:
    """Within the block, inputs of the first matrix of each group are gathered at the places of the mask in the list."""
    gathered: dict[str, Gathering] = {}
    mask: list[torch.Tensor] = []
    handles = []

    def watch(gathering: Gathering) -> Any:
        return lambda module, given: gathering.add(given[0][mask[0]])

    for name, *_ in _groups(matrices):
        layer = matrices[name]
        gathered[name] = Gathering(layer.in_features, gram, layer.weight.device)
        handles.append(layer.register_forward_pre_hook(watch(gathered[name])))
    try:
        yield gathered, mask
    finally:
        for handle in handles:
            handle.remove()


def _groups(matrices: dict[str, torch.nn.Linear]) -> list[list[str]]:
    """Names of the matrices that see the same input, group by group."""
    return [[name for name in matrices if name.endswith(group)] for group in SHARING]


def _shared(matrices: dict[str, torch.nn.Linear], gathered: dict[str, Gathering]) -> dict[str, Inputs]:
    inputs = {name: gathering.inputs() for name, gathering in gathered.items()}
    return {name: inputs[names[0]] for names in _groups(matrices) for name in names}


def _head(model: Any, states: Sequence[torch.Tensor], batches: Sequence[Batch], gram: bool, of: int) -> Block:
    head = model.get_output_embeddings()
    name = next(name for name, module in model.named_modules() if module is head)
    gathering = Gathering(head.in_features, gram, head.weight.device)
    with torch.no_grad():
        for hidden, batch in zip(states, batches, strict=True):
            gathering.add(model.base_model.norm(hidden)[batch.mask.bool()])
    return Block(of - 1, of, head, {name: head}, {name: gathering.inputs()})
