"""Settings and result of `logprobs`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec

from mlx_distill.config import Config, doc
from mlx_distill.formatting import format_bytes, format_percent, plural
from mlx_distill.models.config import local_folder
from mlx_distill.models.context import ContextConfig
from mlx_distill.storage import files


class LogprobsConfig(Config, frozen=True):
    """The teacher and the rows whose answer tokens it scores."""

    teacher: Annotated[str, doc("the local teacher: mlx:FOLDER, mlx:OWNER/NAME, or self")]
    model: Annotated[Path, doc("the student: an MLX model folder")]
    data: Annotated[Path, doc("folder of train.jsonl, valid.jsonl and test.jsonl; the result is in its logprobs/")]
    top_k: Annotated[
        int,
        doc(
            "tokens to store at each position, 4 or 6 bytes each; the rest counts together; 0: store nothing, and keep "
            "the teacher in memory during training",
            ge=0,
        ),
    ] = 64
    teacher_context: ContextConfig = ContextConfig()

    @property
    def out(self) -> Path:
        """The folder of the log-probabilities."""
        return self.data / files.LOGPROBS

    def inputs(self) -> list[Path]:
        """Return the files that decide the result. A model of the Hub is not among them."""
        folder = local_folder(self.teacher, self.model)
        rows = [self.data / name for name in (files.TRAIN, files.VALID, files.TEST)]
        tokenizer = [self.model / name for name in files.TOKENIZER_FILES]
        return [*rows, *tokenizer, *self.teacher_context.inputs(), *([folder] if folder else [])]

    def outputs(self) -> list[Path]:
        """Return the folder that later stages read."""
        return [self.out]


class LogprobsResult(msgspec.Struct, frozen=True, kw_only=True):
    """Figures of the stored log-probabilities."""

    folder: Path
    teacher: str
    top_k: int
    n_rows: int
    """Different rows of all splits."""
    n_tokens: int
    """Their answer tokens, end tokens included."""
    n_scored: int
    """Answer tokens that this run scored. The others were stored already."""
    mass: float
    """Mean probability of the stored tokens together."""
    n_bytes: int
    """Size of the folder."""
    tokens_per_second: float
    """Scored answer tokens a second; 0 if there were none."""
    seconds: float

    def summary(self) -> str:
        """Return the main figures in one line."""
        return (
            f"{plural(self.n_tokens, 'answer token')}, top {self.top_k} hold {format_percent(self.mass)} of the "
            f"probability, {format_bytes(self.n_bytes)}"
        )
