"""Each filter names what is wrong and leaves sound answers alone."""

from __future__ import annotations

import pytest

from mlx_distill.dataset.filters import Duplicates, broken_code, control_token, identity_phrase
from mlx_distill.records import conversation
from tests.unit.dataset_records import record


def test_the_first_python_block_that_does_not_parse_is_named() -> None:
    answer = "```python\nx = 1\n```\n```sql\nSELEC 1\n```\n```py\nx = (\n```\n"
    assert broken_code(answer).startswith("code block 3 (python), line 1: '(' was never closed")
    assert broken_code("```\nnot python at all (\n```") == ""


@pytest.mark.parametrize(
    "answer",
    [
        "As an AI language model, I cannot do this.",
        "Well, as an AI I would.",
        "I am Claude, and",
        "I'm an AI assistant",
        "I’m ChatGPT.",
        "I was made by Anthropic.",
    ],
)
def test_a_teacher_speaking_of_itself_is_noticed(answer: str) -> None:
    assert identity_phrase(answer)


@pytest.mark.parametrize(
    "answer",
    [
        "Think of it as an AI-powered search.",
        "I am sure that Claude Shannon wrote it.",
        "The api is built as an airtight box.",
        "Llama is a model; call it with a prompt.",
    ],
)
def test_talk_about_other_things_is_no_identity_phrase(answer: str) -> None:
    assert identity_phrase(answer) == ""


def test_a_control_token_is_found_in_any_message() -> None:
    tokens = ["<|im_end|>", "<|im_start|>"]
    messages = conversation("What does <|im_end|> do?", "Be brief.")
    assert control_token(messages, tokens) == "the user message holds <|im_end|>"
    assert control_token(conversation("What does |im_end| do?"), tokens) == ""


def test_a_prompt_is_a_duplicate_up_to_case_spaces_and_unicode_form() -> None:
    duplicates = Duplicates()
    assert duplicates.same_as(record("Explain a Café  queue.", "one", id="a")) == ""
    assert duplicates.same_as(record("explain a cafe\u0301 queue. ", "two", id="b", system="Be brief.")) == (
        "asks the same as a"
    )
    assert duplicates.same_as(record("Explain a café stack.", "one", id="c")) == ""
