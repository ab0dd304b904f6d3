"""Names, shapes and row order of llama and qwen2 models in GGUF, for reading and for writing.

Functions take the model's `config.json`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt


@dataclass(frozen=True)
class Family:
    """The properties of one architecture."""

    class_name: str
    """The name in `config.json`."""
    interleaves_rotary: bool
    """llama.cpp stores the q and k rows in rotary pairs; Hugging Face stores the two halves one after the other."""
    biases: tuple[str, ...] = ()
    """The parts of a layer that have a bias."""
    free_head_size: bool = False
    """The head size may differ from hidden size / heads."""


FAMILIES: Mapping[str, Family] = {
    "llama": Family("LlamaForCausalLM", interleaves_rotary=True, free_head_size=True),
    "qwen2": Family("Qwen2ForCausalLM", interleaves_rotary=False, biases=("attn_q", "attn_k", "attn_v")),
}

SIZE_KEYS: Mapping[str, str] = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
}
"""GGUF's key (after the architecture and a dot) and the setting in `config.json`."""

TensorNames = dict[str, tuple[str, tuple[int, ...]]]
"""GGUF's name of a tensor to (Hugging Face's name, shape)."""


def head_size(config: Mapping[str, Any]) -> int:
    """Return the size of one attention head."""
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def tensor_names(config: Mapping[str, Any]) -> TensorNames:
    """Return every tensor of a model, in the order of writing."""
    family, hidden, inner = FAMILIES[config["model_type"]], config["hidden_size"], config["intermediate_size"]
    queries, keys = (config[name] * head_size(config) for name in ("num_attention_heads", "num_key_value_heads"))
    parts: dict[str, tuple[str, tuple[int, ...]]] = {
        "attn_norm": ("input_layernorm", (hidden,)),
        "attn_q": ("self_attn.q_proj", (queries, hidden)),
        "attn_k": ("self_attn.k_proj", (keys, hidden)),
        "attn_v": ("self_attn.v_proj", (keys, hidden)),
        "attn_output": ("self_attn.o_proj", (hidden, queries)),
        "ffn_norm": ("post_attention_layernorm", (hidden,)),
        "ffn_gate": ("mlp.gate_proj", (inner, hidden)),
        "ffn_up": ("mlp.up_proj", (inner, hidden)),
        "ffn_down": ("mlp.down_proj", (hidden, inner)),
    }
    names: TensorNames = {"token_embd.weight": ("model.embed_tokens.weight", (config["vocab_size"], hidden))}
    for layer in range(config["num_hidden_layers"]):
        for part, (name, size) in parts.items():
            names[f"blk.{layer}.{part}.weight"] = (f"model.layers.{layer}.{name}.weight", size)
            if part in family.biases:
                names[f"blk.{layer}.{part}.bias"] = (f"model.layers.{layer}.{name}.bias", size[:1])
    names["output_norm.weight"] = ("model.norm.weight", (hidden,))
    if not config["tie_word_embeddings"]:
        names["output.weight"] = ("lm_head.weight", (config["vocab_size"], hidden))
    return names


def shape_problems(found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]) -> Iterator[str]:
    """Yield the tensors that are missing, not expected, or of another shape."""
    for name in [*expected, *(name for name in found if name not in expected)]:
        if name not in found:
            yield f"tensor {name} is missing"
        elif name not in expected:
            yield f"tensor {name} does not belong to this architecture"
        elif found[name] != expected[name]:
            ours, theirs = ("×".join(map(str, shape)) for shape in (found[name], expected[name]))
            yield f"tensor {name} is {ours}, {theirs} was expected"


def rotary_heads(config: Mapping[str, Any], name: str) -> int:
    """Return the number of heads of a tensor whose rows llama.cpp stores in rotary pairs, or 0 for other tensors."""
    part = name.split(".")[-2]
    if part not in ("attn_q", "attn_k") or not FAMILIES[config["model_type"]].interleaves_rotary:
        return 0
    return int(config["num_attention_heads" if part == "attn_q" else "num_key_value_heads"])


def permute_rope(rows: npt.NDArray[Any], heads: int) -> npt.NDArray[Any]:
    """Reorder the rows of each head from halves (x0 x1 ... y0 y1 ...) to rotary pairs (x0 y0 x1 y1 ...)."""
    halves = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape)


def unpermute_rope(rows: npt.NDArray[Any], heads: int) -> npt.NDArray[Any]:
    """Reorder the rows of each head from rotary pairs to halves: the inverse of `permute_rope`."""
    pairs = rows.reshape(heads, rows.shape[0] // heads // 2, 2, *rows.shape[1:])
    return pairs.swapaxes(1, 2).reshape(rows.shape)
