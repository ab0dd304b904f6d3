"""Collecting in batches, through the real SDK: what a batch becomes, its sizes, and the cap."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from mlx_distill.errors import BudgetError, TeacherError
from mlx_distill.events import Event
from mlx_distill.models.context import ContextConfig
from mlx_distill.records import Request, build_messages
from mlx_distill.teachers import anthropic
from mlx_distill.teachers.anthropic import AnthropicTeacher
from tests.contract.test_collect_spending import worst
from tests.support.batches_server import CANCELED, EXPIRED, BatchesServer, errored, succeeded
from tests.support.batching import HALF_USD, answers, pending_batches
from tests.support.collecting import Collect, Records, journal_of, notes, usage_of

# One batch


def test_batch_answers_cost_half(server: BatchesServer, collect: Collect, tmp_path: Path, events: list[Event]) -> None:
    server.looks_until_ended = 3
    result = collect(n=5, batch=True)
    assert (result.n_answered, result.n_new, result.n_in_batches) == (5, 5, 0)
    assert answers(tmp_path / "out") == {f"Prompt {n}": f"Batched answer to Prompt {n}" for n in range(5)}
    assert len(server.batches) == 1
    assert server.calls == []
    [line] = result.usage.models
    assert line.usd == line.batch_saved_usd == pytest.approx(5 * HALF_USD)
    assert (line.n_answers, line.n_pending) == (5, 0)
    assert result.cost_usd == pytest.approx(5 * HALF_USD)
    [batch] = server.batches.values()
    assert {record["batch"] for record in journal_of(tmp_path / "out")} == {batch.id}
    assert any(batch.id in note and "continues without this machine" in note for note in notes(events))
    assert collect(n=5, batch=True).n_new == 0
    assert len(server.batches) == 1


def test_a_batch_is_on_the_disk_before_it_is_created(server: BatchesServer, collect: Collect, tmp_path: Path) -> None:
    out = tmp_path / "out"
    seen: list[tuple[dict[str, Any], int]] = []

    def look() -> None:
        [batch] = pending_batches(out)
        seen.append((batch, len((out / "batches" / f"{batch['name']}.jsonl").read_text().splitlines())))

    server.on_create = look
    collect(n=3, batch=True)
    [(batch, n_requests)] = seen
    assert (batch["id"], batch["n_requests"], n_requests) == ("", 3, 3)
    assert batch["usd"] == pytest.approx(3 * worst() / 2)


def test_only_what_errored_or_expired_goes_into_another_batch(
    server: BatchesServer, collect: Collect, records: Records, events: list[Event]
) -> None:
    fates = {
        "Prompt 1": [errored(), succeeded("Second try.")],
        "Prompt 2": [EXPIRED, EXPIRED, succeeded("Third try.")],
        "Prompt 3": [errored("invalid_request_error", "max_tokens: too large")],
        "Prompt 4": [CANCELED],
    }
    server.outcome = lambda prompt, nth: fates[prompt][nth - 1] if prompt in fates else succeeded("First try.")
    result = collect(n=6, batch=True)
    assert Counter(record["answer"] for record in records()) == {"First try.": 2, "Second try.": 1, "Third try.": 1}
    assert Counter(server.batched) == {
        "Prompt 0": 1, "Prompt 1": 2, "Prompt 2": 3, "Prompt 3": 1, "Prompt 4": 1, "Prompt 5": 1
    }  # fmt: skip
    assert {item.prompt_id[:8]: item.reason for item in result.failed} == {
        "prompt-3": "invalid_request_error: max_tokens: too large",
        "prompt-4": "it was cancelled",
    }
    assert result.usage.total_usd == pytest.approx(4 * HALF_USD)
    [first] = [note for note in notes(events) if note.startswith("Batch msgbatch_01: 2 of 6")]
    assert "are answered; 4 are not (1: it was cancelled; 1: invalid_request_error" in first


def test_what_errors_three_times_is_given_up_for_this_run(server: BatchesServer, collect: Collect) -> None:
    server.outcome = lambda prompt, nth: EXPIRED if prompt == "Prompt 0" else succeeded("Fine.")
    result = collect(n=2, batch=True)
    assert [item.reason for item in result.failed] == ["it expired, 3 times"]
    assert len(server.batches) == 3
    server.outcome = lambda prompt, nth: succeeded("At last.")
    assert collect(n=2, batch=True).n_answered == 2


def test_truncated_batch_answer_is_retried_once(server: BatchesServer, collect: Collect, records: Records) -> None:
    server.outcome = lambda prompt, nth: succeeded("Cut", stop_reason="max_tokens" if nth == 1 else "end_turn")
    result = collect(batch=True, max_tokens=300)
    assert [record["stop_reason"] for record in records()] == ["max_tokens", "end_turn"]
    limits = [batch.requests[0]["params"]["max_tokens"] for batch in server.batches.values()]
    assert limits == [300, 600]
    assert (result.n_answered, result.usage.total.n_repeated) == (1, 1)


def test_batches_are_split_by_number_of_requests(
    server: BatchesServer, collect: Collect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AnthropicTeacher, "max_requests", 4)
    assert collect(n=10, batch=True).n_answered == 10
    assert [len(batch.requests) for batch in server.batches.values()] == [4, 4, 2]


def test_batches_are_split_by_bytes(server: BatchesServer, collect: Collect, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = AnthropicTeacher("claude-sonnet-4-6")
    size = teacher.size_bytes(Request(teacher.name, build_messages("x" * 1000), 4096))
    monkeypatch.setattr(AnthropicTeacher, "max_bytes", 2 * size + 500)
    result = collect(*(letter * 1000 for letter in "abc"), "d" * 9000, batch=True)
    assert result.n_answered == 3
    assert [len(batch.requests) for batch in server.batches.values()] == [2, 1]
    assert ["too long" in item.reason for item in result.failed] == [True]


def test_batch_size_is_bounded_and_ids_are_safe(server: BatchesServer, collect: Collect) -> None:
    teacher = AnthropicTeacher("claude-sonnet-4-6")
    texts = ["plain", 'quotes " and \\ and tab\t', "日本語と😀", "é" * 50]
    collect(*texts, batch=True, teacher_context=ContextConfig(system='Answer "briefly".\nÜber alles.'))
    [batch] = server.batches.values()
    counted = sum(
        teacher.size_bytes(Request(teacher.name, build_messages(text, 'Answer "briefly".\nÜber alles.'), 4096))
        for text in texts
    )
    assert batch.n_bytes <= counted + 100
    names = [request["custom_id"] for request in batch.requests]
    assert all(len(name) <= 64 and name.replace("-", "").isalnum() and name.isascii() for name in names)
    assert len(set(names)) == 4


def test_oversized_results_are_refused_and_the_batch_is_kept(
    server: BatchesServer, collect: Collect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.outcome = lambda prompt, nth: succeeded("x" * (17 << 20 if prompt == "Prompt 1" else 10))
    with pytest.raises(TeacherError, match="or a line of more than 16 MiB"):
        collect(n=2, batch=True)
    monkeypatch.setattr(anthropic, "MAX_RESPONSE_BYTES", 1 << 20)
    monkeypatch.setattr(anthropic, "MAX_RESULT_BYTES", 1 << 19)
    server.outcome = lambda prompt, nth: succeeded("x" * (3 << 19))
    with pytest.raises(TeacherError, match="more than 2 MiB"):
        collect(n=2, wait=True)
    assert len(pending_batches(tmp_path / "out")) == 1
    server.outcome = lambda prompt, nth: succeeded("Fine.")
    assert collect(n=2, wait=True).n_answered == 2
    assert len(server.batches) == 1


# The cap


def test_cap_splits_batches(server: BatchesServer, collect: Collect, tmp_path: Path, events: list[Event]) -> None:
    cap = 4.2 * worst(300) / 2
    result = collect(n=10, batch=True, max_tokens=300, max_cost=cap)
    assert result.n_answered == 10
    sizes = [len(batch.requests) for batch in server.batches.values()]
    assert sizes[0] == 4
    assert sum(sizes) == 10
    assert usage_of(tmp_path / "out").total_usd == pytest.approx(10 * HALF_USD)
    assert any("6 requests wait for the current batches" in line for line in notes(events))


def test_too_small_cap_submits_no_batch(server: BatchesServer, collect: Collect, tmp_path: Path) -> None:
    with pytest.raises(BudgetError, match="5 of 5 prompts are left") as raised:
        collect(n=5, batch=True, max_cost=worst() / 2 * 0.99)
    assert "--max-cost" in raised.value.next_step
    assert server.batches == {}
    assert not (tmp_path / "out").exists()


def test_batch_without_tracked_costs(server: BatchesServer, collect: Collect, tmp_path: Path) -> None:
    result = collect(n=2, batch=True, track_costs=False, teacher="anthropic:claude-unknown")
    assert result.n_answered == 2
    assert not (tmp_path / "out" / "ledger.jsonl").exists()
