"""Collecting in bad weather: limits, long waits, a server that dies, a fifth of all requests failing, twenty kills."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import random
import signal
import threading
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from mlx_distill.collect.config import CollectConfig
from mlx_distill.collect.run import run
from mlx_distill.errors import BudgetError, Interrupted
from mlx_distill.events import Event, Warning
from mlx_distill.records import Request, build_messages
from mlx_distill.teachers.anthropic import AnthropicTeacher
from mlx_distill.teachers.base import RetryableError
from mlx_distill.teachers.limiter import START_WIDTH
from tests.support.collecting import KEY, REAL_USD, Collect, Records, journal_of, scripted, usage_of
from tests.support.messages_server import DROPPED, Call, MessagesServer, Reply, answer, error, message, streamed, text

MAX_WAIT_SECONDS = 300
"""A run that has not ended by then hangs."""

# The pace


def limits(remaining: int, reset_seconds: float = 60.0, limit: int = 4000) -> dict[str, str]:
    reset = (datetime.now(UTC) + timedelta(seconds=reset_seconds)).isoformat()
    said = {"limit": str(limit), "remaining": str(remaining), "reset": reset}
    return {f"anthropic-ratelimit-requests-{name}": value for name, value in said.items()}


def test_104_prompts_are_answered_in_two_rounds(server: MessagesServer, collect: Collect) -> None:
    """At 5 s an answer that is 10 s: 16 requests start, and the first answer's headers allow the other 88 at once."""
    first_round, second_round = threading.Barrier(START_WIDTH), threading.Barrier(104 - START_WIDTH)

    def script(call: Call) -> Reply:
        (first_round if len(server.calls) <= START_WIDTH else second_round).wait(MAX_WAIT_SECONDS)
        return Reply(body=message(text("Fine.")), headers=limits(4000))

    server.script = script
    assert collect(n=104, concurrency=104).n_answered == 104


def test_reset_allows_no_more_than_the_limit(server: MessagesServer, collect: Collect) -> None:
    """Twenty in each window, of sixty: without the figure in the headers all forty would be sent at the reset."""
    windows: Counter[int] = Counter()
    length = 0.6

    def script(call: Call) -> Reply:
        window = int((call.at - server.calls[0].at) / length)
        windows[window] += 1
        reset = server.calls[0].at + (window + 1) * length - call.at
        if windows[window] > 20:
            return error(429, "rate_limit_error", "Slow down", retry_after=str(reset))
        headers = limits(20 - windows[window], reset, limit=20)
        return Reply(body=message(text("Fine.")), after_seconds=0.05, headers=headers)

    server.script = script
    assert collect(n=60, concurrency=60).n_answered == 60
    assert len(server.calls) <= 66


def test_long_wait_is_reported_and_can_be_stopped(server: MessagesServer, collect: Collect) -> None:
    server.script = scripted(error(429, "rate_limit_error", "Daily limit", retry_after="3600"))
    said: list[str] = []

    def press_when_it_waits(event: Event) -> None:
        if isinstance(event, Warning):
            said.append(event.text)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted):
        collect(wait_minutes=120, report=press_when_it_waits)
    at = datetime.now().astimezone() + timedelta(hours=1)
    [line] = said
    assert "retrying in 1 h, at " in line
    assert any((at + timedelta(seconds=late)).strftime("%H:%M") in line for late in (-60, 0))


# Servers that misbehave


@pytest.mark.parametrize("max_tokens", [4096, 32_000])
def test_an_answer_that_drips_in_is_taken(
    server: MessagesServer, collect: Collect, records: Records, max_tokens: int
) -> None:
    slow = Reply(body=message(text("Slow.")), drip_seconds=0.5)
    server.script = scripted(slow if max_tokens == 4096 else Reply(events=streamed("Slow.").events, drip_seconds=0.5))
    collect(max_tokens=max_tokens)
    assert [record["answer"] for record in records()] == ["Slow."]


def test_an_answer_that_drips_for_too_long_is_given_up(server: MessagesServer) -> None:
    server.script = scripted(Reply(body=message(text("Slow.")), drip_seconds=3.0))

    async def ask() -> None:
        async with AnthropicTeacher("claude-sonnet-4-6", max_seconds=0.3) as teacher:
            await teacher.complete(Request(teacher.name, build_messages("Why?"), 1))

    with pytest.raises(RetryableError, match=r"no complete answer within 0\.4 s") as raised:
        asyncio.run(ask())
    assert raised.value.may_be_charged


def test_a_server_that_dies_and_comes_back_is_waited_for(
    collect: Collect, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first = MessagesServer(lambda call: Reply(body=message(text("Fine.")), after_seconds=0.03))
    second: list[MessagesServer] = []
    port = int(first.url.rsplit(":", 1)[1])
    monkeypatch.setenv("ANTHROPIC_BASE_URL", first.url)
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    done = threading.Event()

    def live_and_die() -> None:
        with first.running():
            while len(first.calls) < 12:
                time.sleep(0.01)
            first.script = lambda call: DROPPED
        time.sleep(0.4)
        second.append(MessagesServer(lambda call: answer("Back."), port))
        with second[0].running():
            done.wait(30)

    life = threading.Thread(target=live_and_die)
    life.start()
    try:
        result = collect(n=60, concurrency=6)
    finally:
        done.set()
        life.join()
    assert result.n_answered == 60
    answered = Counter(record["answer"] for record in journal_of(tmp_path / "out"))
    assert answered["Fine."] >= 6
    assert answered["Back."] == 60 - answered["Fine."]


# A fifth of all requests fails

FAULTS = (
    error(429, "rate_limit_error", "Slow down", retry_after_ms="5"),
    error(529, "overloaded_error", "Overloaded"),
    error(500, "api_error", "Internal server error"),
    error(503, "api_error", "Unavailable"),
    Reply(502, "<html>Bad gateway</html>"),
    DROPPED,
    Reply(body=message(text("An answer that breaks off")), cut=True),
    Reply(body='{"id": "msg_1", "cont', headers={"content-type": "application/json"}),
)


def stormy(call: Call) -> Reply:
    """The same weather for the same request in every run."""
    weather = random.Random(f"{call.prompt} {call.nth}")
    return weather.choice(FAULTS) if weather.random() < 0.2 else answer(f"Answer to {call.prompt}")


def charged_usd(server: MessagesServer) -> float:
    """The most that the server can have charged for: all but what it refused."""
    return REAL_USD * sum(stormy(call).status not in (429, 503, 529) for call in server.calls)


def test_thousand_prompts_survive_a_fifth_of_failures(
    server: MessagesServer, collect: Collect, records: Records, tmp_path: Path
) -> None:
    server.script = stormy
    result = collect(n=1000, concurrency=64, max_tokens=300, max_cost=4.0)
    assert (result.n_answered, result.failed) == (1000, ())
    assert sorted(record["answer"] for record in records()) == sorted(f"Answer to Prompt {n}" for n in range(1000))
    assert len(server.calls) > 1150
    assert charged_usd(server) <= usage_of(tmp_path / "out").total_usd <= 4.0


def test_cap_holds_in_a_storm_at_any_concurrency(
    server: MessagesServer, collect: Collect, records: Records, tmp_path: Path
) -> None:
    server.script = stormy
    spent = []
    for concurrency, cap in ((64, 0.15), (3, 0.2), (200, 0.3)):
        with pytest.raises(BudgetError):
            collect(n=400, concurrency=concurrency, max_tokens=300, max_cost=cap)
        spent.append(usage_of(tmp_path / "out").total_usd)
        assert charged_usd(server) <= spent[-1] <= cap
    assert spent == sorted(spent)
    assert max(Counter(record["key"] for record in records()).values()) == 1


# Kills


def collect_in_child(folder: str, url: str, concurrency: int, max_cost: float) -> None:
    """Run in the process that is killed."""
    os.environ.update(ANTHROPIC_BASE_URL=url, ANTHROPIC_API_KEY=KEY)
    out = Path(folder)
    teacher = "anthropic:claude-sonnet-4-6"
    run(
        CollectConfig(
            out=out,
            teacher=teacher,
            prompts=out / "prompts.txt",
            concurrency=concurrency,
            max_tokens=300,
            max_cost=max_cost,
        )
    )


def test_twenty_kills_lose_and_repeat_nothing_under_the_cap(server: MessagesServer, tmp_path: Path) -> None:
    n_prompts, n_kills, concurrency, cap = 500, 20, 8, 3.0
    server.script = lambda call: Reply(body=message(text(f"Answer to {call.prompt}")), after_seconds=0.03)
    (tmp_path / "prompts.txt").write_text("\n".join(f"Prompt {number}" for number in range(n_prompts)))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["anthropic", "httpx2", "tests.contract.test_collect_storms"])
    chance = random.Random(4)
    saved: list[str] = []
    for kill in range(n_kills + 1):
        asked_before = len(server.calls)
        child = context.Process(target=collect_in_child, args=(str(tmp_path), server.url, concurrency, cap))
        child.start()
        if kill < n_kills:
            deadline = time.monotonic() + 30
            while len(server.calls) == asked_before and child.is_alive() and time.monotonic() < deadline:
                time.sleep(0.002)
            time.sleep(chance.uniform(0.0, 0.15))
            child.kill()
        child.join(60)
        time.sleep(0.05)  # what is on its way to the server arrives
        asked = server.prompts[asked_before:]
        assert not set(saved) & set(asked), "an answer on the disk was asked for again"
        assert len(asked) == len(set(asked))
        lines = (tmp_path / "teacher_data.jsonl").read_bytes().split(b"\n")[:-1] if saved or asked else []
        before, saved = saved, [record["messages"][-1]["content"] for record in journal_of(tmp_path)] if lines else []
        assert saved[: len(before)] == before
        total = usage_of(tmp_path).total
        assert len(server.calls) * REAL_USD <= total.usd <= cap
    assert child.exitcode == 0
    assert sorted(saved) == sorted(f"Prompt {number}" for number in range(n_prompts))
    repeats = len(server.calls) - n_prompts
    assert repeats <= n_kills * concurrency
