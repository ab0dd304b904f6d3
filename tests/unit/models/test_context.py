"""The context: what it adds to a question, and that it stays out of the student's rows."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlx_distill.errors import InputError
from mlx_distill.models.context import ContextConfig, TeacherContext, read_context, request_with_context, with_context
from mlx_distill.records import Answer, Message, Prompt, TeacherRecord, build_messages
from mlx_distill.storage.atomic import write_jsonl

SHOTS = (Message("user", "2 + 2?"), Message("assistant", "4."))
QUESTION = build_messages("3 + 3?", "Be kind.")


def test_empty_context_changes_nothing() -> None:
    assert with_context(TeacherContext(), QUESTION) == QUESTION


def test_context_comes_before_the_question() -> None:
    turns = (*QUESTION, Message("assistant", "6."), Message("user", "And 4 + 4?"))
    seen = with_context(TeacherContext("Be brief.", SHOTS), turns, "Sums are in base 10.")
    assert [turn.content for turn in seen] == [
        "Be brief.",
        "2 + 2?",
        "4.",
        "Sums are in base 10.\n\n3 + 3?",
        "6.",
        "And 4 + 4?",
    ]


def test_examples_lose_their_system_message(tmp_path: Path) -> None:
    file = tmp_path / "shots.jsonl"
    turns = [message.to_json() for message in (*build_messages("2 + 2?", "Student."), SHOTS[1])]
    write_jsonl(file, [{"messages": turns, "id": "a"}])
    assert read_context(ContextConfig("", file)) == TeacherContext("", SHOTS)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "no dialogue in this file"),
        ('{"messages": [{"role": "user", "content": "Why?"}]}\n', "shots.jsonl:1: .*no assistant turn"),
        ('{"prompt": "Why?"}\n', 'shots.jsonl:1: "messages" is missing'),
    ],
)
def test_wrong_examples_are_explained(tmp_path: Path, text: str, problem: str) -> None:
    file = tmp_path / "shots.jsonl"
    file.write_text(text)
    with pytest.raises(InputError, match=problem):
        read_context(ContextConfig("", file))


def test_key_and_record_hold_what_was_asked() -> None:
    context = TeacherContext("Be brief.", SHOTS)
    prompt = Prompt("3 + 3?", context="Sums are in base 10.")
    request = request_with_context("anthropic:m", prompt, context, 9)
    plain = request_with_context("anthropic:m", Prompt("3 + 3?"), TeacherContext("Be brief."), 9)
    record = TeacherRecord.of(prompt, request, Answer("6.", "end_turn", "m"))
    assert TeacherRecord.from_json(record.to_json()) == record
    assert record.request == request and request.key != plain.key and request.prompt_key != plain.prompt_key
    assert record.messages == with_context(context, build_messages("3 + 3?"), "Sums are in base 10.")
    assert (record.turns, record.context, record.prompt_text) == (build_messages("3 + 3?"), prompt.context, "3 + 3?")


def test_prompt_without_context_keeps_its_record() -> None:
    prompt = Prompt("3 + 3?")
    request = request_with_context("anthropic:m", prompt, TeacherContext("Be brief."), 9)
    data = TeacherRecord.of(prompt, request, Answer("6.", "end_turn", "m")).to_json()
    assert not {"question", "context"} & {*data, *prompt.to_json()}
