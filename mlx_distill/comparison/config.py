"""The settings of a comparison."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mlx_distill.records import STUDENT_SYSTEM
from mlx_distill.settings import setting
from mlx_distill.storage.shipped import shipped


@dataclass(frozen=True)
class CompareConfig:
    """What is compared with what, and how the answers are written."""

    model: Path = setting(help="the student: an MLX model folder")
    adapter: Path = setting(help="folder of the adapter that was trained on it")
    data: Path = setting(help="folder with test.jsonl; the teacher's answers to the test prompts are kept here")
    out: Path = setting(help="folder that report.html, report.md and report.json are written to")
    test_prompts: Path = setting(None, help="JSON lines of prompts that all answer; the four shipped ones by default")
    teacher: str = setting(
        "", help="who answers beside the student: anthropic:MODEL, openai:MODEL or recorded:FILE; empty for nobody"
    )
    system: str = setting(STUDENT_SYSTEM, help="the system message of the test prompts")
    max_tokens: int = setting(512, help="longest answer in tokens")
    temperature: float = setting(0.0, help="0 takes the most probable token, more samples")
    seed: int = setting(0, help="makes sampling and intervals repeatable")

    def __post_init__(self) -> None:
        object.__setattr__(self, "test_prompts", self.test_prompts or shipped("test_prompts.jsonl"))
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens is {self.max_tokens}, it must be at least 1")
        if not 0 <= self.temperature <= 10:
            raise ValueError(f"temperature is {self.temperature}, it must be from 0 to 10")
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}, it must not be negative")
