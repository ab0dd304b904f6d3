"""Conversion of a GGUF file of the llama or qwen2 family to a model folder.

What cannot be converted faithfully is refused by name before anything is written.

The weights keep the type of the file's matrices if all have the same (F32, F16, BF16). Quantised matrices become
float16: their values are float16 scales times small integers, and float16's 11 significant bits keep them seven times
more exactly than bfloat16's 8 (relative error on SmolLM2 Q4_1: 0.0002 against 0.0014; the step of Q8_0 is 0.004).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType, GGUFReader
from gguf.gguf_reader import ReaderTensor
from gguf.quants import dequantize, quantize

from mlx_distill.errors import InputError, raise_problems
from mlx_distill.events import Progress, Report, ignore
from mlx_distill.formatting import first_line
from mlx_distill.models.gguf import schema, tokenizer
from mlx_distill.models.safetensors_io import FloatName, write_tensors
from mlx_distill.storage.atomic import write_json
from mlx_distill.storage.files import MODEL_CONFIG

OTHER_FILE = "Use another GGUF file of this model, or its original from the Hub (owner/name)."

_KEYS: Mapping[str, type] = {
    **dict.fromkeys(schema.SIZE_KEYS, int),
    "vocab_size": int,
    "attention.key_length": int,
    "attention.value_length": int,
    "attention.layer_norm_rms_epsilon": float,
    "rope.freq_base": float,
    "rope.dimension_count": int,
    "rope.scaling.type": str,
    "rope.scaling.factor": float,
    "rope.scaling.original_context_length": int,
    "rope.scaling.finetuned": bool,
}
"""Known keys of an architecture and their types. Any other key may change the arithmetic, so it is refused."""
_REQUIRED = {*schema.SIZE_KEYS, "attention.layer_norm_rms_epsilon"} - {"attention.head_count_kv"}
_CHUNK_VALUES = 1 << 24
"""Values to dequantise at a time: 64 MB in float32, whatever the size of the tensor."""
_MAX_SLICES = 4_000_000
"""A vocabulary of 256,000 tokens with 500,000 merges needs two million."""


@dataclass(frozen=True)
class GgufFile:
    """An opened GGUF file. Tensors are mapped, not read (format: ggml's docs/gguf.md)."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, ReaderTensor]


def convert_gguf(path: Path, folder: Path, report: Report = ignore) -> None:
    """Write the model of a GGUF file into an existing folder, with one tensor in memory at a time.

    Raises InputError, with every problem, if the file is broken or holds what is not supported.
    """
    file, config = check_gguf(path)
    names = schema.tensor_names(config)
    dtype = _dtype(file)
    tensors = _tensors(file, config, names, dtype, report)
    write_tensors(folder / "model.safetensors", dtype, dict(names.values()), tensors)
    write_json(folder / MODEL_CONFIG, {**config, "torch_dtype": dtype})
    tokenizer.save(file.metadata, folder, config["max_position_embeddings"])


def check_gguf(path: Path) -> tuple[GgufFile, dict[str, Any]]:
    """Open a file. Returns it with its model's `config.json`; InputError lists every problem."""
    file = open_gguf(path)
    metadata, name = file.metadata, str(file.metadata.get("general.architecture", ""))
    content = metadata.get("general.type", "model")
    if content != "model":
        raise InputError(f"{path}: this GGUF file holds a {content}, not a model.", OTHER_FILE)
    if name not in schema.FAMILIES:
        raise InputError(
            f"{path}: the architecture {name!r} is not supported from GGUF ({', '.join(schema.FAMILIES)} are).",
            "Use the model's original from the Hub (owner/name), or a student of these families.",
        )
    keys = {f"{name}.{key}": (kind, key in _REQUIRED) for key, kind in _KEYS.items()}
    raise_problems(path, list(_type_problems(metadata, {**keys, **tokenizer.KEYS})), OTHER_FILE)
    config = _config(file, name)
    if config["num_hidden_layers"] > len(file.tensors):  # before a name is made for each layer
        raise InputError(
            f"{path}: {name}.block_count = {config['num_hidden_layers']}, but the file holds only "
            f"{len(file.tensors)} tensors.",
            OTHER_FILE,
        )
    problems = [*_metadata_problems(metadata, config), *tokenizer.problems(metadata)]
    if config["num_attention_heads"] > 0:
        problems += _tensor_problems(file, schema.tensor_names(config))
    raise_problems(path, problems, OTHER_FILE)
    return file, config


def _dtype(file: GgufFile) -> FloatName:
    """Return the type of the weights: that of all matrices in the file, or float16 if they are quantised or differ."""
    floats: dict[str, FloatName] = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
    types = {tensor.tensor_type.name for tensor in file.tensors.values() if len(tensor.shape) > 1}
    return floats.get(types.pop(), "float16") if len(types) == 1 else "float16"


def open_gguf(path: Path) -> GgufFile:
    """Open a file. InputError if it is cut off, broken, big-endian, or one part of several."""
    try:
        reader = _PlainReader(path)
        metadata = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: the metadata is not UTF-8 text.", OTHER_FILE) from error
    except (ValueError, IndexError, KeyError, OverflowError, TypeError, OSError, RecursionError) as error:
        raise InputError(
            f"{path}: not a whole GGUF file of version 2 or 3 ({first_line(error)}).", "Download or copy it again."
        ) from error
    if reader.byte_order == "S":
        raise InputError(f"{path}: the file is big-endian, which is not supported.", OTHER_FILE)
    parts = metadata.get("split.count", 1)
    if parts not in (0, 1):
        raise InputError(
            f"{path}: this is one of {parts} parts of a split model.",
            "Join them with llama.cpp's `llama-gguf-split --merge`, or use a file in one part.",
        )
    return GgufFile(path, metadata, {tensor.name: tensor for tensor in reader.tensors})


class _PlainReader(GGUFReader):  # type: ignore[misc] # gguf has no types
    """The `gguf` package's reader over a plain view of the mapped file, with limits.

    It cuts a vocabulary into a million slices; each takes three times as long on a numpy.memmap. Beyond the end of the
    file it would return empty slices, as many as a header names.
    """

    n_slices = 0

    def _get(self, offset: int, dtype: npt.DTypeLike, count: int = 1, override_order: str | None = None) -> Any:
        self.n_slices += 1
        if self.n_slices > _MAX_SLICES:
            raise ValueError(f"more than {_MAX_SLICES:,} values in the metadata")
        values = super()._get(offset, dtype, count, override_order)
        if len(values) < count:
            raise ValueError("the file is cut off")
        return values

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value.view(np.ndarray) if name == "data" else value)


def _config(file: GgufFile, name: str) -> dict[str, Any]:
    """Return `config.json` as Hugging Face and mlx-lm read it, without the type of the weights."""
    values: dict[str, Any] = {key: file.metadata.get(f"{name}.{key}") for key in _KEYS}
    values["attention.head_count_kv"] = values["attention.head_count_kv"] or values["attention.head_count"]
    config: dict[str, Any] = {
        "architectures": [schema.FAMILIES[name].class_name],
        "model_type": name,
        **{setting: values[key] for key, setting in schema.SIZE_KEYS.items()},
        "hidden_act": "silu",
        "rope_theta": _shortest(values["rope.freq_base"] or 10000.0),
        "rms_norm_eps": _shortest(values["attention.layer_norm_rms_epsilon"]),
        "vocab_size": len(file.metadata[f"{tokenizer.PREFIX}tokens"]),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        **tokenizer.special_ids(file.metadata),
    }
    if schema.FAMILIES[name].free_head_size and values["attention.head_count"] > 0:
        config["head_dim"] = values["attention.key_length"] or schema.head_size(config)
    if values["rope.scaling.type"] == "linear" and values["rope.scaling.factor"]:
        config["rope_scaling"] = {"type": "linear", "factor": _shortest(values["rope.scaling.factor"])}
    return config


def _shortest(value: float) -> float:
    """Return the shortest decimal that is the same float32: 1e-05 for 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _type_problems(metadata: Mapping[str, Any], keys: Mapping[str, tuple[type, bool]]) -> Iterator[str]:
    for key, (kind, required) in keys.items():
        value = metadata.get(key)
        if value is None:
            if required:
                yield f"{key} is missing"
        elif isinstance(value, bool) != (kind is bool) or not isinstance(
            value, (int, float) if kind is float else kind
        ):
            yield f"{key} is {str(value)[:60]!r}, not of type {kind.__name__}"


def _metadata_problems(metadata: Mapping[str, Any], config: Mapping[str, Any]) -> Iterator[str]:
    prefix = f"{config['model_type']}."
    for key, value in metadata.items():
        if key.startswith(prefix) and key.removeprefix(prefix) not in _KEYS and value:
            yield f"{key} = {str(value)[:60]} is not supported"
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    if min(heads, kv_heads) < 1 or heads % kv_heads:
        yield f"{heads} attention heads do not share {kv_heads} key-value heads evenly"
        return
    size = schema.head_size(config)
    for key in ("attention.key_length", "attention.value_length", "rope.dimension_count"):
        if metadata.get(prefix + key, size) != size:
            yield f"{prefix}{key} = {metadata[prefix + key]} differs from the head size {size}"
    scaling = metadata.get(f"{prefix}rope.scaling.type", "none")
    if scaling not in ("none", "linear"):
        yield f"{prefix}rope.scaling.type = {scaling!r} is not supported (none and linear are)"
    factor = metadata.get(f"{prefix}rope.scaling.factor") or 0
    if scaling == "linear" and not factor > 0:
        yield f"{prefix}rope.scaling.factor = {factor}: linear rope scaling needs a positive factor"


def _tensor_problems(file: GgufFile, names: schema.TensorNames) -> Iterator[str]:
    found = {name: tuple(map(int, reversed(tensor.shape))) for name, tensor in file.tensors.items()}
    yield from schema.shape_problems(found, {name: size for name, (_, size) in names.items()})
    for kind, tensor in {tensor.tensor_type: tensor for tensor in file.tensors.values()}.items():
        try:
            dequantize(tensor.data[:1], kind)
        except NotImplementedError:
            yield f"tensor {tensor.name}: values of type {kind.name} are not supported"


def _tensors(
    file: GgufFile, config: Mapping[str, Any], names: schema.TensorNames, dtype: FloatName, report: Report
) -> Iterator[npt.NDArray[Any]]:
    """Yield the tensors in the order of `names`, in `dtype` and Hugging Face's row order."""
    for done, (name, (_, size)) in enumerate(names.items()):
        report(Progress("weights", done, len(names), "tensors"))
        values = _values(file.path, file.tensors[name], dtype).reshape(size)
        heads = schema.rotary_heads(config, name)
        yield schema.unpermute_rope(values, heads) if heads else values
    report(Progress("weights", len(names), len(names), "tensors"))


def _values(path: Path, tensor: ReaderTensor, dtype: FloatName) -> npt.NDArray[Any]:
    """Return a tensor in `dtype` (bfloat16 as its bits in uint16), dequantised a few rows at a time."""
    rows = tensor.data.reshape(-1, tensor.data.shape[-1])
    n_chunks = min(len(rows), 1 + prod(map(int, tensor.shape)) // _CHUNK_VALUES)
    converted, finite = [], True
    with np.errstate(all="ignore"):  # values that overflow become infinite and are refused below
        for chunk in np.array_split(rows, n_chunks):
            values = dequantize(chunk, tensor.tensor_type)
            if dtype == "bfloat16":
                converted.append(quantize(values, GGMLQuantizationType.BF16).view(np.uint16))
            else:
                values = values.astype(dtype)
                converted.append(values)
            finite = finite and bool(np.isfinite(values).all())
    if not finite:
        raise InputError(f"{path}: tensor {tensor.name} holds NaN, or values beyond {dtype}.", OTHER_FILE)
    return np.concatenate(converted)
