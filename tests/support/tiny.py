"""A tiny random qwen2 model with its own tokenizer, in Hugging Face layout, and helpers to read and change it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

# Qwen2's own template in what matters: a hidden default system message, and a newline after the end token.
CHAT_TEMPLATE = (
    "{%- if messages[0]['role'] == 'system' %}"
    "{{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}"
    "{%- else %}{{- '<|im_start|>system\\nYou are Tiny, the hidden default.<|im_end|>\\n' }}{%- endif %}"
    "{%- for message in messages %}"
    "{%- if not (loop.first and message['role'] == 'system') %}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)

QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

CORPUS = [
    "You are a helpful assistant.",
    "Write a Python function that returns the number of words in a text.",
    "def count_words(text: str) -> int:\n    return len(text.split())\n",
    "SELECT name, salary FROM employees WHERE salary > 10 ORDER BY name;",
    "A queue hands out what came first; a stack hands out what came last.",
]
"""Texts for training the tokenizer."""


def make_tiny_qwen2(
    folder: Path, *, seed: int = 7, tied: bool = True, dtype: str = "bfloat16", hidden: int = 64, layers: int = 2
) -> Path:
    """Write a model folder and return it. Head size 16, two KV heads for four heads, as in the family."""
    import mlx.core as mx
    from mlx.utils import tree_flatten
    from mlx_lm.models.qwen2 import Model, ModelArgs

    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = make_tokenizer(folder)
    config = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "intermediate_size": 2 * hidden,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "vocab_size": vocabulary,
        "max_position_embeddings": 2048,
        "rope_theta": 10000.0,
        "tie_word_embeddings": tied,
        "torch_dtype": dtype,
        "bos_token_id": 0,
        "eos_token_id": 2,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 0], "pad_token_id": 0}))
    mx.random.seed(seed)
    model = Model(ModelArgs.from_dict(config))
    weights = {name: (value * 2).astype(getattr(mx, dtype)) for name, value in tree_flatten(model.parameters())}
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
    return folder


def make_tokenizer(folder: Path) -> int:
    """Write a byte-level BPE tokenizer of Qwen2's kind with a chat template; returns the vocabulary's size."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "clean_up_tokenization_spaces": False,
        "model_max_length": 2048,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))
    return tokenizer.get_vocab_size()


def weights_of(folder: Path) -> dict[str, Any]:
    """Read all weights of a model folder: name to mx.array."""
    import mlx.core as mx

    loaded: dict[str, Any] = {}
    for file in sorted(folder.glob("model*.safetensors")):
        found: Any = mx.load(str(file))
        loaded |= found
    return loaded


def change_weights(folder: Path, changes: dict[str, Any] | None = None, *, form: str = "mlx") -> None:
    """Change weights by name (None removes one) and write them in format `form`: `pt` looks like a file from torch."""
    import mlx.core as mx

    weights = {name: value for name, value in {**weights_of(folder), **(changes or {})}.items() if value is not None}
    mx.eval(weights)
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": form})


def same_weights(one: Path, other: Path) -> bool:
    """Return True if names, types and values of two model folders are equal."""
    import mlx.core as mx

    ours, theirs = weights_of(one), weights_of(other)
    return ours.keys() == theirs.keys() and all(
        ours[name].dtype == theirs[name].dtype and mx.array_equal(ours[name], theirs[name]) for name in ours
    )


def edit_json(file: Path, **changes: Any) -> None:
    """Change settings of a JSON file; None removes one."""
    data = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({name: value for name, value in data.items() if value is not None}))
