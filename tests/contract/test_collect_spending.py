"""The costs of collecting, through the real SDK: the cap, the estimate before, the bill after, and retries chosen."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path

import pytest

from mlx_distill.cli import main
from mlx_distill.errors import BudgetError, InputError, TeacherError
from mlx_distill.events import Event
from mlx_distill.models.context import TEACHER_SYSTEM
from mlx_distill.records import build_messages
from mlx_distill.teachers import openai
from mlx_distill.teachers.pricing import PRICES, Price, worst_case_usd
from tests.e2e.test_chat_terminal import Terminal
from tests.support.collecting import REAL_USD, Collect, Records, cautions, scripted, usage_of
from tests.support.messages_server import (
    DROPPED,
    MessagesServer,
    Reply,
    answer,
    error,
    message,
    streamed,
    text,
    thinking,
)

SLOW = Reply(body=message(text("Fine.")), after_seconds=0.02)


def worst(max_tokens: int = 4096) -> float:
    """Return the cost of one prompt of eight bytes."""
    usd = worst_case_usd(PRICES["claude-sonnet-4-6"], build_messages("Prompt 0", TEACHER_SYSTEM), max_tokens)
    assert usd is not None
    return usd


# The cap


def test_cap_stops_and_names_what_is_left(
    server: MessagesServer, collect: Collect, records: Records, tmp_path: Path
) -> None:
    server.script = lambda call: SLOW
    cap = 3 * worst(300)
    with pytest.raises(BudgetError) as raised:
        collect(n=60, concurrency=64, max_tokens=300, max_cost=cap)
    n_answered = len(records())
    assert server.max_at_once <= 3
    assert cap - worst(300) - 1e-5 < usage_of(tmp_path / "out").total_usd <= cap
    assert n_answered == len(server.calls) == int((cap - worst(300)) / REAL_USD) + 1
    said = re.search(r"(\d+) of 60 prompts are left: about ([\d.]+) USD, at most ([\d.]+) USD", raised.value.message)
    assert said
    assert int(said[1]) == 60 - n_answered
    assert float(said[2]) == pytest.approx(int(said[1]) * REAL_USD, rel=0.5)
    enough = re.search(r"--max-cost ([\d.]+)", raised.value.next_step)
    assert enough
    assert collect(n=60, max_tokens=300, max_cost=float(enough[1])).n_answered == 60
    assert len(server.calls) == 60
    assert len(json.loads((tmp_path / "out" / "collect.json").read_text())["answers"]) == 60


def test_a_cap_too_small_for_one_request_sends_nothing(server: MessagesServer, collect: Collect) -> None:
    with pytest.raises(BudgetError, match=r"0\.00 USD are spent"):
        collect(max_cost=worst() * 0.99)
    assert server.calls == []


def test_dropped_connections_count_and_overloads_do_not(
    server: MessagesServer, collect: Collect, tmp_path: Path
) -> None:
    server.script = lambda call: DROPPED if call.nth % 2 else error(529, "overloaded_error", "Overloaded")
    with pytest.raises(BudgetError, match="for requests of unknown outcome"):
        collect(n=1, max_cost=2.5 * worst())
    total = usage_of(tmp_path / "out").total
    assert (total.n_answers, total.n_unknown) == (0, 2)
    assert total.unknown_usd == pytest.approx(2 * worst())
    assert len(server.calls) == 3


def closed_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
    return port


@pytest.mark.parametrize("teacher", ["anthropic:claude-sonnet-4-6", "openai:claude-sonnet-4-6"])
def test_what_never_reached_a_server_costs_nothing(
    collect: Collect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, teacher: str
) -> None:
    """Away from the network a thousand attempts would else use up the cap."""
    monkeypatch.setattr(
        openai, "is_loopback", lambda _url: False
    )  # else a server on this machine is not counted at all
    monkeypatch.setenv("ANTHROPIC_API_KEY", "none")
    for name in ("ANTHROPIC_BASE_URL", "OPENAI_BASE_URL"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{closed_port()}")
    with pytest.raises(TeacherError, match="no connection"):
        collect(n=2, teacher=teacher, wait_minutes=0.005, max_cost=3 * worst())
    assert usage_of(tmp_path / "out").total_usd == 0.0


def test_a_refused_key_leaves_the_budget_whole(server: MessagesServer, collect: Collect, tmp_path: Path) -> None:
    server.script = scripted(error(401, "authentication_error", "invalid key"))
    with pytest.raises(TeacherError, match="refused the API key"):
        collect(n=10, concurrency=10, max_cost=20 * worst())
    assert usage_of(tmp_path / "out").total_usd == 0.0


def test_a_retry_that_does_not_fit_leaves_the_answer_as_it_is(
    server: MessagesServer, collect: Collect, events: list[Event]
) -> None:
    server.script = scripted(answer("And so", stop_reason="max_tokens"))
    assert collect(max_cost=worst() + REAL_USD).stop_reasons == {"max_tokens": 1}
    assert len(server.calls) == 1
    assert any("keeping the first answer" in line for line in cautions(events))


def test_missing_stream_stops_the_run(server: MessagesServer, collect: Collect, tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match="does not stream"):
        collect(max_tokens=32_000)
    assert len(server.calls) == 1
    assert usage_of(tmp_path / "out").total.n_unknown == 1


# Before


def test_model_without_price_is_refused_unless_untracked(
    server: MessagesServer, collect: Collect, tmp_path: Path
) -> None:
    server.script = scripted(answer(model="claude-new"))
    with pytest.raises(InputError, match="No price is known for claude-new"):
        collect(teacher="anthropic:claude-new")
    assert server.calls == []
    collect("One", teacher="anthropic:claude-new", prices={"claude-new": Price(1.0, 2.0)})
    assert usage_of(tmp_path / "out").total_usd == pytest.approx((100 * 1 + 50 * 2) / 1e6)
    result = collect("Two", teacher="anthropic:claude-new", track_costs=False)
    assert (result.n_new, result.usage.models) == (1, ())


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "data").mkdir()
    prompts = [{"id": f"p{number}", "prompt": f"Prompt {number}"} for number in range(10)]
    (tmp_path / "data" / "prompts.jsonl").write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts))
    (tmp_path / "distill.toml").write_text('name = "demo"\nmax_cost = 5.0\n')
    monkeypatch.chdir(tmp_path)
    return tmp_path


def printed_by(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    printed = capsys.readouterr()
    assert ended.value.code == 0, printed.err
    return printed.out


@pytest.mark.parametrize("command", ["collect", "expand", "run"])
def test_dry_run_sends_and_writes_nothing(
    server: MessagesServer, project: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    before = sorted(project.rglob("*"))
    out = printed_by(capsys, command, "--dry-run")
    for words in ("10 of 10 prompts to ask", "of at most 5.00 USD", "an assumption"):
        assert words in out
    assert ("in batches" in out) == (command != "expand")  # which makes none
    expected = json.loads(printed_by(capsys, command, "--dry-run", "--json"))
    assert (expected["n_to_ask"], expected["spent_usd"], expected["max_cost"]) == (10, 0.0, 5.0)
    assert expected["batch_usd"] == (None if command == "expand" else pytest.approx(expected["usd"] / 2))
    assert 0 < expected["usd"] < expected["worst_usd"]
    assert server.calls == []
    assert sorted(project.rglob("*")) == before


def test_estimate_uses_the_mean_of_known_answers(
    server: MessagesServer, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    printed_by(capsys, "collect", "--limit", "5", "--json")
    expected = json.loads(printed_by(capsys, "collect", "--dry-run", "--json"))
    assert (expected["n_answered"], expected["n_to_ask"], expected["output_tokens"]) == (5, 5, 250)
    assert "the mean of 5 answers" in expected["basis"]
    assert expected["spent_usd"] == pytest.approx(5 * REAL_USD)


def test_run_asks_once_on_a_terminal_before_anything_is_sent(server: MessagesServer, project: Path) -> None:
    terminal = Terminal(["run"], project)
    terminal.wait_for(r"worst case: 1\.86 USD")  # ten prompts, 4,096 tokens and once more 8,192
    terminal.wait_for(r"Go on\?")
    terminal.leave("n\r", code=130)
    terminal.close()
    assert server.calls == []


# After


def test_the_bill_says_what_was_paid_for(
    server: MessagesServer, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    usage = {"input_tokens": 100, "output_tokens": 50, "output_tokens_details": {"thinking_tokens": 30}}
    usage |= {"cache_creation_input_tokens": 1000, "cache_read_input_tokens": 2000}
    server.script = lambda call: DROPPED if call.prompt == "Prompt 3" and call.nth == 1 else answer(usage=usage)
    out = printed_by(capsys, "collect")
    for words in ("10 answers: input 1,000 tokens", "output 500 tokens", "thinking 300", "cache 30,000 tokens"):
        assert words in out
    assert "unknown outcome 1, in full 0.06 USD" in out
    assert "unknown outcome 1" in out
    result = json.loads(printed_by(capsys, "collect", "--json"))
    assert result["usage"] == {"models": [], "total_usd": 0}
    [line] = result["total_usage"]["models"]
    assert (line["n_answers"], line["n_unknown"], line["n_repeated"]) == (10, 1, 0)
    assert line["cache_usd"] == pytest.approx(10 * (1000 * 1.25 + 2000 * 0.1) * 3e-6)


# Asked again


def test_refusals_are_retried_only_on_request(server: MessagesServer, collect: Collect, events: list[Event]) -> None:
    replies = {
        "a": answer(stop_reason="refusal"),
        "b": Reply(body=message(thinking("Hm."))),
        "c": Reply(body=message()),
        "d": answer("Fine."),
    }
    server.script = lambda call: replies[call.prompt]
    assert collect(*"abcd").stop_reasons == {"refusal": 1, "empty": 2, "end_turn": 1}
    assert any("2 empty (empty; thinking only)" in line for line in cautions(events))
    assert collect(*"abcd").n_new == 0
    server.script = scripted(answer("Whatever."))
    assert collect(*"abcd", retry=("refusal",)).n_new == 1
    assert collect(*"abcd", retry=("empty", "refusal")).n_new == 2
    assert collect(*"abcd", retry=("empty", "refusal", "max_tokens")).n_new == 0
    assert [server.prompts.count(prompt) for prompt in "abcd"] == [2, 2, 2, 1]


def test_retry_option_takes_known_statuses_only(
    server: MessagesServer, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.script = lambda call: answer(stop_reason="refusal") if call.nth == 1 else answer()
    printed_by(capsys, "collect")
    result = json.loads(printed_by(capsys, "collect", "--retry", "max_tokens, refusal", "--json"))
    assert (result["n_new"], result["stop_reasons"]) == (10, {"end_turn": 10})
    with pytest.raises(SystemExit):
        main(["collect", "--retry", "everything"])
    assert "'everything' is not one of max_tokens, refusal, empty" in capsys.readouterr().err


def test_another_max_tokens_asks_only_for_what_was_cut_off(
    server: MessagesServer, collect: Collect, tmp_path: Path
) -> None:
    server.script = lambda call: answer(stop_reason="end_turn" if call.prompt == "Prompt 0" else "max_tokens")
    collect(n=2, max_tokens=8192)
    assert len(server.calls) == 2
    assert collect(n=2, max_tokens=2000).n_new == 0
    server.script = lambda call: streamed("And so it ends.")
    assert collect(n=2, max_tokens=10_000).stop_reasons == {"end_turn": 2}
    assert server.prompts[2:] == ["Prompt 1"]
    index = json.loads((tmp_path / "out" / "collect.json").read_text())["answers"]
    journal = [json.loads(line) for line in (tmp_path / "out" / "teacher_data.jsonl").read_text().splitlines()]
    complete = {record["key"] for record in journal if record["stop_reason"] == "end_turn"}
    assert {item["key"] for item in index} == complete
