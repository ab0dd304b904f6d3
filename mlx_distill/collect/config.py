"""Settings and result of `collect`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, ClassVar

import msgspec

from mlx_distill.config import Config, doc
from mlx_distill.formatting import format_usd
from mlx_distill.models.config import is_local
from mlx_distill.models.context import ContextConfig
from mlx_distill.storage import files
from mlx_distill.teachers.base import DEFAULT_CONCURRENCY
from mlx_distill.teachers.pending import RETRIES, BatchMode, FailedPrompt, Retry
from mlx_distill.teachers.pricing import MAX_COST_HELP, PRICES_HELP, TRACK_COSTS_HELP, Budget, Price, UsageReport
from mlx_distill.teachers.recorded import recording_files
from mlx_distill.teachers.registry import teacher_usage
from mlx_distill.teachers.retry import RetryPolicy

TEMPERATURE = 0.7
"""Most model cards advise about this much: less repeats itself, more takes unlikely tokens."""


class AskConfig(Config, frozen=True, kw_only=True):
    """Settings of the stages that ask a teacher for new answers."""

    teacher: Annotated[str, doc(f"who answers: {teacher_usage()}")]
    prompts: Annotated[Path, doc("prompts: JSON lines, or text with one prompt a line")] = Path("data/prompts.jsonl")
    max_tokens: Annotated[int, doc("maximum tokens of an answer, thinking included", ge=1)] = 4096
    concurrency: (
        Annotated[
            int,
            doc(
                f"maximum requests at once, fewer after a rate limit; the batch size of a local teacher  "
                f"[default: {DEFAULT_CONCURRENCY}; local: 16, on Metal 32]",
                ge=1,
                le=1000,
            ),
        ]
        | None
    ) = None
    model: Annotated[Path, doc("the student's MLX folder, which the teacher `self` needs")] | None = None
    wait_minutes: Annotated[
        float, doc("how long to retry a teacher that is overloaded or out of reach", ge=0, le=1440)
    ] = 10.0
    first_wait_seconds: Annotated[float, doc("the wait after a first failure; it doubles each time", gt=0, le=60)] = 1.0
    max_cost: Annotated[float, doc(MAX_COST_HELP, ge=0)] | None = None
    track_costs: Annotated[bool, doc(TRACK_COSTS_HELP)] = True
    prices: Annotated[Mapping[str, Price], doc(PRICES_HELP)] = msgspec.field(default_factory=dict)

    renamed: ClassVar[Mapping[str, str]] = {"cost": "track_costs"}

    def check(self) -> None:
        """Reject a budget that contradicts itself."""
        _ = self.budget

    @property
    def budget(self) -> Budget:
        """The limit on costs."""
        return Budget(self.max_cost, self.prices, self.track_costs)

    @property
    def policy(self) -> RetryPolicy:
        """How long to retry."""
        return RetryPolicy(60.0 * self.wait_minutes, self.first_wait_seconds)


class CollectConfig(AskConfig, frozen=True, kw_only=True):
    """Settings of `collect`."""

    out: Annotated[Path, doc("folder of the answers (teacher_data.jsonl)")]
    teacher_context: ContextConfig = ContextConfig()
    samples: Annotated[int, doc("answers to each prompt; each becomes a row of the same family", ge=1, le=64)] = 1
    temperature: Annotated[
        float, doc("of a local teacher (mlx:, self): 0 always takes the most probable token", ge=0, le=10)
    ] = TEMPERATURE
    seed: Annotated[int, doc("random seed of a local teacher's answers", ge=0)] = 0
    batch: Annotated[bool, doc("ask in batches, at half price and answered within a day, and wait for them")] = False
    wait: Annotated[bool, doc("wait for the pending batches and import them; ask nothing new")] = False
    limit: Annotated[int, doc("ask only the first LIMIT prompts, to try it out", ge=1)] | None = None
    retry: Annotated[tuple[Retry, ...], doc(f"ask again if the answer ended with: {', '.join(RETRIES)}")] = ()

    removed: ClassVar[Mapping[str, str]] = {"system": "it is in [teacher_context] now"}

    def check(self) -> None:
        super().check()
        if self.samples > 1 and (self.teacher.startswith("recorded:") or self._is_greedy):
            raise ValueError(f"samples: {self.teacher} gives the same answer each time; set a temperature above 0")

    @property
    def _is_greedy(self) -> bool:
        return is_local(self.teacher) and not self.temperature

    @property
    def batch_mode(self) -> BatchMode:
        """The mode of batches: import, wait or submit."""
        return "submit" if self.batch else "wait" if self.wait else "import"

    def inputs(self) -> list[Path]:
        """The files that the answers depend on."""
        return [self.prompts, *self.teacher_context.inputs(), *recording_files(self.teacher)]

    def outputs(self) -> list[Path]:
        """The files that the stage writes."""
        return [self.out / files.TEACHER_DATA, self.out / files.PROMPT_INDEX]


@dataclass(frozen=True)
class CollectResult:
    """The answers of a prompt set. Costs and times are of this run; the other figures are of all prompts of the set."""

    path: Path
    """The journal."""
    teacher: str
    models: tuple[str, ...]
    """The models that answered, as the provider names them."""
    n_prompts: int
    n_answered: int
    n_new: int
    stop_reasons: Mapping[str, int]
    """Number of answers by their end; `empty` for complete answers without text."""
    failed: tuple[FailedPrompt, ...]
    n_in_batches: int
    """Prompts in pending batches, whose answers come later."""
    seconds: float
    cost_usd: float
    total_cost_usd: float
    """Cost of all answers of the set, at the time of their request."""
    usage: UsageReport
    """Usage of this run."""
    total_usage: UsageReport
    """Usage of the whole project."""

    def after(self, earlier: CollectResult) -> CollectResult:
        """Return this run and an earlier one as one result."""
        return replace(
            self,
            n_new=earlier.n_new + self.n_new,
            failed=(*earlier.failed, *self.failed),
            seconds=earlier.seconds + self.seconds,
            cost_usd=earlier.cost_usd + self.cost_usd,
            usage=earlier.usage.plus(self.usage),
        )

    def summary(self) -> str:
        """Return the main figures in one line."""
        pending = f", {self.n_in_batches:,} in batches" if self.n_in_batches else ""
        return f"{self.n_answered:,} of {self.n_prompts:,} answered{pending}, {format_usd(self.cost_usd)}"
