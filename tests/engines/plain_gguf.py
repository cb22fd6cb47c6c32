"""Makes the same weights anew as GGUF in 16 bits, so that engines can be compared without their own rounding."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np


def write_sixteen_bits(source: Path, target: Path) -> None:
    """Copies a GGUF file with every matrix in F16, each number first rounded to bf16, as the Hugging Face folder is."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, reader.fields["general.architecture"].contents())
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name in ("general.architecture", "general.file_type"):
            continue
        inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), field.types[0], inner)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    for tensor in reader.tensors:
        values = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if values.ndim > 1:
            values = _rounded_to_bfloat16(values).astype(np.float16)
        writer.add_tensor(tensor.name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _rounded_to_bfloat16(values: np.ndarray) -> np.ndarray:
    bits = gguf.quantize(values, gguf.GGMLQuantizationType.BF16)
    return gguf.dequantize(bits, gguf.GGMLQuantizationType.BF16)
