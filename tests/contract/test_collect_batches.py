"""Collecting in batches, through the real SDK: at half price, over kills and restarts, nothing lost or paid twice."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from mlx_distill import pipeline
from mlx_distill.cli import main
from mlx_distill.collect import CollectConfig, estimate, run
from mlx_distill.errors import BudgetError, DistillError, InputError, Interrupted, TeacherError
from mlx_distill.records import Request, conversation
from mlx_distill.teachers.anthropic import AnthropicTeacher
from mlx_distill.teachers.anthropic.batches import AnthropicBatches
from mlx_distill.teachers.asking import batch_making, batch_round
from tests.contract.batches_server import CANCELED, EXPIRED, BatchesServer, errored, succeeded
from tests.contract.collecting import KEY, REAL_USD, bill_of, cautions, journal_of, notes
from tests.contract.messages_server import DROPPED, Reply, error
from tests.contract.test_collect_spending import worst

HALF_USD = REAL_USD / 2
"""What an answer of a batch costs."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[BatchesServer]:
    server = BatchesServer()
    with server.running():
        monkeypatch.setenv("ANTHROPIC_BASE_URL", server.url)
        monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
        yield server


def log_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "batches" / "log.jsonl").read_text().splitlines()]


def answers(out: Path) -> dict[str, str]:
    return {record["messages"][-1]["content"]: record["answer"] for record in journal_of(out)}


# One batch


def test_the_answers_of_a_batch_come_back_by_their_names_at_half_price(server, collect, tmp_path, events) -> None:
    server.looks_until_ended = 3
    result = collect(n=5, batch=True)
    assert (result.n_answered, result.n_new, result.n_under_way) == (5, 5, 0)
    assert answers(tmp_path / "out") == {f"Prompt {n}": f"Batched answer to Prompt {n}" for n in range(5)}
    assert len(server.batches) == 1
    assert server.calls == []
    [line] = result.bill.lines
    assert line.usd == line.batch_saved_usd == pytest.approx(5 * HALF_USD)
    assert (line.n_answers, line.n_under_way) == (5, 0)
    assert result.cost_usd == pytest.approx(5 * HALF_USD)
    [batch] = server.batches.values()
    assert {record["batch"] for record in journal_of(tmp_path / "out")} == {batch.id}
    assert any(batch.id in note and "goes on without this machine" in note for note in notes(events))
    assert collect(n=5, batch=True).n_new == 0
    assert len(server.batches) == 1


def test_what_a_batch_may_cost_is_on_the_disk_before_it_is_made_and_its_name_before_all_else(
    server, collect, tmp_path
) -> None:
    out = tmp_path / "out"
    seen: list[str] = []

    def look(prompt: str, nth: int) -> Any:
        if not seen:
            seen.append((out / "batches" / "log.jsonl").read_text())
        return succeeded("Fine.")

    server.outcome = look
    server.on_create = lambda: seen_at_creation.append(
        ((out / "ledger.jsonl").read_text(), (out / "batches" / "1.jsonl").read_text())
    )
    seen_at_creation: list[tuple[str, str]] = []
    collect(n=3, batch=True)
    [(ledger, requests)] = seen_at_creation
    [reserved] = [json.loads(line) for line in ledger.splitlines()]
    assert reserved["batch"]
    assert reserved["usd"] == pytest.approx(3 * worst() / 2)
    assert len(requests.splitlines()) == 3
    assert '"do": "created"' in seen[0]


def test_only_what_errored_or_expired_goes_into_another_batch(server, collect, records, events) -> None:
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
    assert {item.prompt_id[:8]: item.reason for item in result.unanswered} == {
        "prompt-3": "invalid_request_error: max_tokens: too large",
        "prompt-4": "it was cancelled",
    }
    assert result.bill.total_usd == pytest.approx(4 * HALF_USD)
    [first] = [note for note in notes(events) if note.startswith("Batch msgbatch_01: 2 of 6")]
    assert "are answered; 4 are not (1: it expired; 1: api_error: Internal error; 1: it was cancelled)" in first


def test_what_errors_three_times_is_given_up_for_this_run(server, collect) -> None:
    server.outcome = lambda prompt, nth: EXPIRED if prompt == "Prompt 0" else succeeded("Fine.")
    result = collect(n=2, batch=True)
    assert [item.reason for item in result.unanswered] == ["it expired, 3 times"]
    assert len(server.batches) == 3
    server.outcome = lambda prompt, nth: succeeded("At last.")
    assert collect(n=2, batch=True).n_answered == 2


def test_an_answer_that_was_cut_off_is_asked_once_more_with_a_larger_limit(server, collect, records) -> None:
    server.outcome = lambda prompt, nth: succeeded("Cut", stop_reason="max_tokens" if nth == 1 else "end_turn")
    result = collect(batch=True, max_tokens=300)
    assert [record["stop_reason"] for record in records()] == ["max_tokens", "end_turn"]
    limits = [batch.requests[0]["params"]["max_tokens"] for batch in server.batches.values()]
    assert limits == [300, 600]
    assert (result.n_answered, result.bill.total.n_retries) == (1, 1)


def test_many_prompts_are_split_into_batches_of_the_sizes_allowed(server, collect, monkeypatch) -> None:
    monkeypatch.setattr(AnthropicBatches, "most_requests", 4)
    assert collect(n=10, batch=True).n_answered == 10
    assert [len(batch.requests) for batch in server.batches.values()] == [4, 4, 2]


def test_many_bytes_are_split_too_and_what_no_batch_can_hold_is_skipped(server, collect, monkeypatch) -> None:
    teacher = AnthropicTeacher("claude-sonnet-4-6")
    size = teacher.batches.size_of(Request(teacher.name, conversation("x" * 1000), 4096))
    monkeypatch.setattr(AnthropicBatches, "most_bytes", 2 * size + 2000)
    result = collect(*(letter * 1000 for letter in "abc"), "d" * 9000, batch=True)
    assert result.n_answered == 3
    assert [len(batch.requests) for batch in server.batches.values()] == [2, 1]
    assert ["too long" in item.reason for item in result.unanswered] == [True]


def test_a_batch_is_no_larger_than_it_was_counted_and_its_names_are_safe(server, collect) -> None:
    teacher = AnthropicTeacher("claude-sonnet-4-6")
    texts = ["plain", 'quotes " and \\ and tab\t', "日本語と😀", "é" * 50]
    collect(*texts, batch=True, system='Answer "briefly".\nÜber alles.')
    [batch] = server.batches.values()
    counted = sum(
        teacher.batches.size_of(Request(teacher.name, conversation(text, 'Answer "briefly".\nÜber alles.'), 4096))
        for text in texts
    )
    assert batch.n_bytes <= counted + 100
    names = [request["custom_id"] for request in batch.requests]
    assert all(len(name) <= 64 and name.replace("-", "").isalnum() and name.isascii() for name in names)
    assert len(set(names)) == 4


# Batch and live in one journal


def test_live_asks_only_what_no_batch_is_answering(server, collect, tmp_path) -> None:
    server.looks_until_ended = 0
    interrupted(server, collect, n=3, batch=True)
    result = collect(n=5)
    assert sorted(server.prompts) == ["Prompt 3", "Prompt 4"]
    assert (result.n_answered, result.n_under_way, result.unanswered) == (2, 3, ())
    assert result.total_bill.total.n_under_way == 3
    server.looks_until_ended = 1
    result = collect(n=5)
    assert (result.n_answered, result.n_new, result.n_under_way) == (5, 3, 0)
    assert len(server.calls) == 2
    assert result.total_bill.total_usd == pytest.approx(2 * REAL_USD + 3 * HALF_USD)
    texts = answers(tmp_path / "out")
    assert [texts[f"Prompt {n}"].split()[0] for n in range(5)] == ["Batched"] * 3 + ["Answer"] * 2


def test_wait_brings_in_what_is_under_way_and_asks_nothing_new(server, collect) -> None:
    server.looks_until_ended = 0
    interrupted(server, collect, n=3, batch=True)
    server.looks_until_ended = 4
    server.outcome = lambda prompt, nth: EXPIRED if (prompt, nth) == ("Prompt 1", 1) else succeeded("Fine.")
    result = collect(n=5, wait=True)
    assert (result.n_answered, result.n_under_way) == (3, 0)
    assert server.calls == []
    assert [len(batch.requests) for batch in server.batches.values()] == [3, 1]


def test_answers_of_prompts_that_were_taken_out_meanwhile_are_kept_and_hold_later(server, collect, records) -> None:
    server.looks_until_ended = 0
    interrupted(server, collect, "One", "Two", batch=True)
    server.looks_until_ended = 1
    assert collect("Two", "Three", wait=True).n_answered == 1
    assert len(records()) == 2
    assert collect("One", "Two", max_tokens=5000).n_new == 0
    assert server.calls == []


def test_a_batch_of_another_teacher_is_left_alone(server, collect, events) -> None:
    server.looks_until_ended = 0
    interrupted(server, collect, n=2, batch=True)
    result = collect(n=2, teacher="anthropic:claude-haiku-4-5")
    assert (result.n_answered, result.n_under_way) == (2, 0)
    assert any("anthropic:claude-sonnet-4-6" in line and "under way" in line for line in notes(events))


def test_what_a_batch_refused_or_lost_is_asked_live_where_live_is_wanted(server, collect) -> None:
    server.looks_until_ended = 0
    interrupted(server, collect, n=4, batch=True)
    server.looks_until_ended = 1
    fates = {"Prompt 0": EXPIRED, "Prompt 1": CANCELED, "Prompt 2": errored("invalid_request_error", "no")}
    server.outcome = lambda prompt, nth: fates.get(prompt, succeeded("Fine."))
    result = collect(n=4)
    assert (result.n_answered, result.unanswered) == (4, ())
    assert sorted(server.prompts) == ["Prompt 0", "Prompt 1", "Prompt 2"]


# Interruptions


def press_ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def interrupted(server: BatchesServer, collect: Any, *prompts: str, **settings: Any) -> Interrupted:
    """Collect until Ctrl-C is pressed, which is while the first batch is waited for."""
    ended = threading.Event()

    def press_once_it_was_looked_at() -> None:
        while not any(batch.n_looks for batch in list(server.batches.values())):
            if ended.wait(0.01):
                return
        press_ctrl_c()

    press = threading.Thread(target=press_once_it_was_looked_at)
    press.start()
    try:
        with pytest.raises(Interrupted) as raised:
            collect(*prompts, **settings)
    finally:
        ended.set()
        press.join()
    return raised.value


def test_ctrl_c_leaves_a_batch_to_go_on_and_says_how_to_come_back(server, collect) -> None:
    server.looks_until_ended = 0
    error = interrupted(server, collect, n=3, batch=True)
    assert error.exit_code == 130
    assert "3 are in batches" in error.message
    assert "run the same command again" in error.next_step
    server.looks_until_ended = server.batches["msgbatch_01"].n_looks + 3
    assert collect(n=3, batch=True).n_answered == 3
    assert len(server.batches) == 1


def test_ctrl_c_while_a_batch_is_being_made_waits_for_its_name(server, collect, tmp_path, events) -> None:
    server.looks_until_ended = 0
    server.on_create = lambda: (press_ctrl_c(), time.sleep(0.3))
    with pytest.raises(Interrupted, match="3 are in batches"):
        collect(n=3, batch=True)
    assert [line["do"] for line in log_of(tmp_path / "out")] == ["announce", "created"]
    assert any("Once more stops at once" in line for line in cautions(events))


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (DROPPED, "(no connection to http"),
        (error(500, "api_error", "Internal"), "(server error (500): Internal): it is looked for."),
        (Reply(body="<html>Hello</html>"), "what it sent is no batch): it is looked for."),
        (Reply(body={"id": "msgbatch_9", "created_at": "2026-01-01T00:00:00Z"}), "what it sent is no batch)"),
    ],
    ids=["dropped", "500", "page", "odd shape"],
)
def test_a_batch_whose_name_was_lost_on_the_way_is_found_and_not_made_twice(
    server, collect, tmp_path, events, loss, said
) -> None:
    server.lost_replies = [loss]
    result = collect(n=3, batch=True)
    [line] = cautions(events)
    assert said in line
    assert "\n" not in line
    assert (result.n_answered, len(server.batches)) == (3, 1)
    assert result.total_bill.total_usd == pytest.approx(3 * HALF_USD)
    assert [line["do"] for line in log_of(tmp_path / "out")] == ["announce", "created", "close"]


def test_a_batch_that_was_never_made_costs_nothing_and_is_made_again(server, collect, monkeypatch) -> None:
    monkeypatch.setattr(batch_making, "LISTED_AFTER_SECONDS", 0.3)
    monkeypatch.setattr(batch_making, "LOOK_AGAIN_SECONDS", 0.1)
    server.refusals = [DROPPED]
    result = collect(n=3, batch=True, max_cost=2 * worst())
    assert (result.n_answered, len(server.batches)) == (3, 1)
    assert result.total_bill.total_usd == pytest.approx(3 * HALF_USD)


def test_another_programs_batch_of_the_same_size_is_not_taken_for_ours(server, collect, events) -> None:
    def requests(n: int) -> list[dict[str, Any]]:
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
    assert result.total_bill.total_usd == pytest.approx(3 * HALF_USD)
    assert any("is not ours" in line for line in cautions(events))


def test_a_batch_that_is_gone_counts_in_full_and_its_prompts_are_missing_again(
    server, collect, events, monkeypatch
) -> None:
    server.looks_until_ended = 0
    interrupted(server, collect, n=2, batch=True)
    server.batches.clear()
    monkeypatch.setattr(batch_round, "KEPT", timedelta())
    result = collect(n=2)
    assert (result.n_answered, result.n_under_way) == (2, 0)
    assert result.total_bill.total_usd == pytest.approx(2 * REAL_USD + 2 * worst() / 2)
    assert any("is lost" in line for line in cautions(events))


def test_a_key_of_another_account_loses_no_batch(server, collect) -> None:
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
def test_results_that_break_off_are_read_again_and_none_is_kept_twice(server, collect, records, tmp_path, how) -> None:
    server.broken_results = [how]
    assert collect(n=40, batch=True).n_answered == 40
    assert Counter(record["key"] for record in records()).most_common(1)[0][1] == 1
    assert bill_of(tmp_path / "out").total_usd == pytest.approx(40 * HALF_USD)


def test_results_of_an_odd_shape_are_read_again(server, collect, records) -> None:
    looks: Counter[str] = Counter()

    def odd_at_first(prompt: str, nth: int) -> Any:
        looks[prompt] += 1  # the state counts them too
        return {"type": "errored"} if looks[prompt] <= 2 else succeeded("Fine.")

    server.outcome = odd_at_first
    result = collect(n=2, batch=True)
    assert (result.n_answered, len(server.batches)) == (2, 1)
    assert result.total_bill.total_usd == pytest.approx(2 * HALF_USD)


@pytest.mark.parametrize("odd", [{"type": "errored"}, {"type": "succeeded", "message": {"content": None}}])
def test_a_result_that_never_comes_leaves_the_others_and_its_batch_counts_in_full(server, collect, odd) -> None:
    server.outcome = lambda prompt, nth: odd if (prompt, nth) == ("Prompt 1", 1) else succeeded("Fine.")
    result = collect(n=3, batch=True)
    assert (result.n_answered, result.unanswered) == (3, ())
    assert [batch.prompts for batch in server.batches.values()] == [["Prompt 0", "Prompt 1", "Prompt 2"], ["Prompt 1"]]
    assert result.total_bill.total_usd == pytest.approx(3 * worst() / 2 + HALF_USD)


@pytest.mark.parametrize("busy", [error(429, "rate_limit_error", "Slow down"), error(529, "overloaded_error", "Busy")])
def test_a_busy_provider_is_asked_again_to_make_a_batch(server, collect, busy) -> None:
    server.refusals = [busy, busy]
    assert collect(n=2, batch=True).n_answered == 2
    assert len(server.batches) == 1


@pytest.mark.parametrize(
    ("refusal", "words"),
    [
        (error(401, "authentication_error", "invalid x-api-key"), "refused the API key"),
        (error(400, "invalid_request_error", "Your credit balance is too low"), "no balance"),
        (error(404, "not_found_error", "no such page"), "has no batches"),
        (error(413, "request_too_large", "Request too large"), "The batch was refused"),
    ],
)
def test_a_refused_batch_costs_nothing_and_stops_the_run(server, collect, tmp_path, refusal, words) -> None:
    server.refusals = [refusal]
    with pytest.raises(TeacherError, match=words):
        collect(n=3, batch=True)
    assert bill_of(tmp_path / "out").total_usd == 0.0
    assert not list((tmp_path / "out" / "batches").glob("[0-9]*"))
    assert collect(n=3, batch=True).n_answered == 3


def test_a_provider_out_of_reach_ends_the_waiting_and_nothing_is_lost(server, collect) -> None:
    server.looks_until_ended = 0
    interrupted(server, collect, n=3, batch=True)
    server.unreachable = True
    with pytest.raises(TeacherError, match="cannot be waited for longer") as raised:
        collect(n=3, wait=True, wait_minutes=0.01)
    assert "run the same command again" in raised.value.next_step
    server.unreachable, server.looks_until_ended = False, 1
    assert collect(n=3, wait=True).n_answered == 3


def test_results_that_are_nobodys_or_come_twice_change_nothing(server, collect, tmp_path, monkeypatch) -> None:
    results = server._results

    def odd(batch: Any, broken: str) -> Reply:
        lines = results(batch, broken).body.splitlines(keepends=True)
        strange = json.dumps({"custom_id": "strange", "result": succeeded("Whose?")}) + "\n"
        return Reply(body="".join([strange, *lines, lines[0], strange]))

    monkeypatch.setattr(server, "_results", odd)
    assert collect(n=4, batch=True).n_answered == 4
    assert bill_of(tmp_path / "out").total_usd == pytest.approx(4 * HALF_USD)
    assert len(server.batches) == 1


# The cap


def test_the_cap_lets_a_batch_hold_what_fits_and_the_rest_follows_when_the_real_cost_is_known(
    server, collect, tmp_path, events
) -> None:
    cap = 4.2 * worst(300) / 2
    result = collect(n=10, batch=True, max_tokens=300, max_cost=cap)
    assert result.n_answered == 10
    sizes = [len(batch.requests) for batch in server.batches.values()]
    assert sizes[0] == 4
    assert sum(sizes) == 10
    assert bill_of(tmp_path / "out").total_usd == pytest.approx(10 * HALF_USD)
    assert any("The cap lets 6 requests wait" in line for line in notes(events))


def test_a_cap_too_small_for_one_request_makes_no_batch_and_leaves_nothing(server, collect, tmp_path) -> None:
    with pytest.raises(BudgetError, match="5 of 5 prompts are left") as raised:
        collect(n=5, batch=True, max_cost=worst() / 2 * 0.99)
    assert "--max-cost" in raised.value.next_step
    assert server.batches == {}
    assert not (tmp_path / "out").exists()


def test_without_costs_there_is_no_ledger_and_a_batch_does_as_well(server, collect, tmp_path) -> None:
    result = collect(n=2, batch=True, cost=False, teacher="anthropic:claude-unknown")
    assert result.n_answered == 2
    assert not (tmp_path / "out" / "ledger.jsonl").exists()


# Kills


def batch_in_child(folder: str, url: str, max_cost: float) -> None:
    """What runs in the process that is killed."""
    os.environ.update(ANTHROPIC_BASE_URL=url, ANTHROPIC_API_KEY=KEY)
    AnthropicBatches.most_requests = 20
    out = Path(folder)
    teacher = "anthropic:claude-sonnet-4-6"
    run(
        CollectConfig(
            out, teacher, out / "prompts.txt", batch=True, max_tokens=300, max_cost=max_cost, first_wait_seconds=0.05
        )
    )


@pytest.fixture
def child(server: BatchesServer, tmp_path: Path) -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["anthropic", "httpx2", "tests.contract.test_collect_batches"])
    return lambda max_cost: context.Process(target=batch_in_child, args=(str(tmp_path), server.url, max_cost))


def test_a_kill_between_the_making_of_a_batch_and_its_answer_neither_loses_nor_doubles_it(
    server, child, tmp_path
) -> None:
    (tmp_path / "prompts.txt").write_text("\n".join(f"Prompt {number}" for number in range(5)))
    first = child(1.0)
    server.on_create = first.kill
    first.start()
    first.join(30)
    assert first.exitcode == -signal.SIGKILL
    assert [line["do"] for line in log_of(tmp_path)] == ["announce"]
    assert bill_of(tmp_path).total.n_under_way == 5
    server.on_create = lambda: None
    second = child(1.0)
    second.start()
    second.join(60)
    assert second.exitcode == 0
    assert len(server.batches) == 1
    assert len(answers(tmp_path)) == 5
    assert bill_of(tmp_path).total_usd == pytest.approx(5 * HALF_USD)


def test_ten_kills_lose_nothing_batch_nothing_twice_and_stay_under_the_cap(server, child, tmp_path) -> None:
    n_prompts, n_kills, cap = 100, 10, 0.45
    (tmp_path / "prompts.txt").write_text("\n".join(f"Prompt {number}" for number in range(n_prompts)))
    server.looks_until_ended = 3
    server.outcome = lambda prompt, nth: (
        EXPIRED if nth == 1 and prompt.endswith("7") else succeeded(f"Batched answer to {prompt}")
    )
    chance = random.Random(7)
    for kill in range(n_kills + 1):
        process = child(cap)
        process.start()
        if kill < n_kills:
            time.sleep(chance.uniform(0.15, 0.6))
            process.kill()
        process.join(100)
        if (tmp_path / "ledger.jsonl").exists():
            total = bill_of(tmp_path).total
            in_batches = sum(len(batch.requests) for batch in server.batches.values())
            n_free = sum(prompt.endswith("7") for prompt in set(server.batched))
            assert (in_batches - n_free) * HALF_USD - 1e-9 <= total.usd <= cap
    assert process.exitcode == 0
    assert sorted(answers(tmp_path)) == sorted(f"Prompt {number}" for number in range(n_prompts))
    assert all(count == 1 + prompt.endswith("7") for prompt, count in Counter(server.batched).items())
    assert len(journal_of(tmp_path)) == n_prompts
    assert bill_of(tmp_path).total_usd == pytest.approx(n_prompts * HALF_USD)


# The command


@pytest.fixture
def project(tmp_path: Path, server: BatchesServer) -> list[str]:
    (tmp_path / "prompts.txt").write_text("One\nTwo\nThree\n")
    return [
        "collect", "--prompts", str(tmp_path / "prompts.txt"), "--out", str(tmp_path / "out"), "--teacher",
        "anthropic:claude-sonnet-4-6",
    ]  # fmt: skip


def command(*arguments: str) -> int:
    """Run it; its exit code."""
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    return int(ended.value.code or 0)


def test_a_dry_run_says_what_a_batch_costs_and_what_is_under_way(server, collect, project, tmp_path) -> None:
    server.looks_until_ended = 0
    interrupted(server, collect, "One", "Two", batch=True)
    file = tmp_path / "prompts.txt"
    file.write_text("One\nTwo\nThree\n")
    config = CollectConfig(tmp_path / "out", "anthropic:claude-sonnet-4-6", file, batch=True)
    expected = estimate(config)
    assert (expected.n_prompts, expected.n_to_ask, expected.n_under_way) == (3, 1, 2)
    assert expected.usd is not None
    assert expected.batch_usd == pytest.approx(expected.usd / 2)


def test_the_command_ends_with_an_error_while_a_batch_is_under_way(server, collect, project, capsys) -> None:
    server.looks_until_ended = 0
    interrupted(server, collect, "One", "Two", batch=True)
    (Path(project[2])).write_text("One\nTwo\nThree\n")
    assert command(*project) == 1
    printed = capsys.readouterr()
    assert "1 of 3 answered" in printed.out
    assert "2 prompts are in a batch that is under way" in printed.err
    assert "run the same command with --wait" in printed.err
    server.looks_until_ended = 1
    assert command(*project, "--wait") == 0
    assert "batches saved" in capsys.readouterr().out
    for file in (Path(project[4])).rglob("*"):
        assert file.is_dir() or KEY.encode() not in file.read_bytes()


def test_a_run_waits_for_what_is_under_way(server, collect, tmp_path) -> None:
    server.looks_until_ended = 0
    interrupted(server, collect, "One", "Two", batch=True)
    server.looks_until_ended = server.batches["msgbatch_01"].n_looks + 3
    file = tmp_path / "prompts.txt"
    file.write_text("One\nTwo\nThree\n")
    config = CollectConfig(tmp_path / "out", "anthropic:claude-sonnet-4-6", file, first_wait_seconds=0.01)
    outcome = pipeline.perform("collect", config, tmp_path / "manifests")
    assert (outcome.result["n_answered"], outcome.result["n_new"], outcome.result["n_under_way"]) == (3, 3, 0)
    assert outcome.result["bill"]["total_usd"] == pytest.approx(REAL_USD + 2 * HALF_USD)
    assert server.prompts == ["Three"]
    assert pipeline.perform("collect", dataclasses.replace(config, batch=True), tmp_path / "manifests").skipped


def test_wait_without_a_batch_says_so_and_what_is_missing(server, project, capsys) -> None:
    assert command(*project, "--wait") == 1
    said = capsys.readouterr().err
    assert "3 prompts have not been asked" in said
    assert "run the same command without --wait" in said
    assert server.calls == []


@pytest.mark.parametrize("teacher", ["openai:some-model@http://localhost:9/v1", "recorded:sample"])
def test_a_teacher_without_batches_is_refused_before_anything_is_written(project, tmp_path, teacher, capsys) -> None:
    assert command(*project[:-1], teacher, "--batch") == 1
    assert "has no batches" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_damaged_log_and_a_damaged_or_missing_file_of_requests_are_named_with_a_way_on(
    server, collect, tmp_path
) -> None:
    server.looks_until_ended = 0
    interrupted(server, collect, n=2, batch=True)
    file = tmp_path / "out" / "batches" / "1.jsonl"
    whole = file.read_text()
    for damage in ("{\n", whole.replace('"prompt"', '"promt"')):
        file.write_text(damage)
        with pytest.raises(InputError, match=r"1\.jsonl"):
            collect(n=2)
    file.unlink()
    with pytest.raises(DistillError, match=r"1\.jsonl") as raised:
        collect(n=2)
    assert "batches" in raised.value.next_step
    file.write_text(whole)
    log = tmp_path / "out" / "batches" / "log.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    for damage in (lines[1], lines[0].replace('"at": "2', '"at": "x'), "5\n"):
        log.write_text(damage)
        with pytest.raises(InputError, match=r"log\.jsonl: 1 problem") as damaged:
            collect(n=2)
        assert damaged.value.problems[0].startswith("log.jsonl:1: ")
    log.write_text("".join(lines))
    server.looks_until_ended = 1
    assert collect(n=2).n_answered == 2
    assert server.calls == []
