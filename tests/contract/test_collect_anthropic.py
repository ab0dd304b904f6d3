"""collect through the real Anthropic SDK: what an answer becomes, and that each is asked for once."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from mlx_distill.events import Event, Note
from mlx_distill.models.context import TEACHER_SYSTEM, ContextConfig
from tests.support.collecting import KEY, REAL_USD, Collect, Records, cautions, journal_of, scripted
from tests.support.messages_server import MessagesServer, Reply, answer, error, message, streamed, text, thinking

# What an answer becomes


def test_record_has_the_request_and_the_cost(server: MessagesServer, collect: Collect, records: Records) -> None:
    result = collect("What is a queue?")
    assert (result.n_prompts, result.n_answered, result.n_new) == (1, 1, 1)
    assert result.cost_usd == pytest.approx(REAL_USD)
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


def test_a_key_in_a_refusals_words_is_not_kept(server: MessagesServer, collect: Collect, tmp_path: Path) -> None:
    details = {"type": "refusal", "category": "cyber", "explanation": f"Seen: {KEY}"}
    server.script = scripted(Reply(body=message(stop_reason="refusal", stop_details=details)))
    collect()
    assert KEY not in "".join(file.read_text() for file in (tmp_path / "out").iterdir())
    assert "Seen: [key]" in journal_of(tmp_path / "out")[0]["detail"]


@pytest.mark.parametrize(
    ("blocks", "joined"),
    [
        ((text("One, "), text("two.")), "One, two."),
        ((thinking("Hm."), text("Said."), thinking("Hm?")), "Said."),
        ((thinking("Hm."),), ""),
    ],
)
def test_text_blocks_are_joined_without_thinking(
    server: MessagesServer, collect: Collect, records: Records, blocks: tuple[dict[str, str], ...], joined: str
) -> None:
    server.script = scripted(Reply(body=message(*blocks)))
    collect()
    assert records()[0]["answer"] == joined


def test_truncated_answer_is_retried_once_with_twice_the_limit(
    server: MessagesServer, collect: Collect, records: Records
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


def test_retry_replaces_a_truncated_answer(
    server: MessagesServer, collect: Collect, records: Records, tmp_path: Path
) -> None:
    server.script = scripted(answer("And so", stop_reason="max_tokens"), answer("And so it ends."))
    result = collect()
    assert (result.stop_reasons, result.n_new) == ({"end_turn": 1}, 1)
    assert result.total_usage.total.n_answers == 2
    assert result.total_usage.total.n_repeated == 1
    [listed] = json.loads((tmp_path / "out" / "collect.json").read_text())["answers"]
    assert listed["key"] == records()[1]["key"]
    assert collect().n_new == 0
    assert len(server.calls) == 2


def test_streamed_answers_are_not_retried(server: MessagesServer, collect: Collect) -> None:
    server.script = lambda call: streamed("Cut", stop_reason="max_tokens")
    collect(max_tokens=16_000)
    assert len(server.calls) == 1


def test_max_tokens_above_the_model_keeps_the_first_answer(
    server: MessagesServer, collect: Collect, events: list[Event]
) -> None:
    server.script = lambda call: (
        error(400, "invalid_request_error", "max_tokens: 8192 > 4096, which is the maximum allowed")
        if call.body["max_tokens"] > 4096
        else answer("And so", stop_reason="max_tokens")
    )
    result = collect(n=3, concurrency=1)
    assert result.stop_reasons == {"max_tokens": 3}
    assert len(server.calls) == 4
    assert any("keeping the first answer (max_tokens): Anthropic refused" in line for line in cautions(events))
    assert result.total_usage.total.n_unknown == 0


def test_a_refusal_without_content_is_kept_with_its_category(
    server: MessagesServer, collect: Collect, records: Records, events: list[Event]
) -> None:
    details = {"type": "refusal", "category": "frontier_llm", "explanation": "It trains a model."}
    server.script = scripted(Reply(body=message(stop_reason="refusal", stop_details=details)))
    assert collect().stop_reasons == {"refusal": 1}
    [record] = records()
    assert (record["answer"], record["detail"]) == ("", "frontier_llm: It trains a model.")
    assert any("1 refused (frontier_llm" in line for line in cautions(events))
    collect()
    assert len(server.calls) == 1


def test_a_long_answer_is_streamed(server: MessagesServer, collect: Collect, records: Records) -> None:
    server.script = scripted(streamed("Long."))
    collect(max_tokens=32_000)
    assert server.calls[0].body["stream"] is True
    [record] = records()
    assert (record["answer"], record["stop_reason"]) == ("Long.", "end_turn")
    assert record["usage"]["output_tokens"] == 50


def test_an_unknown_price_is_said_once_and_counted_as_unknown(
    server: MessagesServer, collect: Collect, records: Records, events: list[Event]
) -> None:
    server.script = scripted(answer(model="claude-new"))
    assert collect(n=3).cost_usd == 0
    assert [record["cost_usd"] for record in records()] == [None] * 3
    assert sum("The cost of an answer by claude-new is unknown" in line for line in cautions(events)) == 1


def test_the_terms_of_the_teacher_are_said(server: MessagesServer, collect: Collect, events: list[Event]) -> None:
    collect()
    assert any(isinstance(event, Note) and "terms of service" in event.text for event in events)


# Once and only once


def test_a_rerun_asks_only_for_what_is_missing(server: MessagesServer, collect: Collect, tmp_path: Path) -> None:
    collect(n=5)
    result = collect(n=8)
    assert (result.n_answered, result.n_new) == (8, 3)
    assert max(Counter(server.prompts).values()) == 1
    index = json.loads((tmp_path / "out" / "collect.json").read_text())
    keys = {record["key"] for record in journal_of(tmp_path / "out")}
    assert len(index["answers"]) == 8
    assert {item["key"] for item in index["answers"]} == keys


def test_another_setting_asks_anew_and_keeps_what_was_paid_for(
    server: MessagesServer, collect: Collect, records: Records
) -> None:
    collect(n=2)
    collect(n=2, teacher_context=ContextConfig(system="Be brief."))
    assert len(records()) == 4
    assert collect(n=2).n_new == 0


def test_a_torn_last_line_is_cut_off_said_and_asked_again(
    server: MessagesServer, collect: Collect, records: Records, tmp_path: Path, events: list[Event]
) -> None:
    collect(n=3)
    journal = tmp_path / "out" / "teacher_data.jsonl"
    journal.write_bytes(journal.read_bytes()[:-40])
    assert collect(n=3).n_new == 1
    assert len(records()) == 3
    assert any("incomplete last line" in line for line in cautions(events))


def test_concurrency_is_used_and_never_exceeded(server: MessagesServer, collect: Collect) -> None:
    server.script = lambda call: Reply(body=message(text("Fine.")), after_seconds=0.05)
    collect(n=30, concurrency=6)
    assert server.max_at_once == 6
