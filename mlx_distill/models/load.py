"""Loading of MLX model folders: the weights in the compute type, the tokenizer, and the split into body and head.

No code from a model folder ever runs. Files that ask for it (`model_file`, `auto_map`) are refused.
"""

from __future__ import annotations

import contextlib
import tempfile
from codecs import BOM_UTF8
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm import utils as mlx_lm_utils
from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlx_distill import device
from mlx_distill.errors import InputError, MissingError
from mlx_distill.formatting import first_line
from mlx_distill.models.safetensors_io import WEIGHTS, read_headers
from mlx_distill.storage.files import MODEL_CONFIG
from mlx_distill.storage.jsonl import read_json, refuse_pipes

Head = Callable[[mx.array], mx.array]

FILE_ERRORS = (
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    ImportError,
    RuntimeError,
)
"""Errors that broken or hostile model files cause in mlx-lm, RecursionError (nested JSON) included."""
MEMORY_ERRORS = ("[METAL]", "[metal::", "[malloc]")
"""First words of MLX's errors about memory and the GPU. The file is not to blame for these."""
_CONVERT = "Make it with `mlx-distill convert SOURCE --out FOLDER`, or name another folder."


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
        """The number of parameters without an adapter's. Quantised weights count unpacked."""
        return int(mlx_lm_utils.get_total_parameters(self.model))

    def hidden(self, tokens: mx.array, cache: Any = None) -> mx.array:
        """Return the final, normalised hidden states: (B, T) tokens to (B, T, D).

        `cache` is mlx-lm's prompt cache of the tokens before, if there are any.
        """
        states: mx.array = self.model.model(tokens) if cache is None else self.model.model(tokens, cache=cache)
        return states

    @property
    def head(self) -> Head:
        """The function from hidden states (..., D) to logits (..., V). Tied models use the embedding itself."""
        if getattr(self.model.args, "tie_word_embeddings", False):
            return self.model.model.embed_tokens.as_linear  # type: ignore[no-any-return] # a module finds its parts at run time
        return self.model.lm_head  # type: ignore[no-any-return] # the same


def load_student(path: Path, *, dtype: mx.Dtype | None = None, plain_head: bool = True) -> Student:
    """Load a model folder with all floating weights cast to `dtype` (default: the device's type for inference).

    Without `plain_head`, any architecture of mlx-lm will do: only text is wanted.

    Raises MissingError if there is no model, InputError if its files are broken or not supported. MLX's errors about
    memory pass through.
    """
    model, config = load_weights(path)
    dtype = dtype or device.prepare().dtype_for(read_headers(path).dtype)
    with file_errors(f"{path}: not a model that can be loaded", _CONVERT):
        model.set_dtype(dtype)
        mx.eval(model.parameters())
    student = Student(path, model, load_tokenizer(path), config, dtype)
    if plain_head:
        _check_supported_architecture(student)
    _check_token_ids(student)
    return student


def load_weights(path: Path) -> tuple[nn.Module, dict[str, Any]]:
    """Build the model of a folder with lazy weights in the files' own types. Returns it with its config."""
    config = read_config(path)
    if not any(path.glob("model*.safetensors")):
        raise MissingError(f"{path}: no weights (model*.safetensors) in this folder.", _CONVERT)
    n_tensors = read_headers(path).n_tensors
    n_layers = config.get("num_hidden_layers")
    if isinstance(n_layers, int) and n_layers > n_tensors:  # before mlx-lm builds that many layers
        raise InputError(f"{path}: config.json names {n_layers} layers, the files hold {n_tensors} tensors.", _CONVERT)
    with file_errors(f"{path}: not a model that can be loaded", _CONVERT), without_bom(path) as folder:
        model, config = mlx_lm_utils.load_model(folder, lazy=True, trust_remote_code=False)
    return model, config


def weight_bytes(path: Path, itemsize: int) -> int:
    """Return the memory that a folder's weights take with `itemsize` bytes for a float. Reads shapes only."""
    weights: list[Any] = []
    refuse_pipes(path, _CONVERT)
    with contextlib.suppress(RuntimeError):  # `load_student` explains a broken file
        weights = [mx.load(str(file)) for file in path.glob(WEIGHTS)]
    return sum(
        value.size * (itemsize if mx.issubdtype(value.dtype, mx.floating) else value.dtype.size)
        for part in weights
        for value in part.values()
    )


@contextlib.contextmanager
def without_bom(folder: Path) -> Iterator[Path]:
    """Yield the folder if no JSON file in it begins with a byte order mark, which mlx-lm cannot read.

    Otherwise yield a temporary folder of links, with copies of these files without the mark.
    """
    with_bom = [file for file in folder.glob("*.json") if _begins_with_bom(file)]
    if not with_bom:
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="mlx-distill-") as name:
        for file in folder.iterdir():
            copy = Path(name, file.name)
            if file in with_bom:
                copy.write_bytes(file.read_bytes().removeprefix(BOM_UTF8))
            else:
                copy.symlink_to(file.resolve())
        yield Path(name)


def _begins_with_bom(file: Path) -> bool:
    with file.open("rb") as opened:
        return opened.read(3) == BOM_UTF8


@contextlib.contextmanager
def file_errors(problem: str, next_step: str) -> Iterator[None]:
    """Raise InputError for what broken files cause in mlx-lm; let errors about memory pass."""
    try:
        yield
    except FILE_ERRORS as error:
        if str(error).startswith(MEMORY_ERRORS):
            raise
        details = str(error).strip().splitlines()[1:11]
        raise InputError(f"{problem}: {first_line(error).rstrip(':')}", next_step, details) from error


def load_tokenizer(path: Path) -> TokenizerWrapper:
    """Load the tokenizer of a model folder, without its weights. InputError if it is broken or cannot render chats."""
    read_config(path)
    try:
        with without_bom(path) as folder:
            tokenizer = mlx_lm_utils.load_tokenizer(
                folder,
                tokenizer_config_extra={"trust_remote_code": False},
                eos_token_ids=mlx_lm_utils.load_config(folder).get("eos_token_id"),  # the generation config's is first
            )
        tokenizer.decode(tokenizer.encode("Hello", add_special_tokens=False))  # some broken settings fail only here
    except Exception as error:  # the tokenizers library raises plain Exception for broken files
        raise InputError(f"{path}: its tokenizer cannot be loaded: {first_line(error)}", _CONVERT) from error
    if not tokenizer.has_chat_template:
        raise InputError(
            f"{path}: the tokenizer has no chat template.", "Choose an instruct model: a base model cannot chat."
        )
    return tokenizer


def read_config(path: Path) -> dict[str, Any]:
    """Read `config.json` of a model folder. Refuses folders with a config file that asks to run code."""
    if not path.is_dir():
        raise MissingError(f"{path}: there is no model folder here.", _CONVERT)
    file = path / MODEL_CONFIG
    if not file.is_file():
        raise MissingError(f"{file} is missing, so {path} is not a model folder.", _CONVERT)
    refuse_pipes(path, _CONVERT)
    configs = {found.name: read_json(found, _CONVERT) for found in sorted(path.glob("*config*.json"))}
    for name, data in configs.items():
        for setting in ("model_file", "auto_map"):
            if isinstance(data, dict) and data.get(setting):
                raise InputError(
                    f"{path / name}: {setting!r} asks to run code from the model folder. "
                    "mlx-distill never runs such code.",
                    "Choose a model that mlx-lm supports without code of its own.",
                )
    config = configs[MODEL_CONFIG]
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise InputError(f'{file} names no "model_type".', _CONVERT)
    return config


def _check_supported_architecture(student: Student) -> None:
    """Check that the head applied to the body's output is the whole model. Scores and training rely on it."""
    probe = mx.array([[0, 1]])
    try:
        same = bool(mx.array_equal(student.head(student.hidden(probe)), student.model(probe), equal_nan=True))
    except (AttributeError, ValueError, TypeError):
        same = False
    if not same:
        raise InputError(
            f"{student.path}: the architecture {student.config['model_type']!r} does not end in a plain head, "
            "which mlx-distill needs.",
            "Use a student of the llama or qwen2 family.",
        )


def _check_token_ids(student: Student) -> None:
    """Check that the model has every id that text can become. MLX reads beyond the embedding for a larger one.

    Some models have one control token too many, for padding or images, right behind the embedding.
    """
    width = student.model(mx.array([[0]])).shape[-1]
    next_token = student.tokenizer.added_tokens_decoder.get(width)
    largest = max(student.tokenizer.get_vocab().values())
    if largest >= width + bool(next_token and next_token.special):
        raise InputError(f"{student.path}: the tokenizer has ids up to {largest}, the model {width} of them.", _CONVERT)
