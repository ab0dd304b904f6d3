"""Batches of a scripted teacher, in virtual time: a submission whose outcome is unknown."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from mlx_distill.errors import TeacherError
from mlx_distill.events import Event, Note
from mlx_distill.records import Answer, Request, Usage
from mlx_distill.teachers import batches
from mlx_distill.teachers.ask import AskResult, ask
from mlx_distill.teachers.base import BatchResult, BatchState, RetryableError
from mlx_distill.teachers.retry import RetryPolicy
from tests.support.teachers import MODEL, Parrot, VirtualTimeLoop, requests_of, shout


class BatchParrot(Parrot):
    """Loses the reply to the first submissions: before the batch exists, or after."""

    name = f"anthropic:{MODEL}"
    billed_model = MODEL
    max_requests, max_bytes = 100, 10_000

    def __init__(self, *, n_never_created: int = 0, n_lost_replies: int = 0, listed: bool = True) -> None:
        super().__init__(shout)
        self._n_never_created, self._n_lost_replies, self._listed = n_never_created, n_lost_replies, listed
        self.created: list[Mapping[str, Request]] = []

    def size_bytes(self, request: Request) -> int:
        return 100

    async def create(self, requests: Mapping[str, Request]) -> BatchState:
        if self._n_never_created:
            self._n_never_created -= 1
            raise RetryableError("dropped")
        self.created.append(requests)
        if self._n_lost_replies:
            self._n_lost_replies -= 1
            raise RetryableError("dropped")
        return await self.retrieve(f"b{len(self.created)}")

    async def retrieve(self, batch_id: str) -> BatchState:
        now, n = datetime.now(UTC), len(self.created[int(batch_id[1:]) - 1])
        return BatchState(batch_id, now, now + timedelta(days=1), n, n, ended=True)

    async def list_since(self, moment: datetime) -> list[BatchState]:
        return [await self.retrieve(f"b{n + 1}") for n in range(len(self.created))] if self._listed else []

    async def results(self, batch_id: str, n_requests: int) -> AsyncGenerator[BatchResult, None]:
        for custom_id in self.created[int(batch_id[1:]) - 1]:
            yield BatchResult(custom_id, Answer("So.", "end_turn", MODEL, Usage(100, 50)))


def ask_in_batches(parrot: BatchParrot, folder: Path, events: list[Event]) -> AskResult:
    return ask(
        parrot,
        requests_of(parrot, "a", "b", "c"),
        folder / "teacher_data.jsonl",
        concurrency=3,
        batch_mode="submit",
        report=events.append,
        policy=RetryPolicy(limit_seconds=600.0),
        loop_factory=VirtualTimeLoop,
    )


@pytest.mark.parametrize(("never_created", "lost", "n_batches"), [(1, 0, 1), (0, 1, 1), (2, 1, 1)])
def test_unconfirmed_batch_is_neither_lost_nor_doubled(
    tmp_path: Path, never_created: int, lost: int, n_batches: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "LISTED_AFTER", timedelta())
    events: list[Event] = []
    parrot = BatchParrot(n_never_created=never_created, n_lost_replies=lost)
    result = ask_in_batches(parrot, tmp_path, events)
    assert (result.n_new, len(parrot.created), result.stopped_by) == (3, n_batches, None)
    assert result.total_usage.total_usd == pytest.approx(3 * (100 * 3 + 50 * 15) / 2e6)
    found = [event.text for event in events if isinstance(event, Note) and "was not created" in event.text]
    assert len(found) == never_created
    assert not (tmp_path / "batches").exists()


def test_batches_that_are_never_created_stop_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "LISTED_AFTER", timedelta())
    result = ask_in_batches(BatchParrot(n_never_created=10**6), tmp_path, [])
    assert isinstance(result.stopped_by, TeacherError)
    assert result.total_usage.total_usd == 0.0
