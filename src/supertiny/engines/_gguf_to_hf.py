"""A GGUF language model as a stock Hugging Face folder: bf16 safetensors and the tokenizer, nothing of GGUF left."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from supertiny.engines._gguf_file import checked, read_header

_ARCHITECTURES = ("llama", "qwen2")
_SAME = 0.03  # squared difference of two roundings of one matrix, as a share of its squares, is below this


def load_gguf_student(gguf: Path, folder: Path) -> None:
    """Fills `folder` with what `AutoModelForCausalLM` and `AutoTokenizer` open.

    Raises UserError for a GGUF that is broken or of another architecture than Llama's and Qwen2's. Takes memory for
    the model in float32, some seconds for 135 million parameters.
    """
    import torch
    from transformers import AutoModelForCausalLM

    checked(gguf, "transformers", _ARCHITECTURES)
    with _quiet_transformers():
        tokenizer = tokenizer_of(gguf)
        source = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        _tie_what_is_one(source)
        config = source.config
        # The reader marks the model as quantized although its weights are plain, and a marked one cannot be saved.
        del config.quantization_config
        config.dtype = torch.bfloat16
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)  # type: ignore[no-untyped-call]
        model.load_state_dict(source.state_dict())
        model.tie_weights()
        model.generation_config = source.generation_config
        folder.mkdir(parents=True, exist_ok=True)
        model.save_pretrained(folder, safe_serialization=True)
        tokenizer.save_pretrained(folder)


def _tie_what_is_one(model: Any) -> None:
    """Makes embedding and output one matrix where they are two roundings of one, and keeps the output's, the finer one.

    A quantized file of a tied model may hold it twice, and is read as a model that has both: 630 million weights of
    Qwen2.5's 494.
    """
    embedding, output = model.get_input_embeddings(), model.get_output_embeddings()
    if embedding.weight is output.weight or embedding.weight.shape != output.weight.shape:
        return
    apart = float((embedding.weight - output.weight).detach().square().sum())
    if apart <= _SAME * float(output.weight.detach().square().sum()):
        embedding.weight = output.weight
        model.config.tie_word_embeddings = True


def tokenizer_of(gguf: Path) -> Any:
    """The tokenizer that a GGUF file carries."""
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    if read_header(gguf).metadata.get("tokenizer.ggml.pre") == "smollm":
        # The reader drops this family's rule that each digit is a token of its own.
        pieces = Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])
        tokenizer.backend_tokenizer.pre_tokenizer = pieces
    return tokenizer


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """No progress bars within the block: the run has its own."""
    from transformers import modeling_gguf_pytorch_utils
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    reader: Any = modeling_gguf_pytorch_utils
    bar = reader.tqdm
    reader.tqdm = partial(bar, disable=True)  # tqdm's own bar, which transformers' switch does not reach
    try:
        yield
    finally:
        reader.tqdm = bar
        if shown:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]
