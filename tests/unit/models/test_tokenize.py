"""Rendering: what is supervised, and that training and asking see the same tokens."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlx_distill.errors import InputError
from mlx_distill.models.load import load_tokenizer
from mlx_distill.models.tokenize import TokenizedChat, render, render_prompt
from mlx_distill.records import Message

SYSTEM = Message("system", "You are a helpful assistant.")
TWO_TURNS = (
    SYSTEM,
    Message("user", "Count words."),
    Message("assistant", "def count_words(text): ..."),
    Message("user", "Thanks. 🎉 再见"),
    Message("assistant", "A queue hands out what came first.\n"),
)


def supervised_text(tokenizer: TokenizerWrapper, chat: TokenizedChat) -> str:
    ids = [token for token, supervised in zip(chat.tokens, chat.mask, strict=True) if supervised]
    return str(tokenizer.decode(ids))


def test_answers_and_their_end_tokens_are_supervised(tiny_student: Path) -> None:
    tokenizer = load_tokenizer(tiny_student)
    rendered = render(tokenizer, TWO_TURNS)
    expected = "def count_words(text): ...<|im_end|>A queue hands out what came first.\n<|im_end|>"
    assert supervised_text(tokenizer, rendered) == expected


def test_the_tokens_before_an_answer_are_its_prompt(tiny_student: Path) -> None:
    tokenizer = load_tokenizer(tiny_student)
    rendered = render(tokenizer, TWO_TURNS)
    for turns in (2, 4):
        asked = render_prompt(tokenizer, TWO_TURNS[:turns])
        assert asked == list(rendered.tokens[: len(asked)])
        assert not rendered.mask[len(asked) - 1]
        assert rendered.mask[len(asked)]


def test_turn_by_turn_tokens_equal_the_whole_text(tiny_student: Path) -> None:
    tokenizer = load_tokenizer(tiny_student)
    whole = tokenizer.apply_chat_template([turn.to_json() for turn in TWO_TURNS], tokenize=False)
    tail = len(tokenizer.encode("\n", add_special_tokens=False))
    assert list(render(tokenizer, TWO_TURNS).tokens) == tokenizer.encode(whole, add_special_tokens=False)[:-tail]


def test_an_explicit_system_message_keeps_the_hidden_default_out(tiny_student: Path) -> None:
    tokenizer = load_tokenizer(tiny_student)
    with_system = tokenizer.decode(render_prompt(tokenizer, TWO_TURNS[:2]))
    without = tokenizer.decode(render_prompt(tokenizer, TWO_TURNS[1:2]))
    assert "hidden default" not in with_system
    assert "hidden default" in without


def test_a_template_that_rewrites_earlier_turns_is_refused(tiny_student: Path) -> None:
    tokenizer = load_tokenizer(tiny_student)
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{{ m.content if loop.last else '...' }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    with pytest.raises(InputError, match="earlier turns"):
        render(tokenizer, TWO_TURNS)


def test_a_template_without_an_end_token_is_refused(tiny_student: Path) -> None:
    tokenizer = load_tokenizer(tiny_student)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    with pytest.raises(InputError, match="no end token"):
        render(tokenizer, TWO_TURNS)


def test_a_template_that_fails_is_an_error_with_its_reason(tiny_student: Path) -> None:
    tokenizer = load_tokenizer(tiny_student)
    tokenizer.chat_template = "{{ raise_exception('system messages are not allowed') }}"
    with pytest.raises(InputError, match="system messages are not allowed"):
        render(tokenizer, TWO_TURNS)


def test_a_template_that_makes_too_much_text_is_refused(tiny_student: Path) -> None:
    tokenizer = load_tokenizer(tiny_student)
    tokenizer.chat_template = "{{ 'a' * 1000000 }}"
    with pytest.raises(InputError, match="makes 1000000 characters"):
        render_prompt(tokenizer, TWO_TURNS[:2])
