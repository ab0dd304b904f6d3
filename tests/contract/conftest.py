"""A server that speaks the Messages API, and collecting from it with waits short enough for a test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mlx_distill.collect.config import CollectConfig, CollectResult
from mlx_distill.collect.run import run
from mlx_distill.events import Event, Report
from tests.support.collecting import KEY, journal_of
from tests.support.messages_server import MessagesServer, answer


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[MessagesServer]:
    with MessagesServer(lambda call: answer(f"Answer to {call.prompt}")).running() as running:
        monkeypatch.setenv("ANTHROPIC_BASE_URL", running.url)
        monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
        yield running


@pytest.fixture
def events() -> list[Event]:
    return []


@pytest.fixture
def teacher() -> str:
    """Return the teacher, unless a test names another one."""
    return "anthropic:claude-sonnet-4-6"


@pytest.fixture
def collect(tmp_path: Path, events: list[Event], teacher: str) -> Callable[..., CollectResult]:
    """Collect the answers to `n` prompts, or to the prompts given."""

    def collect(*prompts: str, n: int = 1, report: Report = events.append, **settings: Any) -> CollectResult:
        file = tmp_path / "prompts.txt"
        file.write_text("\n".join(prompts or [f"Prompt {number}" for number in range(n)]))
        defaults = {"teacher": teacher, "first_wait_seconds": 0.01, "wait_minutes": 0.2}
        config = CollectConfig(prompts=file, out=tmp_path / "out", **{**defaults, **settings})
        return run(config, report)

    return collect


@pytest.fixture
def records(tmp_path: Path) -> Callable[[], list[dict[str, Any]]]:
    """The lines of the journal."""

    def records() -> list[dict[str, Any]]:
        return journal_of(tmp_path / "out")

    return records
