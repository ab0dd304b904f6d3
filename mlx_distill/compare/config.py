"""The settings of a comparison: of a student with its adapter off and on, or of any two adapters or models."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar

import msgspec
from msgspec.structs import force_setattr

from mlx_distill.config import Config, doc
from mlx_distill.records import STUDENT_SYSTEM
from mlx_distill.storage.package_data import shipped
from mlx_distill.teachers.pricing import MAX_COST_HELP, PRICES_HELP, TRACK_COSTS_HELP, Budget, Price

REPORTS = Path("reports")


class AnswerConfig(Config, frozen=True, kw_only=True):
    """On what is compared, and how the answers are written."""

    data: Annotated[Path, doc("folder with test.jsonl; the teacher's answers to the test prompts are kept here")]
    out: Annotated[Path, doc("folder that report.html, report.md and report.json are written to")]
    test_prompts: Annotated[Path, doc("JSON lines of prompts that all answer; the four shipped ones by default")] = (
        Path()
    )
    teacher: Annotated[
        str, doc("who answers beside the student: anthropic:MODEL, openai:MODEL or recorded:FILE; empty for nobody")
    ] = ""
    judge: Annotated[
        str, doc("who judges which answer is better, in both orders, at its price: anthropic:MODEL; empty for nobody")
    ] = ""
    test_rows: Annotated[int, doc("how many questions of held-out rows are answered beside the test prompts", ge=0)] = 8
    system: Annotated[str, doc("the system message of the test prompts")] = STUDENT_SYSTEM
    max_tokens: Annotated[int, doc("longest answer in tokens", ge=1)] = 512
    temperature: Annotated[float, doc("0 takes the most probable token, more samples", ge=0, le=10)] = 0.0
    seed: Annotated[int, doc("makes sampling and intervals repeatable", ge=0)] = 0
    execute: Annotated[
        bool,
        doc(
            "run the Python in the answers, with limits on time, memory and files; no sandbox: what a model wrote "
            "can then do what you can"
        ),
    ] = False
    max_cost: Annotated[float, doc(MAX_COST_HELP, ge=0)] | None = None
    track_costs: Annotated[bool, doc(TRACK_COSTS_HELP)] = True
    prices: Annotated[Mapping[str, Price], doc(PRICES_HELP)] = msgspec.field(default_factory=dict)

    renamed: ClassVar[Mapping[str, str]] = {"cost": "track_costs"}

    @property
    def budget(self) -> Budget:
        """What asking the teacher may cost."""
        return Budget(self.max_cost, self.prices, self.track_costs)

    def __post_init__(self) -> None:
        if self.test_prompts == Path():
            force_setattr(self, "test_prompts", shipped("test_prompts.jsonl"))
        super().__post_init__()

    def check(self) -> None:
        Budget(self.max_cost, self.prices, self.track_costs)


class CompareConfig(AnswerConfig, frozen=True, kw_only=True):
    """A student before and after: its adapter off and on."""

    model: Annotated[Path, doc("the student: an MLX model folder")]
    adapter: Annotated[Path, doc("folder of the adapter that was trained on it")]


class PairConfig(AnswerConfig, frozen=True, kw_only=True):
    """Two adapters or models."""

    first: Annotated[Path, doc("an adapter folder or an MLX model folder")]
    second: Annotated[Path, doc("another, or the same once more: it is then sampled with the next seed")]
    model: Annotated[Path, doc("what adapters among the two belong to, unless they say so themselves")] | None = None
    out: Annotated[Path, doc("folder for the report; reports/FIRST-vs-SECOND by default")] = Path()

    def __post_init__(self) -> None:
        if self.out == Path():
            folder = REPORTS / f"{self.first.resolve().name}-vs-{self.second.resolve().name}"
            force_setattr(self, "out", folder)
        super().__post_init__()
