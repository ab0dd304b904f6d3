"""GGUF files for tests, written from a Hugging Face folder with the `gguf` package as llama.cpp's converter does."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.support.tiny import change_weights, edit_json, weights_of

LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def write_gguf(
    folder: Path,
    out: Path,
    kind: str = "F32",
    *,
    metadata: Mapping[str, Any] | None = None,
    tensors: Mapping[str, Any] | None = None,
    big_endian: bool = False,
) -> Path:
    """Write `folder`'s model with matrices of `kind` (F32, F16, BF16, Q8_0, Q4_K ...) and return `out`.

    `metadata` and `tensors` override or add entries by name; None leaves one out.
    """
    import gguf

    entries = {**model_metadata(folder), **(metadata or {})}
    arrays = {**model_tensors(folder), **(tensors or {})}
    order = gguf.GGUFEndian.BIG if big_endian else gguf.GGUFEndian.LITTLE
    writer = gguf.GGUFWriter(out, entries.pop("general.architecture"), endianess=order)
    for key, value in entries.items():
        _add(writer, key, value)
    for name, values in arrays.items():
        if values is None:
            continue
        if values.ndim == 1 or kind == "F32":
            writer.add_tensor(name, values)
        elif kind == "F16":
            writer.add_tensor(name, values.astype("float16"))
        else:
            type_of = gguf.GGMLQuantizationType[kind]
            writer.add_tensor(name, gguf.quants.quantize(values, type_of), raw_dtype=type_of)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def _add(writer: Any, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif value is not None:
        writer.add_array(key, value)


def model_metadata(folder: Path) -> dict[str, Any]:
    """Return the metadata that llama.cpp's converter writes for a qwen2 or llama model."""
    config = json.loads((folder / "config.json").read_text())
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = sorted(tokenizer["model"]["vocab"].items(), key=lambda item: item[1])
    special = {token["id"] for token in tokenizer["added_tokens"]}
    name = config["model_type"]
    return {
        "general.architecture": name,
        "general.name": "Tiny",
        f"{name}.block_count": config["num_hidden_layers"],
        f"{name}.context_length": config["max_position_embeddings"],
        f"{name}.embedding_length": config["hidden_size"],
        f"{name}.feed_forward_length": config["intermediate_size"],
        f"{name}.attention.head_count": config["num_attention_heads"],
        f"{name}.attention.head_count_kv": config["num_key_value_heads"],
        f"{name}.attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
        f"{name}.rope.freq_base": config["rope_theta"],
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.tokens": [token for token, _ in vocabulary],
        "tokenizer.ggml.token_type": [3 if index in special else 1 for _, index in vocabulary],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in tokenizer["model"]["merges"]],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": settings["chat_template"],
    }


def model_tensors(folder: Path) -> dict[str, Any]:
    """Return the weights in float32 under GGUF's names; q and k rows of a llama in rotary pairs."""
    import mlx.core as mx
    import numpy as np

    config = json.loads((folder / "config.json").read_text())
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    arrays = {}
    for name, value in weights_of(folder).items():
        values = np.array(value.astype(mx.float32))
        stem, _, ending = name.rpartition(".")
        if stem in TOP:
            arrays[f"{TOP[stem]}.{ending}"] = values
            continue
        _, _, layer, part = stem.split(".", 3)
        if config["model_type"] == "llama" and LAYER[part] in heads:  # convert_hf_to_gguf.py: LlamaModel.permute
            n = heads[LAYER[part]]
            shape = values.shape
            values = values.reshape(n, 2, shape[0] // n // 2, *shape[1:]).swapaxes(1, 2).reshape(shape)
        arrays[f"blk.{layer}.{LAYER[part]}.{ending}"] = values
    return arrays


def make_tiny_llama(folder: Path, qwen2: Path) -> Path:
    """Write a llama model with the tiny qwen2's weights, without the biases."""
    shutil.copytree(qwen2, folder)
    edit_json(folder / "config.json", architectures=["LlamaForCausalLM"], model_type="llama")
    change_weights(folder, {name: None for name in weights_of(qwen2) if name.endswith(".bias")})
    return folder
