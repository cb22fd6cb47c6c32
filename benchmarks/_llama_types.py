"""llama.cpp's own rounding, by its own library: the function that its quantizing program calls for each matrix."""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import torch

Rounding = Callable[[str, torch.Tensor, torch.Tensor | None], tuple[torch.Tensor, int]]
"""(type, matrix (out, in), mean square of its inputs (in,) or None) -> (the matrix as it reads back, bytes)."""
_FLOATS = ctypes.POINTER(ctypes.c_float)


def rounding() -> Rounding | None:
    """From the library that llama-cpp-python brings; None where that is not installed."""
    found = importlib.util.find_spec("llama_cpp")
    folders = found.submodule_search_locations or () if found else ()
    paths = [path for folder in folders for path in sorted(Path(folder, "lib").glob("*ggml-base.*"))]
    if not paths:
        return None
    quantize = ctypes.CDLL(str(paths[0])).ggml_quantize_chunk
    quantize.restype = ctypes.c_size_t
    quantize.argtypes = [
        ctypes.c_int, _FLOATS, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, _FLOATS
    ]  # fmt: skip

    def rounded(kind: str, matrix: torch.Tensor, importance: torch.Tensor | None) -> tuple[torch.Tensor, int]:
        raw = gguf.GGMLQuantizationType[kind.upper()]
        source = np.ascontiguousarray(matrix.detach().cpu().float().numpy())
        height, width = source.shape
        target = np.zeros((height, _bytes_of_row(raw, width)), np.uint8)
        weighing = None if importance is None else np.ascontiguousarray(importance.cpu().float().numpy())
        if weighing is not None and weighing.shape != (width,):
            raise ValueError(f"the importance of {weighing.shape} inputs for {width} columns")
        pointer = None if weighing is None else weighing.ctypes.data_as(_FLOATS)
        written = quantize(int(raw), source.ctypes.data_as(_FLOATS), target.ctypes.data, 0, height, width, pointer)
        if written != target.nbytes:
            raise ValueError(f"llama.cpp wrote {written} bytes of {kind} in place of {target.nbytes}")
        return _read_back(target, raw), target.nbytes

    return rounded


def plainly_rounded(kind: str, matrix: torch.Tensor, importance: torch.Tensor | None) -> tuple[torch.Tensor, int]:
    """The same without an importance matrix, by llama.cpp's own Python package; it cannot write iq4_nl."""
    raw = gguf.GGMLQuantizationType[kind.upper()]
    packed = gguf.quants.quantize(matrix.detach().cpu().float().numpy(), raw)
    return _read_back(packed, raw), packed.nbytes


def _bytes_of_row(raw: gguf.GGMLQuantizationType, width: int) -> int:
    block, size = gguf.GGML_QUANT_SIZES[raw]
    if width % block:
        raise ValueError(f"{width} columns are no blocks of {block}")
    return width // block * size


def _read_back(packed: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], raw: gguf.GGMLQuantizationType) -> torch.Tensor:
    return torch.from_numpy(gguf.quants.dequantize(packed, raw).astype(np.float32))
