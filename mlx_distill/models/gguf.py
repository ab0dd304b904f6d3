"""A GGUF file of the llama or qwen2 family becomes a model folder: weights, config, tokenizer, end tokens.

What cannot be converted faithfully is refused by name before anything is written.

The weights' type is the source's own where its matrices have one (F32, F16, BF16). Quantised matrices become float16:
their values are float16 scales times small integers, and float16's 11 significant bits keep them seven times more
exactly than bfloat16's 8 (relative error on SmolLM2 Q4_1: 0.0002 against 0.0014; Q8_0's own step is 0.004).
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_distill.errors import InputError, raise_problems
from mlx_distill.events import Progress, Report, ignore
from mlx_distill.models import gguf_tokenizer
from mlx_distill.models.gguf_file import OTHER_FILE, GgufFile
from mlx_distill.models.gguf_schema import FAMILIES, Shape, TensorNames, tensor_names, unpaired
from mlx_distill.models.safetensors_io import FloatName, write_tensors
from mlx_distill.storage.atomic import write_json

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from gguf.gguf_reader import ReaderTensor


_KNOWN_KEYS = frozenset(
    {
        "block_count",
        "context_length",
        "embedding_length",
        "feed_forward_length",
        "vocab_size",
        "attention.head_count",
        "attention.head_count_kv",
        "attention.key_length",
        "attention.value_length",
        "attention.layer_norm_rms_epsilon",
        "rope.freq_base",
        "rope.dimension_count",
        "rope.scaling.type",
        "rope.scaling.factor",
        "rope.scaling.original_context_length",
        "rope.scaling.finetuned",
    }
)
"""Architecture keys that are understood. Any other that is set may change the arithmetic, so it is refused."""

_CHUNK_VALUES = 1 << 24
"""Values dequantised at a time: 64 MB in float32, whatever the size of the tensor."""


def write_model(path: Path, folder: Path, report: Report = ignore) -> None:
    """Write the model of GGUF file `path` into the existing `folder`, one tensor in memory at a time.

    Raises InputError, with every problem found, where the file is broken or holds what is not supported.
    """
    gguf, shape = check(path)
    names = tensor_names(shape)
    dtype = weights_dtype(gguf)
    write_tensors(
        folder / "model.safetensors",
        dtype,
        dict(names.values()),
        _tensors(gguf, shape, names, dtype, report),
    )
    write_json(folder / "config.json", _config(gguf, shape, dtype))
    gguf_tokenizer.write(gguf, folder)


def check(path: Path) -> tuple[GgufFile, Shape]:
    """The opened file and its model's sizes; InputError with every problem that keeps it from being converted."""
    gguf = GgufFile(path)
    shape = read_shape(gguf)
    names = tensor_names(shape)
    problems = [*_metadata_problems(gguf), *_tensor_problems(gguf, names), *gguf_tokenizer.problems(gguf)]
    raise_problems(path, problems, OTHER_FILE)
    return gguf, shape


def read_shape(gguf: GgufFile) -> Shape:
    """The model's sizes; InputError where the architecture is not supported or its metadata is missing."""
    name = gguf.get("general.architecture", "")
    kind = gguf.get("general.type", "model")
    if kind != "model":
        raise InputError(f"{gguf.path}: this GGUF file holds a {kind}, not a model.", OTHER_FILE)
    if name not in FAMILIES:
        raise InputError(
            f"{gguf.path}: the architecture {name!r} is not supported from GGUF ({', '.join(FAMILIES)} are).",
            "Use the model's original from the Hub (owner/name), or a student of these families.",
        )
    sizes = ("block_count", "context_length", "embedding_length", "feed_forward_length", "attention.head_count")
    gguf.require(
        {
            **{f"{name}.{key}": int for key in sizes},
            f"{name}.attention.layer_norm_rms_epsilon": float,
            **gguf_tokenizer.REQUIRED,
        }
    )
    hidden, heads = gguf.get(f"{name}.embedding_length"), gguf.get(f"{name}.attention.head_count")
    return Shape(
        family=FAMILIES[name],
        layers=gguf.get(f"{name}.block_count"),
        hidden=hidden,
        intermediate=gguf.get(f"{name}.feed_forward_length"),
        vocabulary=len(gguf.get("tokenizer.ggml.tokens")),
        heads=heads,
        kv_heads=gguf.get(f"{name}.attention.head_count_kv", heads),
        head_size=gguf.get(f"{name}.attention.key_length", hidden // max(heads, 1)),
        tied="output.weight" not in gguf.tensors,
    )


def weights_dtype(gguf: GgufFile) -> FloatName:
    """The type of all weights: the matrices' own where it is one, float16 for quantised ones (see above)."""
    own: dict[str, FloatName] = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
    types = {tensor.tensor_type.name for tensor in gguf.tensors.values() if len(tensor.shape) > 1}
    return own.get(types.pop(), "float16") if len(types) == 1 else "float16"


def _metadata_problems(gguf: GgufFile) -> Iterator[str]:
    name = gguf.get("general.architecture")
    family, prefix = FAMILIES[name], f"{name}."
    for key in gguf.keys:
        if key.startswith(prefix) and key.removeprefix(prefix) not in _KNOWN_KEYS and gguf.get(key):
            yield f"{key} = {str(gguf.get(key))[:60]} is not supported"
    heads = gguf.get(f"{prefix}attention.head_count")
    kv_heads = gguf.get(f"{prefix}attention.head_count_kv", heads)
    if not isinstance(kv_heads, int) or min(heads, kv_heads) < 1 or heads % kv_heads:
        yield f"{heads} attention heads do not share {kv_heads} key-value heads evenly"
        return
    usual = gguf.get(f"{prefix}embedding_length") // heads
    size = gguf.get(f"{prefix}attention.key_length", usual)
    if size != usual and not family.free_head_size:
        yield f"{prefix}attention.key_length = {size}: this family needs {usual} (hidden size / heads)"
    for key in ("attention.value_length", "rope.dimension_count"):
        if gguf.get(prefix + key, size) != size:
            yield f"{prefix}{key} = {gguf.get(prefix + key)} differs from the head size {size}"
    scaling = gguf.get(f"{prefix}rope.scaling.type", "none")
    if scaling not in ("none", "linear"):
        yield f"{prefix}rope.scaling.type = {scaling!r} is not supported (none and linear are)"
    factor = gguf.get(f"{prefix}rope.scaling.factor")
    if scaling == "linear" and not (isinstance(factor, float) and factor > 0):
        yield f"{prefix}rope.scaling.factor = {factor} is no factor for linear rope scaling"


def _tensor_problems(gguf: GgufFile, names: TensorNames) -> Iterator[str]:
    from gguf.quants import dequantize

    unsupported = set()
    for name in names:
        if name not in gguf.tensors:
            yield f"tensor {name} is missing"
    for name, tensor in gguf.tensors.items():
        size = tuple(int(length) for length in reversed(tensor.shape))
        if name not in names:
            yield f"tensor {name} is not part of this architecture here"
        elif size != names[name][1]:
            yield f"tensor {name} is {_times(size)}, {_times(names[name][1])} was expected"
        elif tensor.tensor_type not in unsupported:
            try:
                dequantize(tensor.data[:1], tensor.tensor_type)
            except NotImplementedError:
                unsupported.add(tensor.tensor_type)
                yield f"tensor {name}: values of type {tensor.tensor_type.name} are not supported"


def _times(size: tuple[int, ...]) -> str:
    return "×".join(map(str, size))


def _tensors(
    gguf: GgufFile,
    shape: Shape,
    names: TensorNames,
    dtype: FloatName,
    report: Report,
) -> Iterator[npt.NDArray[Any]]:
    """The tensors in the order of `names`, in `dtype` and Hugging Face's row order."""
    heads = {"attn_q": shape.heads, "attn_k": shape.kv_heads} if shape.family.interleaves_rotary else {}
    for done, (name, (_, size)) in enumerate(names.items()):
        report(Progress("weights", done, len(names), "tensors"))
        values = _values(gguf, gguf.tensors[name], dtype).reshape(size)
        part = name.split(".")[-2]
        yield unpaired(values, heads[part]) if part in heads else values
    report(Progress("weights", len(names), len(names), "tensors"))


def _values(gguf: GgufFile, tensor: ReaderTensor, dtype: FloatName) -> npt.NDArray[Any]:
    """A tensor's values in `dtype`, dequantised a few rows at a time; InputError where one does not fit or is NaN."""
    import numpy as np
    from gguf.quants import dequantize

    rows = tensor.data.reshape(-1, tensor.data.shape[-1])
    n_chunks = min(len(rows), 1 + prod(map(int, tensor.shape)) // _CHUNK_VALUES)
    with np.errstate(all="ignore"):  # what overflows becomes infinite and is refused below
        chunks = [_cast(dequantize(chunk, tensor.tensor_type), dtype) for chunk in np.array_split(rows, n_chunks)]
    if not all(finite for _, finite in chunks):
        raise InputError(f"{gguf.path}: tensor {tensor.name} holds NaN, or values beyond {dtype}.", OTHER_FILE)
    return np.concatenate([values for values, _ in chunks])


def _cast(values: npt.NDArray[np.float32], dtype: FloatName) -> tuple[npt.NDArray[Any], bool]:
    """float32 values in `dtype` (bfloat16 as its bits, numpy having no such type), and whether all are finite."""
    import numpy as np
    from gguf import GGMLQuantizationType
    from gguf.quants import quantize

    if dtype == "bfloat16":
        bits = quantize(values, GGMLQuantizationType.BF16).view(np.uint16)
        return bits, bool(np.isfinite(values).all())
    cast = values.astype(dtype)
    return cast, bool(np.isfinite(cast).all())


def _config(gguf: GgufFile, shape: Shape, dtype: FloatName) -> dict[str, Any]:
    """`config.json` as Hugging Face and mlx-lm read it."""
    name = gguf.get("general.architecture")
    config: dict[str, Any] = {
        "architectures": [shape.family.class_name],
        "model_type": name,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "hidden_act": "silu",
        "max_position_embeddings": gguf.get(f"{name}.context_length"),
        "rope_theta": _shortest(gguf.get(f"{name}.rope.freq_base", 10000.0)),
        "rms_norm_eps": _shortest(gguf.get(f"{name}.attention.layer_norm_rms_epsilon")),
        "vocab_size": shape.vocabulary,
        "tie_word_embeddings": shape.tied,
        "torch_dtype": dtype,
        **gguf_tokenizer.special_ids(gguf),
    }
    if shape.family.free_head_size:
        config["head_dim"] = shape.head_size
    if gguf.get(f"{name}.rope.scaling.type", "none") == "linear":
        config["rope_scaling"] = {"type": "linear", "factor": _shortest(gguf.get(f"{name}.rope.scaling.factor"))}
    return config


def _shortest(value: float) -> float:
    """The shortest decimal that is the same float32: 1e-05, where the file's value reads 9.999999747378752e-06."""
    import numpy as np

    return float(str(np.float32(value)))
