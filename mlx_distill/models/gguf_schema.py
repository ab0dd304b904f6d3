"""How GGUF lays a llama or qwen2 model out: names, shapes and row order, for reading and for writing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy.typing as npt


@dataclass(frozen=True)
class Family:
    """What sets one architecture apart."""

    class_name: str
    """As `config.json` names it."""
    interleaves_rotary: bool
    """llama.cpp stores the q and k rows of this family in rotary pairs; Hugging Face keeps the halves apart."""
    biases: tuple[str, ...] = ()
    """The parts of a layer that have a bias."""
    free_head_size: bool = False
    """The head size may be another than hidden size / heads."""


FAMILIES: Mapping[str, Family] = {
    "llama": Family("LlamaForCausalLM", interleaves_rotary=True, free_head_size=True),
    "qwen2": Family("Qwen2ForCausalLM", interleaves_rotary=False, biases=("attn_q", "attn_k", "attn_v")),
}

LAYER_PARTS: Mapping[str, str] = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""GGUF's name of a layer's part and Hugging Face's."""

TensorNames = dict[str, tuple[str, tuple[int, ...]]]
"""GGUF's name of a tensor to (Hugging Face's name, shape)."""


@dataclass(frozen=True)
class Shape:
    """The sizes that decide every tensor's shape."""

    family: Family
    layers: int
    hidden: int
    intermediate: int
    vocabulary: int
    heads: int
    kv_heads: int
    head_size: int
    tied: bool


def tensor_names(shape: Shape) -> TensorNames:
    """Every tensor that a model of this shape has, in the order in which it is written."""
    hidden, queries, keys = shape.hidden, shape.heads * shape.head_size, shape.kv_heads * shape.head_size
    sizes: dict[str, tuple[int, ...]] = {
        "attn_norm": (hidden,),
        "attn_q": (queries, hidden),
        "attn_k": (keys, hidden),
        "attn_v": (keys, hidden),
        "attn_output": (hidden, queries),
        "ffn_norm": (hidden,),
        "ffn_gate": (shape.intermediate, hidden),
        "ffn_up": (shape.intermediate, hidden),
        "ffn_down": (hidden, shape.intermediate),
    }
    names: TensorNames = {"token_embd.weight": ("model.embed_tokens.weight", (shape.vocabulary, hidden))}
    for layer in range(shape.layers):
        for part, size in sizes.items():
            theirs, ours = f"blk.{layer}.{part}", f"model.layers.{layer}.{LAYER_PARTS[part]}"
            names[f"{theirs}.weight"] = (f"{ours}.weight", size)
            if part in shape.family.biases:
                names[f"{theirs}.bias"] = (f"{ours}.bias", size[:1])
    names["output_norm.weight"] = ("model.norm.weight", (hidden,))
    if not shape.tied:
        names["output.weight"] = ("lm_head.weight", (shape.vocabulary, hidden))
    return names


def unpaired(rows: npt.NDArray[Any], heads: int) -> npt.NDArray[Any]:
    """q or k rows out of llama.cpp's rotary pairs (x0 y0 x1 y1 ...) into halves (x0 x1 ... y0 y1 ...), head by head."""
    pairs = rows.reshape(heads, rows.shape[0] // heads // 2, 2, *rows.shape[1:])
    return pairs.swapaxes(1, 2).reshape(rows.shape)


def paired(rows: npt.NDArray[Any], heads: int) -> npt.NDArray[Any]:
    """q or k rows out of halves into llama.cpp's rotary pairs: what `unpaired` takes back."""
    halves = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape)
