"""Settings and result of `convert`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from mlx_distill.config import Config, doc
from mlx_distill.models.config import check_quantization


class ConvertConfig(Config, frozen=True):
    """Settings of `convert`."""

    source: Annotated[str, doc("a Hub id (owner/name), a model folder, a GGUF file, or `sample`")]
    out: Annotated[Path, doc("the model folder to write")]
    revision: Annotated[str, doc("branch, tag or commit of a Hub repository (default: its main branch)")] = ""
    q_bits: Annotated[int, doc("quantise to 4 or 8 bits (default: do not quantise)")] | None = None
    q_group_size: Annotated[int, doc("number of weights that share a scale if quantised: 32, 64 or 128")] = 64
    force: Annotated[bool, doc("replace the output folder, and ask the Hub for the revision again")] = False

    def check(self) -> None:
        if not self.source.strip():
            raise ValueError("source is empty")
        check_quantization(self.q_bits, self.q_group_size)

    @property
    def result_settings(self) -> dict[str, Any]:
        """The settings that change the result."""
        group_size = self.q_group_size if self.q_bits else None
        return {"revision": self.revision, "q_bits": self.q_bits, "q_group_size": group_size}

    def inputs(self) -> list[Path]:
        """Return the files of a local source. Of a folder, only those that make the model."""
        path = Path(self.source).expanduser()
        if path.is_dir():
            return [*path.glob("*.safetensors"), *path.glob("*.json")]
        return [path] if path.exists() else []

    def outputs(self) -> list[Path]:
        return [self.out]


@dataclass(frozen=True)
class ConvertResult:
    """A model folder that loads and answers."""

    path: Path
    source: str
    kind: str
    """hub, folder, gguf or sample."""
    revision: str
    """The commit of a Hub repository. Empty for files."""
    n_parameters: int
    dtype: str
    """The floating type of the weights in the files."""
    linked: bool
    """True if the source is MLX already: the folder holds links to its files."""
    sample_text: str
    """The first tokens of a greedy answer."""
    already_there: bool
    seconds: float

    def summary(self) -> str:
        return f"{self.n_parameters / 1e6:.0f}M parameters, {self.dtype}"
