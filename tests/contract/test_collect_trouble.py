"""collect through the real Anthropic SDK: what is waited out, what stops the run, what skips one prompt."""

from __future__ import annotations

import json
import re
import resource
import sys
import time
from pathlib import Path

import pytest

from mlx_distill.cli import main
from mlx_distill.errors import InputError, TeacherError
from mlx_distill.events import Event, Progress
from tests.support.collecting import KEY, Collect, Records, cautions, scripted, usage_of
from tests.support.hostile_server import HOSTILE, hostile_reply
from tests.support.messages_server import DROPPED, Call, MessagesServer, Reply, answer, error, message, streamed, text

# What is waited out


@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        (error(429, "rate_limit_error", "Too many requests"), "rate limit (429): Too many requests"),
        (error(500, "api_error", "Internal server error"), "server error (500)"),
        (Reply(502, "<html>Bad gateway</html>"), "server error (502)"),
        (error(503, "api_error", "Unavailable"), "overloaded (503)"),
        (error(529, "overloaded_error", "Overloaded"), "overloaded (529): Overloaded"),
        (DROPPED, "no connection"),
        (Reply(body=message(text("An answer that breaks off")), cut=True), "no connection"),
        (Reply(body='{"id": "msg_1", "cont', headers={"content-type": "application/json"}), "response is damaged"),
    ],
    ids=["429", "500", "502", "503", "529", "dropped", "cut", "damaged"],
)
def test_trouble_that_passes_is_waited_out_and_said(
    server: MessagesServer, collect: Collect, records: Records, events: list[Event], trouble: Reply, said: str
) -> None:
    server.script = scripted(trouble, trouble, answer("At last."))
    assert collect().n_answered == 1
    assert records()[0]["answer"] == "At last."
    assert len(server.calls) == 3
    [line] = cautions(events)
    assert said in line
    assert "retrying in" in line
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
def test_trouble_inside_a_stream_is_waited_out(
    server: MessagesServer, collect: Collect, records: Records, broken: Reply
) -> None:
    server.script = scripted(broken, streamed("Whole."))
    collect(max_tokens=32_000)
    assert [record["answer"] for record in records()] == ["Whole."]
    assert len(server.calls) == 2


# What stops the run

STOPS = [
    (error(401, "authentication_error", f"invalid key {KEY}"), "refused the API key (401): invalid key [key]"),
    (error(402, "billing_error", "Payment required"), "no balance"),
    (
        error(400, "invalid_request_error", "Your credit balance is too low to access the API."),
        "no balance or has reached its limit (400)",
    ),
    (error(429, "rate_limit_error", "Spend limit", code="enforced_spend_limit_reached"), "reached its limit (429)"),
    (error(403, "permission_error", "Not allowed"), "may not use claude-sonnet-4-6 at Anthropic (403)"),
    (error(404, "not_found_error", "model: claude-sonnet-4-6"), "has no model 'claude-sonnet-4-6' (404)"),
    (
        error(400, "invalid_request_error", "You have reached your specified API usage limits."),
        "no balance or has reached its limit (400): You have",
    ),
    (Reply(404, "<html>Not found</html>"), "has no Messages API (404)"),
    (error(400, "invalid_request_error", "max_tokens: 99 > 64"), "refused the request (400): max_tokens: 99 > 64"),
    (Reply(body="<html>Log in to the hotel network</html>"), "does not speak the Messages API"),
    (Reply(body={"ok": True}), "does not speak the Messages API"),
]


@pytest.mark.parametrize(("reply", "said"), STOPS, ids=[said for _, said in STOPS])
def test_fatal_error_stops_the_run_with_one_line(
    server: MessagesServer, collect: Collect, records: Records, reply: Reply, said: str
) -> None:
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


ODD_SHAPES = {
    "null": "null",
    "text of null": message({"type": "text", "text": None}),
    "text of a number": message({"type": "text", "text": 5}),
    "block of null": {**message(), "content": [None]},
    "stop_reason of a list": message(text("Fine."), stop_reason=["a"]),
    "model of a number": message(text("Fine."), model=5),
    "usage of text": message(text("Fine."), usage={"input_tokens": "100", "output_tokens": "50"}),
    "negative usage": message(text("Fine."), usage={"input_tokens": -2_000_000, "output_tokens": 1}),
    "usage of NaN": message(text("Fine."), usage={"input_tokens": float("nan"), "output_tokens": 5}),
    "not UTF-8": json.dumps(message(text("caf\u00e9")), ensure_ascii=False).encode("latin-1"),
    "too deep": b"[" * 5000 + b"]" * 5000,
}


@pytest.mark.parametrize("name", ODD_SHAPES)
def test_malformed_answer_stops_and_counts_in_full(
    server: MessagesServer, collect: Collect, tmp_path: Path, name: str
) -> None:
    server.script = scripted(Reply(body=ODD_SHAPES[name]))
    with pytest.raises(TeacherError) as raised:
        collect(wait_minutes=0.001, max_cost=0.5)
    assert re.search("is not a message|response is damaged", raised.value.message)
    total = usage_of(tmp_path / "out").total
    assert total.n_unknown == len(server.calls) > 0
    assert 0.0 < total.usd == total.unknown_usd <= 0.5


@pytest.mark.parametrize("trouble", list(HOSTILE))
def test_a_hostile_server_is_refused_in_one_line(server: MessagesServer, collect: Collect, trouble: str) -> None:
    with MessagesServer(lambda call: answer()).running() as other:
        server.script = lambda call: hostile_reply(trouble, f"{other.url}/v1/messages")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with pytest.raises(TeacherError, match=HOSTILE[trouble]) as caught:
            collect()
        assert other.calls == []
    assert "\n" not in caught.value.message
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 200_000 * (1024 if sys.platform == "darwin" else 1)  # kilobytes on Linux


def test_a_near_model_name_is_proposed(server: MessagesServer, collect: Collect) -> None:
    server.script = scripted(error(404, "not_found_error", "model: claude-sonet-4-6"))
    with pytest.raises(InputError, match=r"No price is known.*Did you mean claude-sonnet-4-6\?"):
        collect(teacher="anthropic:claude-sonet-4-6")
    assert server.calls == []
    with pytest.raises(TeacherError) as raised:
        collect(teacher="anthropic:claude-sonet-4-6", track_costs=False)
    assert raised.value.next_step == "Did you mean anthropic:claude-sonnet-4-6?"


def test_answers_under_way_when_the_run_has_to_stop_are_kept(
    server: MessagesServer, collect: Collect, records: Records
) -> None:
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
def test_bad_key_is_found_before_anything_is_sent(
    server: MessagesServer, collect: Collect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str | None
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


def test_unusable_teacher_keeps_the_earlier_index(server: MessagesServer, collect: Collect, tmp_path: Path) -> None:
    collect("First")
    index = (tmp_path / "out" / "collect.json").read_text()
    server.script = scripted(STOPS[0][0])
    with pytest.raises(TeacherError):
        collect("Second")
    assert (tmp_path / "out" / "collect.json").read_text() == index


def test_rejected_configuration_stops_and_names_a_prompt(server: MessagesServer, collect: Collect) -> None:
    server.script = lambda call: error(400, "invalid_request_error", "system: must not be empty")
    with pytest.raises(TeacherError, match=r"^prompt-\d+-\w+: Anthropic refused the request \(400\): system"):
        collect(n=50, concurrency=2)
    assert len(server.calls) <= 4
    with pytest.raises(TeacherError, match=r"\n  only-one"):
        collect("Only one")


# What skips one prompt


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (error(400, "invalid_request_error", "prompt is too long: 209000 tokens > 200000 maximum"), "too long"),
        (error(413, "request_too_large", "Request exceeds the maximum size"), "too long"),
        (error(400, "invalid_request_error", "Output blocked by content filtering policy"), "blocked"),
        (error(400, "invalid_request_error", "text content blocks must contain non-whitespace text"), "refused"),
    ],
)
def test_unanswerable_prompt_is_skipped_with_its_reason(
    server: MessagesServer,
    collect: Collect,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    reply: Reply,
    said: str,
) -> None:
    server.script = lambda call: reply if call.prompt == "Prompt 1" else answer()
    result = collect(n=3)
    assert result.n_answered == 2
    [skipped] = result.failed
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
    assert f"continue without them: mlx-distill prepare --data {out}" in printed.err
    assert said in printed.err
