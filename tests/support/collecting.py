"""Helpers for tests of collecting: a key, scripts for the server, and the written files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from mlx_distill.collect.config import CollectResult
from mlx_distill.events import Event, Note, Warning
from mlx_distill.teachers.pricing import Budget, UsageReport
from mlx_distill.teachers.store import AnswerStore
from tests.conftest import Finished
from tests.support.messages_server import Call, Reply


class Collect(Protocol):
    """Collects the answers to the prompts given, or to `n` prompts."""

    def __call__(self, *prompts: str, n: int = 1, **settings: Any) -> CollectResult: ...


class RunCli(Protocol):
    """Runs `mlx-distill ARGUMENTS` in a process of its own."""

    def __call__(
        self, *arguments: str | Path, cwd: Path | None = None, env: dict[str, str] | None = None, text: str = ""
    ) -> Finished: ...


Records = Callable[[], list[dict[str, Any]]]
"""Returns the lines of the journal."""

KEY = "sk-ant-test-0123456789-secret"
REAL_USD = (100 * 3 + 50 * 15) / 1e6
"""Cost of each answer of the server: 100 tokens in, 50 out."""


def journal_of(out: Path) -> list[dict[str, Any]]:
    lines = (out / "teacher_data.jsonl").read_bytes().split(b"\n")
    return [json.loads(line) for line in lines[:-1]]


def usage_of(out: Path) -> UsageReport:
    """Return what the project has cost, according to its files."""
    return AnswerStore(out / "teacher_data.jsonl", Budget()).read().report()


def scripted(*replies: Reply) -> Callable[[Call], Reply]:
    """The nth asking of a prompt gets the nth reply, later ones the last."""
    return lambda call: replies[min(call.nth, len(replies)) - 1]


def cautions(events: list[Event]) -> list[str]:
    return [event.text for event in events if isinstance(event, Warning)]


def notes(events: list[Event]) -> list[str]:
    return [event.text for event in events if isinstance(event, Note)]
