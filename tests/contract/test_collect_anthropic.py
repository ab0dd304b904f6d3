"""collect through the real Anthropic SDK, against a server that speaks the Messages API."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mlx_distill.cli import main
from mlx_distill.collect import TEACHER_SYSTEM, CollectResult
from mlx_distill.errors import InputError, Interrupted, TeacherError
from mlx_distill.events import Note, Progress
from tests.conftest import Finished
from tests.contract.collecting import KEY, cautions, journal_of, scripted
from tests.contract.messages_server import (
    DROPPED,
    Call,
    Reply,
    answer,
    error,
    message,
    streamed,
    text,
    thinking,
)

RATE_LIMITED = error(429, "rate_limit_error", "Too many requests")


# What an answer becomes


def test_an_answer_is_journalled_with_what_was_asked_and_what_it_cost(server, collect, records) -> None:
    result = collect("What is a queue?")
    assert (result.n_prompts, result.n_answered, result.n_new) == (1, 1, 1)
    assert result.cost_usd == pytest.approx((100 * 3 + 50 * 15) / 1e6)
    [record] = records()
    assert record["answer"] == "Answer to What is a queue?"
    assert record["stop_reason"] == "end_turn"
    assert record["usage"]["output_tokens"] == 50
    assert record["cost_usd"] == pytest.approx(0.00105)
    assert [message["role"] for message in record["messages"]] == ["system", "user"]
    [call] = server.calls
    assert call.body["model"] == "claude-sonnet-4-6"
    assert call.body["system"] == TEACHER_SYSTEM
    assert call.body["messages"] == [{"role": "user", "content": "What is a queue?"}]
    assert call.body["max_tokens"] == 4096
    assert not {"temperature", "top_p", "top_k", "stream"} & call.body.keys()
    assert KEY in f"{call.headers.get('authorization')} {call.headers.get('x-api-key')}"


def test_several_text_blocks_are_joined(server, collect, records) -> None:
    server.script = scripted(Reply(body=message(text("One, "), text("two."))))
    collect()
    assert records()[0]["answer"] == "One, two."


def test_thinking_blocks_are_skipped(server, collect, records) -> None:
    server.script = scripted(Reply(body=message(thinking("Hm."), text("Said."), thinking("Hm?"))))
    collect()
    assert records()[0]["answer"] == "Said."


def test_a_cut_off_answer_is_asked_once_more_with_twice_the_limit_and_kept_as_what_it_is(
    server, collect, records
) -> None:
    server.script = scripted(answer("And so", stop_reason="max_tokens"))
    assert collect().stop_reasons == {"max_tokens": 1}
    assert collect().n_new == 0
    assert [(record["stop_reason"], record["max_tokens"]) for record in records()] == [
        ("max_tokens", 4096),
        ("max_tokens", 8192),
    ]
    assert [call.body["max_tokens"] for call in server.calls] == [4096, 8192]
    assert not any(call.body.get("stream") for call in server.calls)


def test_the_longer_answer_takes_the_place_of_the_one_that_was_cut_off(server, collect, records) -> None:
    server.script = scripted(answer("And so", stop_reason="max_tokens"), answer("And so it ends."))
    result = collect()
    assert (result.stop_reasons, result.n_new) == ({"end_turn": 1}, 1)
    assert result.total_bill.total.n_answers == 2
    assert result.total_bill.total.n_retries == 1
    cut, whole = records()
    assert cut["key"] == whole["key"]
    assert collect().n_new == 0
    assert len(server.calls) == 2


def test_no_answer_is_asked_for_with_more_than_can_come_in_one_piece_by_itself(server, collect) -> None:
    server.script = lambda call: streamed("Cut", stop_reason="max_tokens")
    collect(max_tokens=16_000)
    assert len(server.calls) == 1


def test_a_model_that_does_not_write_so_much_keeps_the_answer_that_was_cut_off(server, collect, events) -> None:
    server.script = lambda call: (
        error(400, "invalid_request_error", "max_tokens: 8192 > 4096, which is the maximum allowed")
        if call.body["max_tokens"] > 4096
        else answer("And so", stop_reason="max_tokens")
    )
    result = collect(n=3, concurrency=1)
    assert result.stop_reasons == {"max_tokens": 3}
    assert len(server.calls) == 4
    assert any("stays as it is (max_tokens): Anthropic refused" in line for line in cautions(events))
    assert result.total_bill.total.n_unknown == 0


def test_a_refusal_without_content_is_kept_with_its_category(server, collect, records, events) -> None:
    details = {"type": "refusal", "category": "frontier_llm", "explanation": "It trains a model."}
    server.script = scripted(Reply(body=message(stop_reason="refusal", stop_details=details)))
    assert collect().stop_reasons == {"refusal": 1}
    [record] = records()
    assert (record["answer"], record["detail"]) == ("", "frontier_llm: It trains a model.")
    assert any("1 refused (frontier_llm" in line for line in cautions(events))
    collect()
    assert len(server.calls) == 1


def test_an_answer_of_thinking_only_is_kept_as_empty(server, collect, records) -> None:
    server.script = scripted(Reply(body=message(thinking("Hm."), stop_reason="max_tokens")))
    collect()
    assert records()[0]["answer"] == ""


def test_a_long_answer_is_streamed(server, collect, records) -> None:
    server.script = scripted(streamed("Long."))
    collect(max_tokens=32_000)
    assert server.calls[0].body["stream"] is True
    [record] = records()
    assert (record["answer"], record["stop_reason"]) == ("Long.", "end_turn")
    assert record["usage"]["output_tokens"] == 50


def test_an_unknown_price_is_said_once_and_counted_as_unknown(server, collect, records, events) -> None:
    server.script = scripted(answer(model="claude-new"))
    assert collect(n=3).cost_usd == 0
    assert [record["cost_usd"] for record in records()] == [None] * 3
    assert sum("No price is known for claude-new" in line for line in cautions(events)) == 1


def test_the_terms_of_the_teacher_are_said(server, collect, events) -> None:
    collect()
    assert any(isinstance(event, Note) and "terms of service" in event.text for event in events)


# What is waited out


@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        (RATE_LIMITED, "rate limit (429): Too many requests"),
        (error(500, "api_error", "Internal server error"), "server error (500)"),
        (Reply(502, "<html>Bad gateway</html>"), "server error (502)"),
        (error(503, "api_error", "Unavailable"), "overloaded (503)"),
        (error(529, "overloaded_error", "Overloaded"), "overloaded (529): Overloaded"),
        (DROPPED, "no connection"),
        (Reply(body=message(text("An answer that breaks off")), cut=True), "no connection"),
        (Reply(body='{"id": "msg_1", "cont', headers={"content-type": "application/json"}), "arrived damaged"),
    ],
    ids=["429", "500", "502", "503", "529", "dropped", "cut", "damaged"],
)
def test_trouble_that_passes_is_waited_out_and_said(server, collect, records, events, trouble, said) -> None:
    server.script = scripted(trouble, trouble, answer("At last."))
    assert collect().n_answered == 1
    assert records()[0]["answer"] == "At last."
    assert len(server.calls) == 3
    [line] = cautions(events)
    assert said in line
    assert "asking again in" in line
    assert "gives up after 12 s" in line
    assert any(isinstance(event, Progress) and "waiting" in event.note for event in events)


@pytest.mark.parametrize(
    "broken",
    [
        Reply(events=(("error", {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}),)),
        Reply(events=(("ping", {"type": "ping"}),)),
        Reply(events=streamed("An answer that breaks off").events, cut=True),
    ],
    ids=["overloaded", "empty", "cut"],
)
def test_trouble_inside_a_stream_is_waited_out(server, collect, records, broken) -> None:
    server.script = scripted(broken, streamed("Whole."))
    collect(max_tokens=32_000)
    assert [record["answer"] for record in records()] == ["Whole."]
    assert len(server.calls) == 2


def test_retry_after_is_obeyed(server, collect) -> None:
    server.script = scripted(error(429, "rate_limit_error", "Slow down", retry_after="0.4"), answer())
    collect()
    first, second = server.calls
    assert 0.4 <= second.at - first.at < 1.5


def test_a_rate_limit_holds_everybody_back_and_halves_what_is_in_flight(server, collect) -> None:
    def script(call: Call) -> Reply:
        if call.nth == 1 and int(call.prompt.split()[1]) < 4:
            return error(429, "rate_limit_error", "Slow down", retry_after="1.2")
        return Reply(body=message(text("Fine.")), after_seconds=0.1)

    server.script = script
    assert collect(n=24, concurrency=8).n_answered == 24
    began = server.calls[0].at
    assert not [call for call in server.calls if 0.6 < call.at - began < 1.15]
    after = [call.at for call in server.calls if call.at - began >= 1.15]
    assert len([at for at in after if at < after[0] + 0.08]) <= 4


def test_a_wait_longer_than_the_limit_ends_the_run_at_once(server, collect) -> None:
    server.script = scripted(error(429, "rate_limit_error", "Daily limit", retry_after="3600"))
    with pytest.raises(TeacherError, match=r"longer than 12 s.*Daily limit.*asks to wait 3600 s"):
        collect()
    assert len(server.calls) == 1


def test_a_teacher_that_stays_out_of_reach_is_given_up_after_the_limit(server, collect) -> None:
    server.script = scripted(error(529, "overloaded_error", "Overloaded"))
    began = time.monotonic()
    with pytest.raises(TeacherError, match="Overloaded") as raised:
        collect(wait_minutes=0.01)
    assert 0.5 < time.monotonic() - began < 3
    assert "--wait-minutes" in raised.value.next_step


def test_a_prompt_that_keeps_failing_while_others_are_answered_is_skipped(server, collect) -> None:
    def script(call: Call) -> Reply:
        if call.prompt == "Prompt 0":
            return error(500, "api_error", "Cannot")
        return Reply(body=message(text("Fine.")), after_seconds=0.15)

    server.script = script
    result = collect(n=8, concurrency=2, wait_minutes=0.01)
    assert result.n_answered == 7
    [skipped] = result.unanswered
    assert "while others were answered" in skipped.reason


# What stops the run


STOPS = [
    (error(401, "authentication_error", f"invalid key {KEY}"), "refused the API key (401): invalid key [key]"),
    (error(402, "billing_error", "Payment required"), "no balance"),
    (
        error(400, "invalid_request_error", "Your credit balance is too low to access the API."),
        "no balance or has reached its spend limit (400)",
    ),
    (error(429, "rate_limit_error", "Spend limit", code="enforced_spend_limit_reached"), "spend limit (429)"),
    (error(403, "permission_error", "Not allowed"), "may not use claude-sonnet-4-6 (403)"),
    (error(404, "not_found_error", "model: claude-sonnet-4-6"), "knows no model 'claude-sonnet-4-6' (404)"),
    (error(400, "invalid_request_error", "max_tokens: 99 > 64"), "refused the request (400): max_tokens: 99 > 64"),
    (Reply(body="<html>Log in to the hotel network</html>"), "does not speak the Messages API"),
    (Reply(body={"ok": True}), "does not speak the Messages API"),
]


@pytest.mark.parametrize(("reply", "said"), STOPS, ids=[said for _, said in STOPS])
def test_what_cannot_be_waited_out_stops_the_run_at_once_in_one_line(server, collect, records, reply, said) -> None:
    server.script = lambda call: answer() if call.prompt == "Prompt 0" else reply
    collect("Prompt 0")
    began = time.monotonic()
    with pytest.raises(TeacherError) as raised:
        collect(n=50, concurrency=2)
    assert time.monotonic() - began < 2
    assert said in raised.value.message
    assert "\n" not in raised.value.message
    assert KEY not in str(raised.value)
    assert raised.value.next_step
    assert len(server.calls) <= 5
    assert len(records()) == 1


def test_a_near_model_name_is_proposed(server, collect) -> None:
    server.script = scripted(error(404, "not_found_error", "model: claude-sonet-4-6"))
    with pytest.raises(InputError, match=r"No price is known.*Did you mean claude-sonnet-4-6\?"):
        collect(teacher="anthropic:claude-sonet-4-6")
    assert server.calls == []
    with pytest.raises(TeacherError) as raised:
        collect(teacher="anthropic:claude-sonet-4-6", cost=False)
    assert raised.value.next_step == "Did you mean anthropic:claude-sonnet-4-6?"


def test_answers_under_way_when_the_run_has_to_stop_are_kept(server, collect, records) -> None:
    def script(call: Call) -> Reply:
        if call.prompt == "Prompt 3":
            return error(402, "billing_error", "Payment required")
        return Reply(body=message(text("Paid for.")), after_seconds=0.3)

    server.script = script
    with pytest.raises(TeacherError, match="no balance"):
        collect(n=50, concurrency=4)
    assert len(records()) == 3
    assert len(server.calls) == 4


@pytest.mark.parametrize("key", [None, "", "two words", "sk-ant-line\n", "sk-ant-ümlaut"])
def test_a_missing_or_impossible_key_is_found_before_anything_is_sent(
    server, collect, tmp_path, monkeypatch, key
) -> None:
    if key is None:
        monkeypatch.delenv("ANTHROPIC_API_KEY")
    else:
        monkeypatch.setenv("ANTHROPIC_API_KEY", key)
    with pytest.raises(TeacherError, match="API") as raised:
        collect()
    assert "Set ANTHROPIC_API_KEY" in raised.value.next_step
    assert server.calls == []
    assert not (tmp_path / "out").exists()
    if key:
        assert key not in str(raised.value)


def test_a_teacher_that_cannot_be_asked_leaves_an_earlier_index_alone(server, collect, tmp_path) -> None:
    collect("First")
    index = (tmp_path / "out" / "collect.json").read_text()
    server.script = scripted(STOPS[0][0])
    with pytest.raises(TeacherError):
        collect("Second")
    assert (tmp_path / "out" / "collect.json").read_text() == index


# What skips one prompt


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (error(400, "invalid_request_error", "prompt is too long: 209000 tokens > 200000 maximum"), "too long"),
        (error(413, "request_too_large", "Request exceeds the maximum size"), "too long"),
        (error(400, "invalid_request_error", "Output blocked by content filtering policy"), "blocked"),
    ],
)
def test_a_prompt_that_cannot_be_answered_is_skipped_with_its_reason(
    server, collect, tmp_path, monkeypatch, capsys, reply, said
) -> None:
    server.script = lambda call: reply if call.prompt == "Prompt 1" else answer()
    result = collect(n=3)
    assert result.n_answered == 2
    [skipped] = result.unanswered
    assert said in skipped.reason
    index = json.loads((tmp_path / "out" / "collect.json").read_text())
    assert len(index["answers"]) == 3
    assert [item["prompt_id"] for item in index["unanswered"]] == [skipped.prompt_id]

    prompts, out = str(tmp_path / "prompts.txt"), str(tmp_path / "out")
    with pytest.raises(SystemExit) as ended:
        main(["collect", "--prompts", prompts, "--out", out, "--teacher", "anthropic:claude-sonnet-4-6"])
    assert ended.value.code == 1
    printed = capsys.readouterr()
    assert "2 of 3 answered" in printed.out
    assert "1 of 3 prompts have no answer" in printed.err
    assert said in printed.err


# Once and only once


def test_a_rerun_asks_only_for_what_is_missing(server, collect, tmp_path) -> None:
    collect(n=5)
    result = collect(n=8)
    assert (result.n_answered, result.n_new) == (8, 3)
    assert max(Counter(server.prompts).values()) == 1
    index = json.loads((tmp_path / "out" / "collect.json").read_text())
    keys = {record["key"] for record in journal_of(tmp_path / "out")}
    assert len(index["answers"]) == 8
    assert {item["key"] for item in index["answers"]} == keys


def test_another_setting_asks_anew_and_keeps_what_was_paid_for(server, collect, records) -> None:
    collect(n=2)
    collect(n=2, system="Be brief.")
    assert len(records()) == 4
    assert collect(n=2).n_new == 0


def test_a_rerun_with_nothing_missing_needs_neither_key_nor_server(server, collect, monkeypatch) -> None:
    collect(n=3)
    monkeypatch.delenv("ANTHROPIC_API_KEY")
    assert collect(n=3).n_answered == 3


def test_a_torn_last_line_is_cut_off_said_and_asked_again(server, collect, records, tmp_path, events) -> None:
    collect(n=3)
    journal = tmp_path / "out" / "teacher_data.jsonl"
    journal.write_bytes(journal.read_bytes()[:-40])
    assert collect(n=3).n_new == 1
    assert len(records()) == 3
    assert any("half-written last line" in line for line in cautions(events))


def test_no_more_than_the_concurrency_are_in_flight_and_that_many_are(server, collect) -> None:
    server.script = lambda call: Reply(body=message(text("Fine.")), after_seconds=0.05)
    collect(n=30, concurrency=6)
    assert server.most_at_once == 6


def test_it_works_where_an_event_loop_runs_already(server, collect) -> None:
    async def notebook() -> CollectResult:
        return collect(n=3)

    assert asyncio.run(notebook()).n_answered == 3


# Stopped


@pytest.fixture
def own_handlers() -> Iterator[Callable[[], bool]]:
    """Signal handlers as a program around the library may have; tells whether they are still in place."""

    def on_term(_which: int, _frame: object) -> None:
        """Never called: the run catches the signal itself."""

    before = signal.signal(signal.SIGTERM, on_term)
    yield lambda: signal.getsignal(signal.SIGTERM) is on_term
    signal.signal(signal.SIGTERM, before)


def ctrl_c_after_eight_answers(call: Call) -> Reply:
    """Answers eight prompts, keeps the next four waiting, and presses Ctrl-C when the last of them is under way."""
    number = int(call.prompt.split()[1])
    if number == 11:
        os.kill(os.getpid(), signal.SIGINT)
    return Reply(body=message(text("Fine.")), after_seconds=0.05 if number < 8 else 20.0)


def test_ctrl_c_saves_what_arrived_and_the_index(server, collect, records, tmp_path, own_handlers) -> None:
    server.script = ctrl_c_after_eight_answers
    began = time.monotonic()
    with pytest.raises(Interrupted) as raised:
        collect(n=40, concurrency=4)
    assert time.monotonic() - began < 15
    assert own_handlers()
    assert raised.value.exit_code == 130
    assert len(records()) == 8
    assert "8 of 40 answers are saved" in raised.value.message
    assert "only for the 32 missing" in raised.value.next_step
    assert len(json.loads((tmp_path / "out" / "collect.json").read_text())["answers"]) == 40


def test_ctrl_c_reaches_a_round_beside_a_running_event_loop(server, collect, records) -> None:
    async def notebook() -> None:
        collect(n=40, concurrency=4)

    server.script = ctrl_c_after_eight_answers
    loop = asyncio.new_event_loop()  # asyncio.run would turn Ctrl-C into a cancellation of its own
    began = time.monotonic()
    try:
        with pytest.raises(Interrupted):
            loop.run_until_complete(notebook())
    finally:
        loop.close()
    assert time.monotonic() - began < 15
    assert len(records()) == 8


class Process:
    """A real `mlx-distill collect` of 40 prompts in its own project folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "data").mkdir(parents=True)
        lines = [json.dumps({"id": f"p{number}", "prompt": f"Prompt {number}"}) for number in range(40)]
        (folder / "data" / "prompts.jsonl").write_text("\n".join(lines))
        (folder / "distill.toml").write_text('name = "demo"\n[collect]\nconcurrency = 4\nfirst_wait_seconds = 0.05\n')

    @property
    def saved(self) -> list[str]:
        journal = self.folder / "data" / "demo" / "teacher_data.jsonl"
        if not journal.exists():
            return []
        return [record["prompt_id"].replace("p", "Prompt ") for record in journal_of(journal.parent)]

    def start(self) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "mlx_distill", "collect"]
        return subprocess.Popen(
            command, cwd=self.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ}
        )

    def stop_midway(self, which: signal.Signals) -> Finished:
        """Start it, wait until a quarter is saved, send it a signal."""
        running = self.start()
        deadline = time.monotonic() + 30
        while len(self.saved) < 10 and running.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        running.send_signal(which)
        out, err = running.communicate(timeout=30)
        return Finished(running.returncode, out, err)

    def finish(self) -> Finished:
        running = self.start()
        out, err = running.communicate(timeout=60)
        return Finished(running.returncode, out, err)


@pytest.mark.parametrize("which", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_after_a_kill_no_answer_that_arrived_is_lost_or_asked_again(server, tmp_path, which) -> None:
    server.script = lambda call: Reply(body=message(text(f"Answer to {call.prompt}")), after_seconds=0.1)
    process = Process(tmp_path / "project")
    stopped = process.stop_midway(which)
    if which == signal.SIGKILL:
        assert stopped.code == -signal.SIGKILL
    else:
        assert stopped.code == 128 + which
        assert "answers are saved" in stopped.err
    saved, asked_before = process.saved, server.prompts
    assert 10 <= len(saved) < 40

    finished = process.finish()
    assert finished.code == 0, finished.err
    assert "40 of 40 answered" in finished.out
    asked_after = server.prompts[len(asked_before) :]
    assert not set(saved) & set(asked_after), "an answer on the disk was asked for again"
    repeated = set(asked_before) & set(asked_after)
    assert len(repeated) <= 4, "more was repeated than was in flight"
    assert process.saved[: len(saved)] == saved
    assert sorted(process.saved) == sorted(f"Prompt {number}" for number in range(40))


def test_the_key_appears_in_no_output_and_no_file(server, cli, tmp_path) -> None:
    server.script = lambda call: (
        error(401, "authentication_error", f"bad key {KEY}") if len(server.calls) > 5 else answer()
    )
    process = Process(tmp_path / "project")
    finished = cli("collect", cwd=process.folder)
    assert finished.code == 1
    assert "refused the API key" in finished.err
    assert "Traceback" not in finished.err
    written = [file.read_text() for file in process.folder.rglob("*") if file.is_file()]
    assert len(process.saved) == 5
    assert not [content for content in (finished.out, finished.err, *written) if KEY in content or KEY[7:20] in content]


def test_the_command_ends_as_the_demo_does(server, cli, tmp_path) -> None:
    server.script = lambda call: answer(stop_reason="max_tokens" if call.prompt == "Prompt 7" else "end_turn")
    process = Process(tmp_path / "project")
    printed = cli("collect", cwd=process.folder)
    assert printed.code == 0
    for words in ("40 of 40 answered", "end_turn 39, max_tokens 1", "0.04 USD", "claude-sonnet-4-6", "data/demo"):
        assert words in printed.out
    again = cli("collect", "--json", cwd=process.folder)
    result = json.loads(again.out)
    assert (result["n_answered"], result["n_new"], result["cost_usd"]) == (40, 0, 0)
    assert result["total_cost_usd"] == pytest.approx(0.042)
