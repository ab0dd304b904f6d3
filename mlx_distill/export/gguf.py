"""`export gguf`: a model folder of the llama or qwen2 family as one GGUF file for llama.cpp, Ollama and LM Studio.

Vectors (norms, biases) are kept in float32, as llama.cpp expects them; matrices get the type asked for.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import mlx.core as mx

from mlx_distill.errors import InputError, VerificationError, raise_problems
from mlx_distill.events import Note, Progress, Report, ignore
from mlx_distill.export.gguf_tokenizer import tokenizer_metadata
from mlx_distill.models import gguf as students_gguf
from mlx_distill.models.gguf_schema import FAMILIES, Shape, TensorNames, paired, tensor_names
from mlx_distill.models.load import read_config
from mlx_distill.models.safetensors_io import read_headers
from mlx_distill.storage.atomic import new_file

if TYPE_CHECKING:
    import numpy.typing as npt
    from gguf import GGMLQuantizationType, GGUFWriter

Kind = Literal["F16", "BF16", "F32", "Q8_0"]
KINDS: tuple[Kind, ...] = get_args(Kind)

_FILE_TYPES: Mapping[Kind, int] = {"F32": 0, "F16": 1, "Q8_0": 7, "BF16": 32}
"""`general.file_type` (llama.cpp: enum llama_ftype)."""

_Q8_BLOCK = 32
"""Values that share a scale in Q8_0; a row must be a multiple of it."""

_OTHER_MODEL = "Export a model of the llama or qwen2 family, such as one that `mlx-distill fuse` made."


@dataclass(frozen=True)
class GgufExport:
    """A GGUF file, written and read back."""

    path: Path
    kind: str
    n_tensors: int
    size_bytes: int
    seconds: float


def write_gguf(
    model: Path, out: Path, kind: Kind = "F16", report: Report = ignore, *, replace: bool = False
) -> GgufExport:
    """Write model folder `model` as GGUF file `out`, one tensor in memory at a time, and read its contents back.

    Raises InputError, with every problem found, for what a GGUF file of these families cannot hold: another
    architecture, quantised weights, an unknown pre-tokenizer, rope scaling other than linear. Nothing is left then.
    """
    from gguf import GGUFWriter

    if kind not in KINDS:
        raise InputError(f"{kind!r} is not a type of GGUF file this can write.", f"Choose one of {', '.join(KINDS)}.")
    started = time.monotonic()
    config = read_config(model)
    weights: dict[str, mx.array] = {}
    for file in read_headers(model).files:
        loaded: Any = mx.load(str(file))  # of safetensors: a dict of arrays that are read when they are used
        weights.update(loaded)
    shape = _shape(model, config, weights)
    names = tensor_names(shape)
    metadata, tokenizer_problems = tokenizer_metadata(model, shape.vocabulary)
    raise_problems(
        model, [*_config_problems(config), *_weight_problems(weights, names), *tokenizer_problems], _OTHER_MODEL
    )
    with new_file(out, replace=replace) as scratch:
        writer = GGUFWriter(scratch, config["model_type"])
        try:
            _add_metadata(writer, {**_model_metadata(model, config, shape, kind), **metadata})
            _write_tensors(writer, weights, names, shape, kind, report)
        finally:
            writer.close()
        _read_back(scratch, out)
        size = scratch.stat().st_size
    return GgufExport(out, kind, len(names), size, round(time.monotonic() - started, 2))


def _shape(model: Path, config: Mapping[str, Any], weights: Mapping[str, mx.array]) -> Shape:
    """The model's sizes; InputError where it is of another family, quantised, or its config names no sizes."""
    family = FAMILIES.get(config["model_type"])
    if family is None:
        raise InputError(
            f"{model}: the architecture {config['model_type']!r} cannot be written as GGUF here.", _OTHER_MODEL
        )
    if "quantization" in config:
        raise InputError(
            f"{model}: the weights are quantised.",
            "Export a model fused without --q-bits (`mlx-distill fuse` dequantises).",
        )
    try:
        heads = config["num_attention_heads"]
        return Shape(
            family=family,
            layers=config["num_hidden_layers"],
            hidden=config["hidden_size"],
            intermediate=config["intermediate_size"],
            vocabulary=weights["model.embed_tokens.weight"].shape[0],
            heads=heads,
            kv_heads=config.get("num_key_value_heads") or heads,
            head_size=config.get("head_dim") or config["hidden_size"] // heads,
            tied="lm_head.weight" not in weights,
        )
    except KeyError as error:
        raise InputError(f"{model}: {error} is missing.", _OTHER_MODEL) from error


def _config_problems(config: Mapping[str, Any]) -> Iterator[str]:
    rope = _rope_scaling(config)
    if rope and rope.get("type", rope.get("rope_type")) not in ("default", "linear"):
        yield f"rope scaling of type {rope.get('type', rope.get('rope_type'))!r} is not supported (linear is)"
    if "sliding_attention" in (config.get("layer_types") or ()):
        yield "sliding attention is not supported"


def _weight_problems(weights: Mapping[str, mx.array], names: TensorNames) -> Iterator[str]:
    expected = dict(names.values())
    for name, size in expected.items():
        if name not in weights:
            yield f"tensor {name} is missing"
        elif weights[name].shape != size:
            yield f"tensor {name} has the shape {weights[name].shape}, {size} was expected"
    for name in weights:
        if name not in expected:
            yield f"tensor {name} has no place in a GGUF file of this family"


def _rope_scaling(config: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = config.get("rope_scaling") or {}
    return found


def _model_metadata(model: Path, config: Mapping[str, Any], shape: Shape, kind: Kind) -> dict[str, Any]:
    name = config["model_type"]
    metadata: dict[str, Any] = {
        "general.type": "model",
        "general.name": model.resolve().name,
        "general.file_type": _FILE_TYPES[kind],
        "general.quantization_version": 2,
        f"{name}.block_count": shape.layers,
        f"{name}.context_length": config.get("max_position_embeddings", 32768),
        f"{name}.embedding_length": shape.hidden,
        f"{name}.feed_forward_length": shape.intermediate,
        f"{name}.attention.head_count": shape.heads,
        f"{name}.attention.head_count_kv": shape.kv_heads,
        f"{name}.attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        f"{name}.rope.freq_base": _rope_base(config),
        f"{name}.rope.dimension_count": shape.head_size,
        f"{name}.vocab_size": shape.vocabulary,
    }
    if shape.family.free_head_size:
        metadata[f"{name}.attention.key_length"] = metadata[f"{name}.attention.value_length"] = shape.head_size
    rope = _rope_scaling(config)
    if rope.get("type", rope.get("rope_type")) == "linear":
        metadata[f"{name}.rope.scaling.type"] = "linear"
        metadata[f"{name}.rope.scaling.factor"] = float(rope["factor"])
    return metadata


def _rope_base(config: Mapping[str, Any]) -> float:
    """mlx-lm's own defaults where the config names none (mlx_lm.models.llama and qwen2)."""
    return float(config.get("rope_theta", 1e6 if config["model_type"] == "qwen2" else 1e4))


def _add_metadata(writer: GGUFWriter, metadata: Mapping[str, Any]) -> None:
    for key, value in metadata.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)


def _write_tensors(
    writer: GGUFWriter, weights: dict[str, mx.array], names: TensorNames, shape: Shape, kind: Kind, report: Report
) -> None:
    """Announce all tensors, then convert and write one after another; `weights` is emptied on the way."""
    import numpy as np
    from gguf import GGMLQuantizationType, quant_shape_to_byte_shape

    types: dict[str, GGMLQuantizationType] = {}
    for name, (_, size) in names.items():
        types[name] = GGMLQuantizationType[_tensor_type(size, kind)]
        stored = quant_shape_to_byte_shape(size, types[name]) if types[name].name in ("BF16", "Q8_0") else size
        width = {"F32": 4, "F16": 2}.get(types[name].name, 1)
        dtype = np.dtype({"F32": np.float32, "F16": np.float16}.get(types[name].name, np.uint8))
        writer.add_tensor_info(name, stored, dtype, int(np.prod(stored)) * width, raw_dtype=types[name])
    if odd := sum(
        kind == "Q8_0" and len(names[name][1]) > 1 and type_of.name == "F16" for name, type_of in types.items()
    ):
        report(Note(f"{odd} matrices have rows that are no multiple of {_Q8_BLOCK} and stay F16"))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    heads = {"attn_q": shape.heads, "attn_k": shape.kv_heads} if shape.family.interleaves_rotary else {}
    for done, (name, (ours, _)) in enumerate(names.items()):
        report(Progress("tensors", done, len(names), "tensors"))
        values = np.array(weights.pop(ours).astype(mx.float32))
        part = name.split(".")[-2]
        writer.write_tensor_data(_stored(name, paired(values, heads[part]) if part in heads else values, types[name]))
    report(Progress("tensors", len(names), len(names), "tensors"))


def _tensor_type(size: tuple[int, ...], kind: Kind) -> Kind:
    if len(size) == 1:
        return "F32"
    return "F16" if kind == "Q8_0" and size[-1] % _Q8_BLOCK else kind


def _stored(name: str, values: npt.NDArray[Any], type_of: GGMLQuantizationType) -> npt.NDArray[Any]:
    """float32 values as the file stores them; InputError where one is not finite or does not fit."""
    import numpy as np
    from gguf.quants import quantize

    with np.errstate(over="ignore"):
        stored: npt.NDArray[Any] = quantize(values, type_of)
    if not np.isfinite(values if stored.dtype == np.uint8 else stored).all():
        raise InputError(
            f"tensor {name} holds NaN, or values beyond {type_of.name}.", "Choose BF16 or F32, or check the weights."
        )
    return stored


def _read_back(scratch: Path, out: Path) -> None:
    """The file must pass the checks that a GGUF file passes on its way in."""
    try:
        students_gguf.check(scratch)
    except InputError as error:
        raise VerificationError(f"{out}: the written file does not read back.", problems=[str(error)]) from error
