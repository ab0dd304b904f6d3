"""Settings of `run`, and its result."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, get_args

from mlx_distill.config import Config, doc
from mlx_distill.storage.files import PROJECT_FILE

StageName = Literal["convert", "collect", "prepare", "logprobs", "train", "compare", "fuse"]
RUN_ORDER: tuple[StageName, ...] = get_args(StageName)
"""`convert` comes first: the teacher `self` is the student, and a student that cannot be had costs no answers.

`logprobs` runs only for the objective "kd".
"""


class RunConfig(Config, frozen=True):
    """Which stages `run` repeats, and with which overrides."""

    file: Annotated[Path, doc("the project file")] = Path(PROJECT_FILE)
    first: Annotated[Literal["", StageName], doc("repeat this stage and all stages after it")] = ""
    force: Annotated[bool, doc("repeat every stage; existing answers are not requested again")] = False
    overrides: Annotated[tuple[str, ...], doc("SECTION.KEY=VALUE: replaces a setting of the file")] = ()
    full: Annotated[bool, doc("train without a time budget")] = False


@dataclass(frozen=True)
class StageOutcome:
    """Outcome of one stage of a run."""

    stage: str
    reason: str
    """Why the stage ran; empty if it was up to date."""
    seconds: float
    """Duration of the stage, in this run or in the earlier run that made the results."""
    summary: str
    """Main figures, in one line."""
    outputs: tuple[str, ...]

    @property
    def skipped(self) -> bool:
        return not self.reason


@dataclass(frozen=True)
class RunResult:
    """Outcomes of all stages of a project."""

    name: str
    report: Path
    """Folder of the report."""
    seconds: float
    stages: tuple[StageOutcome, ...]
