"""A scripted teacher, and an event loop with virtual time: waits take no real time."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from mlx_distill.events import Report, ignore
from mlx_distill.records import Answer, Prompt, Request, build_messages
from mlx_distill.teachers.ask import AskResult, ask
from mlx_distill.teachers.base import Reply
from mlx_distill.teachers.retry import RetryPolicy

MODEL = "claude-sonnet-4-6"
Script = Callable[[str, int], Answer]


class _VirtualSelector(selectors.DefaultSelector):
    """Does not wait: moves the clock forward instead."""

    now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(0)
        if not ready and timeout:
            self.now += timeout
        return ready if ready or timeout is not None else super().select(None)


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to the next timer."""

    def __init__(self) -> None:
        self._virtual = _VirtualSelector()
        super().__init__(self._virtual)

    def time(self) -> float:
        return self._virtual.now


class Parrot:
    """A teacher that answers the nth request for a prompt as its script says."""

    name = "parrot"
    terms = ""
    billed_model = ""
    default_concurrency = 64
    max_retry_tokens = 0

    def __init__(self, script: Script, seconds: float = 0.0) -> None:
        self._script, self._seconds = script, seconds
        self.asked: list[str] = []
        self.entered = 0
        self.times: list[float] = []
        """When the requests arrived, by the event loop's clock."""

    async def __aenter__(self) -> Self:
        self.entered += 1
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.entered -= 1

    async def complete(self, request: Request) -> Reply:
        text = request.messages[-1].content
        self.asked.append(text)
        self.times.append(asyncio.get_running_loop().time())
        await asyncio.sleep(self._seconds)
        return Reply(self._script(text, self.asked.count(text)))


def shout(text: str, _nth: int) -> Answer:
    """Answer in capitals."""
    return Answer(text.upper(), "end_turn", "parrot-1", cost_usd=0.5)


def requests_of(teacher: Parrot, *texts: str, max_tokens: int = 10) -> list[tuple[Prompt, Request]]:
    return [(Prompt(text, text, text), Request(teacher.name, build_messages(text), max_tokens)) for text in texts]


def ask_parrot(
    teacher: Parrot, folder: Path, *texts: str, report: Report = ignore, policy: RetryPolicy | None = None
) -> AskResult:
    """Ask in virtual time; raise what stops the run."""
    result = ask(
        teacher,
        requests_of(teacher, *texts),
        folder / "teacher_data.jsonl",
        concurrency=3,
        report=report,
        policy=policy or RetryPolicy(limit_seconds=5.0, first_wait_seconds=0.01),
        loop_factory=VirtualTimeLoop,
    )
    result.raise_if_stopped()
    return result
