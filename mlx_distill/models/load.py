"""A student in memory: weights in the machine's compute type, tokenizer, and the seam between body and head."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm import utils as mlx_lm_utils
from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlx_distill import device
from mlx_distill.errors import InputError, MissingError

Head = Callable[[mx.array], mx.array]


@dataclass
class Student:
    """A loaded model and what is needed to use it."""

    path: Path
    model: nn.Module
    tokenizer: TokenizerWrapper
    config: dict[str, Any]
    dtype: mx.Dtype

    @property
    def quantized(self) -> bool:
        return "quantization" in self.config

    @property
    def n_parameters(self) -> int:
        """The student's own parameters, an adapter's left out, quantised ones at their unpacked count."""
        return int(mlx_lm_utils.get_total_parameters(self.model))

    def hidden(self, tokens: mx.array) -> mx.array:
        """Final hidden states, normalised, ready for the head: (B, T) tokens to (B, T, D)."""
        states: mx.array = self.model.model(tokens)
        return states

    @property
    def head(self) -> Head:
        """Hidden states (..., D) to logits (..., V); the embedding itself where the two are tied."""
        if getattr(self.model.args, "tie_word_embeddings", False):
            return self.model.model.embed_tokens.as_linear  # type: ignore[no-any-return]
        return self.model.lm_head  # type: ignore[no-any-return]


def load_student(path: Path, *, dtype: mx.Dtype | None = None) -> Student:
    """Load an MLX model folder, floating weights cast to `dtype` (the machine's own by default).

    Raises MissingError where there is no model, InputError where the files do not make one.
    """
    config = read_config(path)
    dtype = dtype or device.prepare().dtype
    try:
        model, config = mlx_lm_utils.load_model(path, lazy=True)
        model.set_dtype(dtype)
        mx.eval(model.parameters())
    except FileNotFoundError as error:
        raise MissingError(f"{path}: no weights (model*.safetensors) in this folder.", _CONVERT) from error
    except (ValueError, KeyError, TypeError, RuntimeError, AttributeError) as error:
        raise InputError(f"{path}: not a model that can be loaded: {_first_line(error)}", _CONVERT) from error
    student = Student(path, model, load_tokenizer(path), config, dtype)
    _check_seam(student)
    return student


def load_tokenizer(path: Path) -> TokenizerWrapper:
    """The tokenizer of a model folder, without its weights; InputError where it cannot render a chat."""
    config = read_config(path)
    try:
        tokenizer = mlx_lm_utils.load_tokenizer(path, eos_token_ids=_end_ids(path, config))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: its tokenizer cannot be loaded: {_first_line(error)}", _CONVERT) from error
    if not tokenizer.has_chat_template:
        raise InputError(
            f"{path}: the tokenizer has no chat template.", "Choose an instruct model: a base model cannot chat."
        )
    return tokenizer


def read_config(path: Path) -> dict[str, Any]:
    """`config.json` of a model folder."""
    if not path.is_dir():
        raise MissingError(f"{path}: there is no model folder here.", _CONVERT)
    file = path / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise MissingError(f"{file} is missing, so {path} is not a model folder.", _CONVERT) from error
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: not valid JSON: {_first_line(error)}", _CONVERT) from error
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise InputError(f'{file} names no "model_type".', _CONVERT)
    if config.get("model_file"):
        raise InputError(f"{file} asks for code of its own ({config['model_file']}), which is never run.", _CONVERT)
    return config


_CONVERT = "Make it with `mlx-distill convert SOURCE --out FOLDER`, or name another folder."


def _end_ids(path: Path, config: dict[str, Any]) -> list[int] | None:
    """Ids that end a turn: the generation config's where there is one, as mlx-lm reads them."""
    ids = config.get("eos_token_id")
    with contextlib.suppress(OSError, ValueError, AttributeError):
        ids = json.loads((path / "generation_config.json").read_text(encoding="utf-8")).get("eos_token_id") or ids
    return [ids] if isinstance(ids, int) else ids


def _check_seam(student: Student) -> None:
    """The body and the head must make the model: else scores and training would be of something else."""
    probe = mx.array([[0, 1]])
    try:
        same = bool(mx.array_equal(student.head(student.hidden(probe)), student.model(probe), equal_nan=True))
    except (AttributeError, ValueError, TypeError):
        same = False
    if not same:
        kind = student.config["model_type"]
        raise InputError(
            f"{student.path}: the architecture {kind!r} does not end in a plain head, which this version needs.",
            "Use a student of the llama or qwen2 family.",
        )


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return (text.splitlines()[0] if text else type(error).__name__)[:300]
