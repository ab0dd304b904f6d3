"""Records: defaults, ids from the content, and problems in plain words."""

from __future__ import annotations

from typing import Any

import pytest

from mlx_distill.records import Answer, Example, Message, Prompt, Request, TeacherRecord, Usage, build_messages

USER = {"role": "user", "content": "Why?"}
ASSISTANT = {"role": "assistant", "content": "Because."}


def test_prompt_gets_id_and_family() -> None:
    prompt = Prompt.from_json({"prompt": "Explain the difference between a list and a tuple, please"})

    assert prompt.id.startswith("explain-the-difference-between-a-list-")
    assert prompt.family == prompt.id and prompt.category == "general" and prompt.split is None
    assert Prompt.from_json(prompt.to_json()) == prompt


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        ({"prompt": " "}, '"prompt" is empty'),
        ({"prompt": 3}, '"prompt": expected str, got int'),
        ({}, '"prompt" is missing'),
        ("text", "expected object, got str"),
        ({"prompt": "x", "id": ""}, '"id" is empty'),
        ({"prompt": "x", "split": "dev"}, "\"split\": unknown value 'dev'"),
        ({"prompt": "x", "famly": "a"}, "unknown field 'famly'; did you mean 'family'?"),
        ({"prompt": "x \ud83d"}, r"contains \ud83d, which is half of a character"),
    ],
)
def test_wrong_prompt_is_explained(data: object, problem: str) -> None:
    with pytest.raises(ValueError) as caught:
        Prompt.from_json(data)
    assert str(caught.value) == problem


def test_key_depends_on_content_and_max_tokens() -> None:
    request = Request("anthropic:m", build_messages("Why?", "Be brief."), 100)

    assert request.key == Request("anthropic:m", build_messages("Why?", "Be brief."), 100).key
    others = [Request("anthropic:n", request.messages, 100), Request("anthropic:m", build_messages("Why?"), 100)]
    assert request.prompt_key not in {other.prompt_key for other in others}
    longer = Request("anthropic:m", request.messages, 200)
    assert longer.key != request.key and longer.prompt_key == request.prompt_key


def test_record_of_an_answer_round_trips() -> None:
    prompt, request = Prompt("Why?", split="test"), Request("anthropic:m", build_messages("Why?"), 100)
    answer = Answer("Because.", "end_turn", "m-1", Usage(3, 2), 0.01, 1.23456, "detail")
    record = TeacherRecord.of(prompt, request, answer, asked_at="2026-01-01T00:00:00+00:00", batch="b1")

    assert TeacherRecord.from_json(record.to_json()) == record
    assert (record.key, record.prompt_text, record.request) == (request.key, "Why?", request)


def test_minimal_record_gets_key_and_prompt_id() -> None:
    record = TeacherRecord.from_json({"messages": [USER], "answer": "Because."})

    assert record.key == record.request.key and record.prompt_id.startswith("why-") and record.complete


@pytest.mark.parametrize(
    ("stop_reason", "text", "status"),
    [
        ("end_turn", "Because.", "complete"),
        ("stop_sequence", "Because.", "complete"),
        ("end_turn", " \n", "empty"),
        ("max_tokens", "Bec", "max_tokens"),
        ("refusal", "", "refusal"),
    ],
)
def test_completion_status(stop_reason: str, text: str, status: str) -> None:
    assert Answer(text, stop_reason, "m").completion_status == status


@pytest.mark.parametrize(
    ("kind", "data", "problem"),
    [
        (TeacherRecord, {"messages": [], "answer": "x"}, "messages"),
        (TeacherRecord, {"messages": [ASSISTANT], "answer": "x"}, "no user message"),
        (TeacherRecord, {"messages": [USER]}, '"answer" is missing'),
        (TeacherRecord, {"messages": [USER], "answer": "x", "usage": {"input_tokens": -1}}, "usage.input_tokens"),
        (Example, {"messages": [USER]}, "no assistant turn"),
        (Example, {"messages": [{"role": "bot", "content": "x"}]}, 'messages[0].role": unknown value'),
    ],
)
def test_wrong_record_is_explained(kind: type[Any], data: object, problem: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        kind.from_json(data)
    assert problem in str(caught.value)


def test_example_gets_id_and_family() -> None:
    example = Example.from_json({"messages": [USER, ASSISTANT]})

    assert len(example.id) == 12 and example.family == example.id
    assert example.messages == (Message("user", "Why?"), Message("assistant", "Because."))
