"""`export gguf`: a model folder of the llama or qwen2 family as one GGUF file for llama.cpp, Ollama and LM Studio.

Vectors (norms, biases) stay float32, as llama.cpp expects. Matrices get the type asked for.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType, GGUFValueType, GGUFWriter, quant_shape_to_byte_shape
from gguf.quants import quantize

from mlx_distill.errors import InputError, VerificationError, raise_problems
from mlx_distill.events import Note, Progress, Report, ignore
from mlx_distill.export.config import GgufConfig, GgufResult, Kind
from mlx_distill.models.gguf import schema, tokenizer
from mlx_distill.models.gguf.read import check_gguf
from mlx_distill.models.load import read_config
from mlx_distill.models.safetensors_io import read_headers
from mlx_distill.storage.atomic import new_file

_FILE_TYPES: Mapping[Kind, int] = {"F32": 0, "F16": 1, "Q8_0": 7, "BF16": 32}
"""`general.file_type` (llama.cpp: enum llama_ftype)."""
_Q8_BLOCK = 32
"""Values that share a scale in Q8_0. A row must be a multiple of it."""
_OTHER_MODEL = "Export a model of the llama or qwen2 family, such as one that `mlx-distill fuse` made."


def run(settings: GgufConfig, report: Report = ignore) -> GgufResult:
    """Write a model folder as a GGUF file, one tensor in memory at a time, and read it back.

    Raises InputError, with every problem, for what a GGUF file of these families cannot hold: another architecture,
    quantised weights, an unknown pre-tokenizer, rope scaling other than linear. An error leaves nothing.
    """
    model, out, kind = settings.model, settings.out, settings.kind
    started = time.monotonic()
    weights: dict[str, mx.array] = {}
    config = read_config(model)
    for file in read_headers(model).files:
        weights |= mx.load(str(file))  # type: ignore[arg-type]  # lazy arrays: read when they are used
    config = _full_config(model, config, weights)
    names = schema.tensor_names(config)
    tokens, problems = tokenizer.metadata_of(model, config["vocab_size"])
    raise_problems(model, [*_problems(config, weights, names), *problems], _OTHER_MODEL)
    with new_file(out, replace=settings.force) as scratch:
        writer = GGUFWriter(scratch, config["model_type"])
        try:
            for key, value in {**_metadata(model, config, kind), **tokens}.items():
                unsigned = isinstance(value, int) and not isinstance(value, bool)  # llama.cpp refuses signed sizes
                writer.add_key_value(key, value, GGUFValueType.UINT32 if unsigned else GGUFValueType.get_type(value))
            _write_tensors(writer, config, weights, names, kind, report)
        finally:
            writer.close()
        try:
            check_gguf(scratch)  # the checks of a file that is converted to a model
        except InputError as error:
            raise VerificationError(f"{out}: the written file does not read back.", problems=[str(error)]) from error
        size = scratch.stat().st_size
    return GgufResult(out, kind, len(names), size, round(time.monotonic() - started, 2))


def _full_config(model: Path, config: dict[str, Any], weights: Mapping[str, mx.array]) -> dict[str, Any]:
    """Return the config with the sizes that the weights decide. InputError for a model that GGUF cannot hold here."""
    if config["model_type"] not in schema.FAMILIES:
        raise InputError(
            f"{model}: the architecture {config['model_type']!r} cannot be written as GGUF here.", _OTHER_MODEL
        )
    if "quantization" in config:
        raise InputError(f"{model}: the weights are quantised.", "Export a model fused without --q-bits.")
    missing = [name for name in (*schema.SIZE_KEYS.values(), "rms_norm_eps") if name not in config]
    missing = [name for name in missing if name not in ("num_key_value_heads", "max_position_embeddings")]
    if missing or "model.embed_tokens.weight" not in weights:
        raise InputError(f"{model}: {', '.join(missing) or 'the embedding'} is missing.", _OTHER_MODEL)
    return {
        "max_position_embeddings": 32768,
        "rope_theta": 1e6 if config["model_type"] == "qwen2" else 1e4,  # defaults of mlx_lm.models
        **config,
        "num_key_value_heads": config.get("num_key_value_heads") or config["num_attention_heads"],
        "vocab_size": weights["model.embed_tokens.weight"].shape[0],
        "tie_word_embeddings": "lm_head.weight" not in weights,
    }


def _rope(config: Mapping[str, Any]) -> tuple[str, float]:
    """Return the type and the factor of the rope scaling."""
    scaling = config.get("rope_scaling") or {}
    return scaling.get("type", scaling.get("rope_type", "default")), scaling.get("factor", 1.0)


def _problems(config: Mapping[str, Any], weights: Mapping[str, mx.array], names: schema.TensorNames) -> Iterator[str]:
    if _rope(config)[0] not in ("default", "linear"):
        yield f"rope scaling of type {_rope(config)[0]!r} is not supported (linear is)"
    if "sliding_attention" in (config.get("layer_types") or ()):
        yield "sliding attention is not supported"
    yield from schema.shape_problems({name: values.shape for name, values in weights.items()}, dict(names.values()))


def _metadata(model: Path, config: Mapping[str, Any], kind: Kind) -> dict[str, Any]:
    size, (rope, factor) = schema.head_size(config), _rope(config)
    architecture: dict[str, Any] = {
        **{key: config[setting] for key, setting in schema.SIZE_KEYS.items()},
        "attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        "rope.freq_base": float(config["rope_theta"]),
        "rope.dimension_count": size,
        "vocab_size": config["vocab_size"],
    }
    if schema.FAMILIES[config["model_type"]].free_head_size:
        architecture |= {"attention.key_length": size, "attention.value_length": size}
    if rope == "linear":
        architecture |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(factor)}
    return {
        "general.type": "model",
        "general.name": model.resolve().name,
        "general.file_type": _FILE_TYPES[kind],
        "general.quantization_version": 2,
        **{f"{config['model_type']}.{key}": value for key, value in architecture.items()},
    }


def _write_tensors(
    writer: GGUFWriter,
    config: Mapping[str, Any],
    weights: dict[str, mx.array],
    names: schema.TensorNames,
    kind: Kind,
    report: Report,
) -> None:
    """Declare all tensors, then convert and write one after another. Empties `weights` on the way."""
    types = {name: GGMLQuantizationType[_tensor_type(size, kind)] for name, (_, size) in names.items()}
    for name, (_, size) in names.items():
        type_of = types[name]
        dtype = np.dtype({"F32": np.float32, "F16": np.float16}.get(type_of.name, np.uint8))
        stored = quant_shape_to_byte_shape(size, type_of) if dtype == np.uint8 else size
        writer.add_tensor_info(name, stored, dtype, int(np.prod(stored)) * dtype.itemsize, raw_dtype=type_of)
    n_float16 = sum(kind == "Q8_0" and type_of.name == "F16" for type_of in types.values())
    if n_float16:
        report(Note(f"{n_float16} matrices have rows that are not a multiple of {_Q8_BLOCK} and stay F16."))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for done, (name, (ours, _)) in enumerate(names.items()):
        report(Progress("tensors", done, len(names), "tensors"))
        values = np.array(weights.pop(ours).astype(mx.float32))
        heads = schema.rotary_heads(config, name)
        writer.write_tensor_data(_stored(name, schema.permute_rope(values, heads) if heads else values, types[name]))
    report(Progress("tensors", len(names), len(names), "tensors"))


def _tensor_type(size: tuple[int, ...], kind: Kind) -> Kind:
    if len(size) == 1:
        return "F32"
    return "F16" if kind == "Q8_0" and size[-1] % _Q8_BLOCK else kind


def _stored(name: str, values: npt.NDArray[Any], type_of: GGMLQuantizationType) -> npt.NDArray[Any]:
    """Convert float32 values to the type of the file. InputError if one is not finite or does not fit."""
    with np.errstate(over="ignore"):
        stored: npt.NDArray[Any] = quantize(values, type_of)
    if not np.isfinite(values if stored.dtype == np.uint8 else stored).all():
        raise InputError(
            f"tensor {name} holds NaN, or values beyond {type_of.name}.", "Choose BF16 or F32, or check the weights."
        )
    return stored
