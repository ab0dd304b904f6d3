"""Batches over Ctrl-C, lost replies, odd results and kills: nothing is lost or paid twice."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from mlx_distill.collect.config import CollectConfig
from mlx_distill.collect.run import run
from mlx_distill.errors import Interrupted, TeacherError
from mlx_distill.events import Event
from mlx_distill.teachers import batches
from mlx_distill.teachers.anthropic import AnthropicTeacher
from tests.contract.test_collect_spending import worst
from tests.support.batches_server import EXPIRED, BatchesServer, succeeded
from tests.support.batching import HALF_USD, answers, interrupted, pending_batches, press_ctrl_c
from tests.support.collecting import KEY, REAL_USD, Collect, Records, cautions, journal_of, usage_of
from tests.support.messages_server import DROPPED, Reply, error

# Interruptions


def test_ctrl_c_keeps_the_batch_pending(server: BatchesServer, collect: Collect) -> None:
    server.looks_until_ended = 0
    error = interrupted(server, collect, n=3, batch=True)
    assert error.exit_code == 130
    assert "3 are in batches" in error.message
    assert "run the same command again" in error.next_step
    server.looks_until_ended = server.batches["msgbatch_01"].n_looks + 3
    assert collect(n=3, batch=True).n_answered == 3
    assert len(server.batches) == 1


def test_ctrl_c_while_a_batch_is_being_made_waits_for_its_name(
    server: BatchesServer, collect: Collect, tmp_path: Path, events: list[Event]
) -> None:
    server.looks_until_ended = 0

    def press_and_wait() -> None:
        press_ctrl_c()
        time.sleep(0.3)

    server.on_create = press_and_wait
    with pytest.raises(Interrupted, match="3 are in batches"):
        collect(n=3, batch=True)
    assert [batch["id"] for batch in pending_batches(tmp_path / "out")] == ["msgbatch_01"]
    assert any("Ctrl-C again to stop at once" in line for line in cautions(events))


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (DROPPED, "(no connection to http"),
        (error(500, "api_error", "Internal"), "(server error (500): Internal). Checking"),
        (Reply(body="<html>Hello</html>"), "its response is not a batch). Checking"),
        (Reply(body={"id": "msgbatch_9", "created_at": "2026-01-01T00:00:00Z"}), "its response is not a batch)"),
    ],
    ids=["dropped", "500", "page", "odd shape"],
)
def test_batch_with_a_lost_reply_is_found(
    server: BatchesServer, collect: Collect, tmp_path: Path, events: list[Event], loss: Reply, said: str
) -> None:
    server.lost_replies = [loss]
    result = collect(n=3, batch=True)
    [line] = cautions(events)
    assert said in line
    assert "\n" not in line
    assert (result.n_answered, len(server.batches)) == (3, 1)
    assert result.total_usage.total_usd == pytest.approx(3 * HALF_USD)
    assert pending_batches(tmp_path / "out") == []


def test_foreign_batch_of_the_same_size_is_not_imported(
    server: BatchesServer, collect: Collect, events: list[Event]
) -> None:
    def requests(n: int) -> list[Mapping[str, Any]]:
        params = {"messages": [{"role": "user", "content": "Theirs"}]}
        return [{"custom_id": f"their-{number}", "params": params} for number in range(n)]

    for age in (timedelta(minutes=9), timedelta(minutes=30), timedelta(hours=2)):
        server.add(requests(3), age)
    server.add(requests(2))
    server.on_create = lambda: server.add(requests(3))
    server.lost_replies = [DROPPED]
    result = collect(n=3, batch=True)
    assert result.n_answered == 3
    assert len(server.batches) == 6
    assert result.total_usage.total_usd == pytest.approx(3 * HALF_USD)
    assert any("is not ours" in line for line in cautions(events))


def test_deleted_batch_counts_in_full(
    server: BatchesServer, collect: Collect, events: list[Event], tmp_path: Path
) -> None:
    server.looks_until_ended = 0
    interrupted(server, collect, n=2, batch=True)
    server.batches.clear()
    spending = tmp_path / "out" / "spending.json"
    data = json.loads(spending.read_text())
    data["batches"][0]["submitted_at"] = "2026-01-01T00:00:00+00:00"
    spending.write_text(json.dumps(data))
    result = collect(n=2)
    assert (result.n_answered, result.n_in_batches) == (2, 0)
    assert result.total_usage.total_usd == pytest.approx(2 * REAL_USD + 2 * worst() / 2)
    assert any("is lost" in line for line in cautions(events))


def test_a_key_of_another_account_loses_no_batch(server: BatchesServer, collect: Collect) -> None:
    server.looks_until_ended = 0
    interrupted(server, collect, n=2, batch=True)
    ours, server.batches = server.batches, {}
    for how in ({}, {"wait": True}, {"batch": True}):
        with pytest.raises(TeacherError, match="the account of this API key") as raised:
            collect(n=2, **how)
        assert "msgbatch_01" in raised.value.next_step
    server.batches, server.looks_until_ended = ours, 1
    assert collect(n=2, wait=True).n_answered == 2
    assert server.calls == []


@pytest.mark.parametrize("how", ["cut", "short", "garbage"])
def test_broken_results_are_read_again(
    server: BatchesServer, collect: Collect, records: Records, tmp_path: Path, how: str
) -> None:
    server.broken_results = [how]
    assert collect(n=40, batch=True).n_answered == 40
    assert Counter(record["key"] for record in records()).most_common(1)[0][1] == 1
    assert usage_of(tmp_path / "out").total_usd == pytest.approx(40 * HALF_USD)


def test_results_of_an_odd_shape_are_read_again(server: BatchesServer, collect: Collect, records: Records) -> None:
    looks: Counter[str] = Counter()

    def odd_at_first(prompt: str, nth: int) -> Any:
        looks[prompt] += 1  # the state counts them too
        return {"type": "errored"} if looks[prompt] <= 2 else succeeded("Fine.")

    server.outcome = odd_at_first
    result = collect(n=2, batch=True)
    assert (result.n_answered, len(server.batches)) == (2, 1)
    assert result.total_usage.total_usd == pytest.approx(2 * HALF_USD)


@pytest.mark.parametrize("odd", [{"type": "errored"}, {"type": "succeeded", "message": {"content": None}}])
def test_missing_result_counts_in_full(server: BatchesServer, collect: Collect, odd: Any) -> None:
    server.outcome = lambda prompt, nth: odd if (prompt, nth) == ("Prompt 1", 1) else succeeded("Fine.")
    result = collect(n=3, batch=True)
    assert (result.n_answered, result.failed) == (3, ())
    assert [batch.prompts for batch in server.batches.values()] == [["Prompt 0", "Prompt 1", "Prompt 2"], ["Prompt 1"]]
    assert result.total_usage.total_usd == pytest.approx(3 * HALF_USD + worst() / 2, rel=1e-3)


@pytest.mark.parametrize("busy", [error(429, "rate_limit_error", "Slow down"), error(529, "overloaded_error", "Busy")])
def test_a_busy_provider_is_asked_again_to_make_a_batch(server: BatchesServer, collect: Collect, busy: Reply) -> None:
    server.refusals = [busy, busy]
    assert collect(n=2, batch=True).n_answered == 2
    assert len(server.batches) == 1


@pytest.mark.parametrize(
    ("refusal", "words"),
    [
        (error(401, "authentication_error", "invalid x-api-key"), "refused the API key"),
        (error(400, "invalid_request_error", "Your credit balance is too low"), "no balance"),
        (error(404, "not_found_error", "no such page"), "has no batches"),
        (error(413, "request_too_large", "Request too large"), "refused the batch"),
    ],
)
def test_a_refused_batch_costs_nothing_and_stops_the_run(
    server: BatchesServer, collect: Collect, tmp_path: Path, refusal: Reply, words: str
) -> None:
    server.refusals = [refusal]
    with pytest.raises(TeacherError, match=words):
        collect(n=3, batch=True)
    assert usage_of(tmp_path / "out").total_usd == 0.0
    assert not list((tmp_path / "out" / "batches").glob("[0-9]*"))
    assert collect(n=3, batch=True).n_answered == 3


def test_unreachable_provider_loses_no_batch(server: BatchesServer, collect: Collect) -> None:
    server.looks_until_ended = 0
    interrupted(server, collect, n=3, batch=True)
    server.unreachable = True
    with pytest.raises(TeacherError, match="has not answered for") as raised:
        collect(n=3, wait=True, wait_minutes=0.01)
    assert "run the same command again" in raised.value.next_step
    server.unreachable, server.looks_until_ended = False, 1
    assert collect(n=3, wait=True).n_answered == 3


def test_results_that_are_nobodys_or_come_twice_change_nothing(
    server: BatchesServer, collect: Collect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = server._results

    def odd(batch: Any, broken: str) -> Reply:
        lines = results(batch, broken).body.splitlines(keepends=True)
        strange = json.dumps({"custom_id": "strange", "result": succeeded("Whose?")}) + "\n"
        return Reply(body="".join([strange, *lines, lines[0], strange]))

    monkeypatch.setattr(server, "_results", odd)
    assert collect(n=4, batch=True).n_answered == 4
    assert usage_of(tmp_path / "out").total_usd == pytest.approx(4 * HALF_USD)
    assert len(server.batches) == 1


# Kills

MAX_WAIT_SECONDS = 600
"""A process that has not ended by then hangs."""


def batch_in_child(folder: str, url: str, max_cost: float) -> None:
    """Run in the process that is killed."""
    os.environ.update(ANTHROPIC_BASE_URL=url, ANTHROPIC_API_KEY=KEY)
    AnthropicTeacher.max_requests = 20
    batches.LISTED_AFTER = timedelta(seconds=1)
    out = Path(folder)
    teacher = "anthropic:claude-sonnet-4-6"
    run(
        CollectConfig(
            out=out,
            teacher=teacher,
            prompts=out / "prompts.txt",
            batch=True,
            max_tokens=300,
            max_cost=max_cost,
            first_wait_seconds=0.05,
        )
    )


@pytest.fixture
def child(server: BatchesServer, tmp_path: Path) -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["anthropic", "httpx2", "tests.contract.batches.test_interrupted"])
    return lambda max_cost: context.Process(target=batch_in_child, args=(str(tmp_path), server.url, max_cost))


def test_kill_during_submission_neither_loses_nor_doubles(server: BatchesServer, child: Any, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("\n".join(f"Prompt {number}" for number in range(5)))
    first = child(1.0)
    server.on_create = first.kill
    first.start()
    first.join(30)
    assert first.exitcode == -signal.SIGKILL
    assert [batch["id"] for batch in pending_batches(tmp_path)] == [""]
    assert usage_of(tmp_path).total.n_pending == 5
    server.on_create = lambda: None
    second = child(1.0)
    second.start()
    second.join(60)
    assert second.exitcode == 0
    assert len(server.batches) == 1
    assert len(answers(tmp_path)) == 5
    assert usage_of(tmp_path).total_usd == pytest.approx(5 * HALF_USD)


def kill_at_request(server: BatchesServer, process: Any, number: int, moment: str, patch: pytest.MonkeyPatch) -> None:
    """Kill a process at its nth request: before the server handles it, before the reply, or during the reply."""
    n_requests = 0

    def killing(handle: Callable[..., Reply]) -> Callable[..., Reply]:
        def handle_or_kill(*request: Any) -> Reply:
            nonlocal n_requests
            n_requests += 1
            if n_requests == number and moment == "before":
                process.kill()
            if n_requests >= number and moment == "before":
                return DROPPED
            reply = handle(*request)
            if n_requests == number and moment == "after":
                process.kill()
            elif n_requests == number:
                threading.Timer(0.005, process.kill).start()
            return reply

        return handle_or_kill

    patch.setattr(server, "posted", killing(type(server).posted.__get__(server)))
    patch.setattr(server, "got", killing(type(server).got.__get__(server)))


def test_ten_kills_lose_and_repeat_nothing_under_the_cap(server: BatchesServer, child: Any, tmp_path: Path) -> None:
    n_prompts, n_kills, cap = 100, 10, 0.45
    (tmp_path / "prompts.txt").write_text("\n".join(f"Prompt {number}" for number in range(n_prompts)))
    server.looks_until_ended = 3
    server.outcome = lambda prompt, nth: (
        EXPIRED if nth == 1 and prompt.endswith("7") else succeeded(f"Batched answer to {prompt}")
    )
    chance = random.Random(7)
    for kill in range(n_kills + 1):
        process = child(cap)
        with pytest.MonkeyPatch.context() as patch:
            if kill < n_kills:
                kill_at_request(server, process, chance.randint(1, 4), ("before", "after", "during")[kill % 3], patch)
            process.start()
            process.join(MAX_WAIT_SECONDS)
        assert process.exitcode == (-signal.SIGKILL if kill < n_kills else 0)
        if (tmp_path / "spending.json").exists():
            total = usage_of(tmp_path).total
            in_batches = sum(len(batch.requests) for batch in server.batches.values())
            n_free = sum(prompt.endswith("7") for prompt in set(server.batched))
            assert (in_batches - n_free) * HALF_USD - 1e-9 <= total.usd <= cap
    assert sorted(answers(tmp_path)) == sorted(f"Prompt {number}" for number in range(n_prompts))
    assert all(count == 1 + prompt.endswith("7") for prompt, count in Counter(server.batched).items())
    assert len(journal_of(tmp_path)) == n_prompts
    assert usage_of(tmp_path).total_usd == pytest.approx(n_prompts * HALF_USD)
