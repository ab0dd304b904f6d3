"""The settings of a comparison: of a student with its adapter off and on, or of any two adapters or models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mlx_distill.config import setting, table
from mlx_distill.records import STUDENT_SYSTEM
from mlx_distill.storage.package_data import shipped
from mlx_distill.teachers.money.ledger import COUNT_COST, MAX_COST, PRICES_TABLE, Budget
from mlx_distill.teachers.money.prices import Price

REPORTS = Path("reports")


@dataclass(frozen=True, kw_only=True)
class AnswerConfig:
    """On what is compared, and how the answers are written."""

    data: Path = setting(help="folder with test.jsonl; the teacher's answers to the test prompts are kept here")
    out: Path = setting(help="folder that report.html, report.md and report.json are written to")
    test_prompts: Path = setting(None, help="JSON lines of prompts that all answer; the four shipped ones by default")
    teacher: str = setting(
        "", help="who answers beside the student: anthropic:MODEL, openai:MODEL or recorded:FILE; empty for nobody"
    )
    judge: str = setting(
        "", help="who judges which answer is better, in both orders, at its price: anthropic:MODEL; empty for nobody"
    )
    test_rows: int = setting(8, help="how many questions of held-out rows are answered beside the test prompts")
    system: str = setting(STUDENT_SYSTEM, help="the system message of the test prompts")
    max_tokens: int = setting(512, help="longest answer in tokens")
    temperature: float = setting(0.0, help="0 takes the most probable token, more samples")
    seed: int = setting(0, help="makes sampling and intervals repeatable")
    execute: bool = setting(
        False,
        help="run the Python in the answers, with limits on time, memory and files; no sandbox: what a model wrote "
        "can then do what you can",
    )
    max_cost: float | None = setting(None, help=MAX_COST)
    cost: bool = setting(True, help=COUNT_COST)
    prices: Mapping[str, Price] = table(help=PRICES_TABLE)

    @property
    def budget(self) -> Budget:
        """What asking the teacher may cost."""
        return Budget(self.max_cost, self.prices, self.cost)

    def __post_init__(self) -> None:
        object.__setattr__(self, "test_prompts", self.test_prompts or shipped("test_prompts.jsonl"))
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens is {self.max_tokens}, it must be at least 1")
        if self.test_rows < 0:
            raise ValueError(f"test_rows is {self.test_rows}, it must not be negative")
        if not 0 <= self.temperature <= 10:
            raise ValueError(f"temperature is {self.temperature}, it must be from 0 to 10")
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}, it must not be negative")
        Budget(self.max_cost, self.prices, self.cost)


@dataclass(frozen=True, kw_only=True)
class CompareConfig(AnswerConfig):
    """A student before and after: its adapter off and on."""

    model: Path = setting(help="the student: an MLX model folder")
    adapter: Path = setting(help="folder of the adapter that was trained on it")


@dataclass(frozen=True, kw_only=True)
class PairConfig(AnswerConfig):
    """Two adapters or models."""

    first: Path = setting(help="an adapter folder or an MLX model folder")
    second: Path = setting(help="another, or the same once more: it is then sampled with the next seed")
    model: Path | None = setting(None, help="what adapters among the two belong to, unless they say so themselves")
    out: Path = setting(None, help="folder for the report; reports/FIRST-vs-SECOND by default")

    def __post_init__(self) -> None:
        super().__post_init__()
        folder = REPORTS / f"{self.first.resolve().name}-vs-{self.second.resolve().name}"
        object.__setattr__(self, "out", self.out or folder)
