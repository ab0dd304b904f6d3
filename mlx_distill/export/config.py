"""Settings and results of `export` and `push`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from mlx_distill.config import Config, doc

Kind = Literal["F16", "BF16", "F32", "Q8_0"]
_OLLAMA_NAME = re.compile(r"(?:[a-z0-9][a-z0-9._-]*/)?[a-z0-9][a-z0-9._-]{0,79}(?::[a-z0-9._-]+)?")


class GgufConfig(Config, frozen=True):
    """Settings of `export gguf`."""

    model: Annotated[Path, doc("the fused model folder")]
    out: Annotated[Path, doc("the file to write (default: MODEL-KIND.gguf)")]
    kind: Annotated[Kind, doc("type of the weights")] = "F16"
    force: Annotated[bool, doc("replace the file if it exists")] = False


@dataclass(frozen=True)
class GgufResult:
    """A GGUF file, written and read back."""

    path: Path
    kind: str
    n_tensors: int
    size_bytes: int
    seconds: float


class OllamaConfig(Config, frozen=True):
    """Settings of `export ollama`."""

    model: Annotated[Path, doc("the fused model folder")]
    out: Annotated[Path, doc("folder for the GGUF file and the Modelfile")]
    name: Annotated[str, doc("the model's name in Ollama, in lower case")]
    system: Annotated[str, doc("the system message for conversations without one")] = ""
    kind: Annotated[Kind, doc("type of the weights in the GGUF file")] = "F16"
    force: Annotated[bool, doc("replace the output folder if it exists")] = False

    def check(self) -> None:
        if not _OLLAMA_NAME.fullmatch(self.name):
            raise ValueError(f"name {self.name!r} is not a name for Ollama: lower-case letters, digits, '.', '_', '-'")
        if '"""' in self.system or self.system.endswith('"'):
            raise ValueError('system holds """ or ends in a quotation mark, which a Modelfile cannot hold')


@dataclass(frozen=True)
class OllamaResult:
    """The written files, and if Ollama has the model."""

    name: str
    gguf: Path
    modelfile: Path
    size_bytes: int
    command: str
    """Creates the model in Ollama."""
    created: bool
    """True if the command ran."""


class PushConfig(Config, frozen=True):
    """Settings of `push`."""

    model: Annotated[Path, doc("the fused model folder")]
    repo: Annotated[str, doc("the repository: OWNER/NAME, or NAME under your own account")]
    private: Annotated[bool, doc("only you can see it")] = True
    force: Annotated[bool, doc("replace files that the repository holds already")] = False


@dataclass(frozen=True)
class PushResult:
    """An upload."""

    repo: str
    """OWNER/NAME."""
    url: str
    private: bool
    n_files: int
    size_bytes: int
