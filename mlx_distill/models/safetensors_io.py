"""Safetensors files as bytes: reading headers, writing one tensor after another, and mapping into memory.

mlx and safetensors write tensors that are all in memory at once. A dequantised student may not fit.
Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from mlx_distill.errors import InputError
from mlx_distill.formatting import first_line

FloatName = Literal["float32", "float16", "bfloat16"]

WEIGHTS = "model*.safetensors"
"""The weight files that mlx-lm reads."""

_CODES: Mapping[FloatName, tuple[str, int]] = {"float32": ("F32", 4), "float16": ("F16", 2), "bfloat16": ("BF16", 2)}
"""The name in safetensors and the bytes per value."""
_NUMPY_CODES = {"U8": "|u1", "U16": "<u2", "U32": "<u4", "I64": "<i8", "F16": "<f2", "F32": "<f4"}
"""Types of `write_arrays` and `map_arrays`: the name in safetensors and in NumPy."""


@dataclass(frozen=True)
class WeightFiles:
    """The weight files of a folder, and what their headers say."""

    files: tuple[Path, ...]
    is_mlx: bool
    """Written by mlx: names and shapes fit its model classes."""
    dtype: str
    """The floating type of most values: float32, float16 or bfloat16."""
    n_tensors: int


def read_headers(folder: Path) -> WeightFiles:
    """Read the headers of all weight files of a folder. InputError if there is none or one is broken."""
    files = sorted(folder.glob(WEIGHTS))
    if not files:
        found = sorted(file.name for file in folder.glob("*.gguf"))
        raise InputError(
            f"{folder}: no {WEIGHTS} in it. Weights in other formats, such as pickles (.bin, .pt), are never loaded.",
            f"Name the GGUF file itself: {folder / found[0]}" if found else "Choose a model with safetensors weights.",
        )
    formats, counts, n_tensors = set(), Counter[str](), 0
    for file in files:
        header = _header(file)
        formats.add((header.pop("__metadata__", None) or {}).get("format"))
        n_tensors += len(header)
        for tensor in header.values():
            counts[tensor["dtype"]] += prod(tensor["shape"])
    names = {code: name for name, (code, _) in _CODES.items()}
    dtypes = [names[code] for code, _ in counts.most_common() if code in names]
    dtype = dtypes[0] if dtypes else counts.most_common(1)[0][0]
    return WeightFiles(tuple(files), formats == {"mlx"}, dtype, n_tensors)


def _header(file: Path) -> dict[str, Any]:
    """Read a header and check it against the file's size before it can take memory."""
    try:
        size = file.stat().st_size
        if not file.is_file():
            raise ValueError("it is a pipe, a device or a folder")
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if length > size:
                raise ValueError("the header is longer than the file")
            header: dict[str, Any] = json.loads(stream.read(length))
        metadata = header.get("__metadata__") or {}  # mlx writes null without metadata
        if not all(isinstance(value, str) for value in metadata.values()):
            raise ValueError("its metadata is not text")
        tensors = [tensor for name, tensor in header.items() if name != "__metadata__"]
        if 8 + length + max(tensor["data_offsets"][1] for tensor in tensors) != size:
            raise ValueError("the file is cut off, or longer than its header says")
        numbers = [number for tensor in tensors for number in (*tensor["shape"], *tensor["data_offsets"])]
        if not all(isinstance(number, int) and number >= 0 for number in numbers):
            raise ValueError("a size is not a whole number")
        if not all(isinstance(tensor["dtype"], str) and 0 <= prod(tensor["shape"]) <= 8 * size for tensor in tensors):
            raise ValueError("a tensor's type or shape cannot be right")
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        reason = first_line(error)
        raise InputError(f"{file}: not a whole safetensors file ({reason}).", "Download or copy it again.") from error
    return header


def write_tensors(
    path: Path, dtype: FloatName, shapes: Mapping[str, tuple[int, ...]], tensors: Iterable[npt.NDArray[Any]]
) -> None:
    """Write a safetensors file in MLX format from tensors that come one at a time, in the order of `shapes`.

    Each tensor is an array of `dtype`, or the bits of bfloat16 values in uint16.
    """
    code, width = _CODES[dtype]
    described = {name: (code, shape, width * prod(shape)) for name, shape in shapes.items()}
    with path.open("wb") as file:
        file.write(_header_bytes({"format": "mlx"}, described))
        for (name, shape), values in zip(shapes.items(), tensors, strict=True):
            if values.shape != shape or values.itemsize != width:
                raise ValueError(f"{name}: {values.shape} of {values.itemsize} bytes, not {shape} of {width}")
            file.write(values.tobytes())


def write_arrays(path: Path, arrays: Mapping[str, npt.NDArray[Any]], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file of NumPy arrays, in their order. Equal arguments give equal bytes."""
    codes = {np.dtype(name): code for code, name in _NUMPY_CODES.items()}
    described = {name: (codes[array.dtype], array.shape, array.nbytes) for name, array in arrays.items()}
    with path.open("wb") as file:
        file.write(_header_bytes(metadata, described))
        for array in arrays.values():
            file.write(np.ascontiguousarray(array).data)


def map_arrays(path: Path) -> tuple[dict[str, npt.NDArray[Any]], dict[str, str]]:
    """Map the arrays of a safetensors file into memory, read-only, and return them with the file's metadata.

    Raises InputError if the file is broken, or if it has types that `write_arrays` does not write.
    """
    header = _header(path)
    metadata: dict[str, str] = header.pop("__metadata__", None) or {}
    data = np.memmap(path, np.uint8, "r")
    start_of_values = 8 + int.from_bytes(data[:8].tobytes(), "little")
    arrays: dict[str, npt.NDArray[Any]] = {}
    for name, tensor in header.items():
        start, end = tensor["data_offsets"][:2]
        kind = _NUMPY_CODES.get(tensor["dtype"])
        if kind is None or not 0 <= start <= end or end - start != np.dtype(kind).itemsize * prod(tensor["shape"]):
            raise InputError(f"{path}: {name!r} has a type or a size that cannot be right.", "Make the file again.")
        values = data[start_of_values + start : start_of_values + end]
        arrays[name] = values.view(kind).reshape(tensor["shape"])
    return arrays, metadata


def _header_bytes(metadata: Mapping[str, str], tensors: Mapping[str, tuple[str, tuple[int, ...], int]]) -> bytes:
    """Return the header of a file whose tensors (type, shape, bytes) follow one another, with its length before it."""
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    end = 0
    for name, (code, shape, n_bytes) in tensors.items():
        start, end = end, end + n_bytes
        header[name] = {"dtype": code, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # values begin at a multiple of 8
    return len(text).to_bytes(8, "little") + text
