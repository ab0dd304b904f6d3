"""Settings that several stages share: of `chat` and `serve`, the names of local teachers, the bits of a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from mlx_distill.config import Config, doc

DEFAULT_CONTEXT_TOKENS = 4096
MAX_TEMPERATURE = 10
SELF, MLX = "self", "mlx:"
"""Names of local teachers: the student itself, and a model folder or Hub id after `mlx:`."""


def is_local(teacher: str) -> bool:
    """Return whether a teacher's name means a model on this machine."""
    return teacher == SELF or teacher.startswith(MLX)


def local_folder(teacher: str, student: Path) -> Path | None:
    """Return the model folder of a local teacher; None for other teachers, and for models of the Hub."""
    if teacher == SELF:
        return student
    name = teacher.removeprefix(MLX).strip()
    folder = Path(name).expanduser()
    return folder if teacher.startswith(MLX) and name and folder.is_dir() else None


class ChatConfig(Config, frozen=True):
    """The model, and how it answers."""

    model: Annotated[Path, doc("an MLX model folder")]
    adapter: Annotated[Path, doc("an adapter folder for this model")] | None = None
    system: Annotated[str, doc("the system message")] = ""
    max_tokens: Annotated[int, doc("maximum number of tokens of an answer", ge=1)] = 1024
    context_tokens: Annotated[
        int,
        doc(
            "maximum number of tokens of conversation and answer together; "
            f"0 means {DEFAULT_CONTEXT_TOKENS}, or the model's maximum if that is less",
            ge=0,
        ),
    ] = 0
    temperature: Annotated[
        float, doc("0 always takes the most probable token; higher values vary more", ge=0, le=MAX_TEMPERATURE)
    ] = 0.0
    seed: Annotated[int, doc("random seed of the answers if the temperature is above 0", ge=0)] = 0

    def check(self) -> None:
        if 0 < self.context_tokens <= self.max_tokens:
            raise ValueError(
                f"context_tokens ({self.context_tokens}) must be more than max_tokens ({self.max_tokens}): "
                "the context holds the conversation and the answer"
            )


def check_quantization(bits: int | None, group_size: int) -> None:
    """Raise ValueError for settings that mlx does not have. `bits` is None for a model that is not quantised."""
    if bits not in (None, 4, 8):
        raise ValueError(f"q_bits is {bits}, not 4 or 8")
    if group_size not in (32, 64, 128):
        raise ValueError(f"q_group_size is {group_size}, not 32, 64 or 128")
