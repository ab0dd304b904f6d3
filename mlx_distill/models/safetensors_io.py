"""Safetensors files at the level of bytes: what a header says, and writing one tensor after another.

mlx and safetensors write a file from tensors that are all in memory at once; a dequantised student need not be.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mlx_distill.errors import InputError

if TYPE_CHECKING:
    import numpy.typing as npt

FloatName = Literal["float32", "float16", "bfloat16"]

WEIGHTS = "model*.safetensors"
"""The weight files that mlx-lm reads."""

_CODES: Mapping[FloatName, tuple[str, int]] = {"float32": ("F32", 4), "float16": ("F16", 2), "bfloat16": ("BF16", 2)}
"""Safetensors' name and bytes per value."""


@dataclass(frozen=True)
class Weights:
    """What the headers of a folder's weight files say."""

    files: tuple[Path, ...]
    is_mlx: bool
    """Written by mlx: names and shapes are as its model classes have them."""
    dtype: str
    """The floating type of most values: float32, float16 or bfloat16."""
    n_tensors: int


def read_headers(folder: Path) -> Weights:
    """The headers of all weight files of a folder; InputError where there is none or one is broken."""
    files = sorted(folder.glob(WEIGHTS))
    if not files:
        found = sorted(file.name for file in folder.glob("*.gguf"))
        raise InputError(
            f"{folder}: no {WEIGHTS} in it. Weights in other formats, such as pickles (.bin, .pt), are never loaded.",
            f"Name the GGUF file itself: {folder / found[0]}" if found else "Choose a model with safetensors weights.",
        )
    formats = set()
    counts: Counter[str] = Counter()
    n_tensors = 0
    for file in files:
        header = _header(file)
        formats.add((header.pop("__metadata__", None) or {}).get("format"))  # mlx writes null for none
        n_tensors += len(header)
        for tensor in header.values():
            counts[tensor["dtype"]] += prod(tensor["shape"])
    names = {code: name for name, (code, _) in _CODES.items()}
    floats = [names[code] for code, _ in counts.most_common() if code in names]
    return Weights(tuple(files), formats == {"mlx"}, floats[0] if floats else counts.most_common(1)[0][0], n_tensors)


def _header(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if length > file.stat().st_size:
                raise ValueError("the header is longer than the file")
            header: dict[str, Any] = json.loads(stream.read(length))
        tensors = [tensor for name, tensor in header.items() if name != "__metadata__"]
        end = max(tensor["data_offsets"][1] for tensor in tensors)
        if 8 + length + end != file.stat().st_size:
            raise ValueError("the file is cut off, or longer than its header says")
        if not all(isinstance(tensor["dtype"], str) and prod(tensor["shape"]) >= 0 for tensor in tensors):
            raise ValueError("a tensor has no dtype or shape")
    except (OSError, ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError) as error:
        raise InputError(f"{file}: not a whole safetensors file ({error}).", "Download or copy it again.") from error
    return header


def write_tensors(
    path: Path, dtype: FloatName, shapes: Mapping[str, tuple[int, ...]], tensors: Iterable[npt.NDArray[Any]]
) -> None:
    """Write a safetensors file in MLX format. `tensors` come one at a time, in the order of `shapes`.

    Each is an array of `dtype` (bfloat16 as its bits in uint16). Layout: 8 bytes with the header's length, the header
    in JSON, then the values, little-endian (https://github.com/huggingface/safetensors#format).
    """
    code, width = _CODES[dtype]
    header: dict[str, object] = {"__metadata__": {"format": "mlx"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + width * prod(shape)
        header[name] = {"dtype": code, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # values begin at a multiple of 8
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for (name, shape), values in zip(shapes.items(), tensors, strict=True):
            if values.shape != shape or values.itemsize != width:
                raise ValueError(f"{name}: {values.shape} of {values.itemsize} bytes, not {shape} of {width}")
            file.write(values.tobytes())
