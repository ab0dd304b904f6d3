"""Rendering a prompt: linear in the number of turns, and equal to the turn-by-turn rendering."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlx_distill.errors import InputError
from mlx_distill.models.load import load_tokenizer
from mlx_distill.models.tokenize import render, render_prompt
from mlx_distill.records import Message, Messages
from tests.support.hard_text import HARD_TEXTS


class CountingTokenizer:
    """Counts the calls of the chat template, and passes everything on; `template` replaces the tokenizer's own."""

    def __init__(self, tokenizer: TokenizerWrapper, template: str | None = None) -> None:
        self._tokenizer, self._template = tokenizer, template
        self.n_calls = 0

    def apply_chat_template(self, *arguments: Any, **options: Any) -> Any:
        self.n_calls += 1
        extra = {"chat_template": self._template} if self._template else {}
        return self._tokenizer.apply_chat_template(*arguments, **extra, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)


@pytest.fixture(scope="module")
def tokenizer(tiny_student: Path) -> TokenizerWrapper:
    return load_tokenizer(tiny_student)


def conversation(texts: list[str], *, system: bool = False) -> Messages:
    head = (Message("system", "Be brief."),) if system else ()
    return (*head, *(Message(("user", "assistant")[number % 2], text) for number, text in enumerate(texts)))


@pytest.mark.parametrize("n_turns", [10, 200])
def test_the_number_of_renderings_does_not_grow(tokenizer: TokenizerWrapper, n_turns: int) -> None:
    counting = CountingTokenizer(tokenizer)
    render_prompt(counting, conversation(["Hi"] * (2 * n_turns + 1)))
    assert counting.n_calls <= 4


@pytest.mark.parametrize("system", [True, False])
@pytest.mark.parametrize("n_messages", [1, 2, 3, 4, 5, 19])
def test_the_answers_have_the_tokens_of_training(tokenizer: TokenizerWrapper, system: bool, n_messages: int) -> None:
    texts = [text for text in HARD_TEXTS if "\n" in text or " " in text][:n_messages]
    for messages in (conversation(texts, system=system), conversation(["x"] * 5 + ["<|im_end|>", "<|im_start|>x"])):
        tokens = render_prompt(tokenizer, messages)
        answered = messages[: len(messages) - (messages[-1].role == "user")]
        if len(answered) > system:
            expected = list(render(tokenizer, answered).tokens)
            assert tokens[: len(expected)] == expected


def test_a_template_that_rewrites_old_turns_is_refused(tokenizer: TokenizerWrapper) -> None:
    template = (
        "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\\n' }}"
        "{{- m.content if loop.index > messages|length - 2 else 'gone' }}{{- '<|im_end|>\\n' }}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
    )
    with pytest.raises(InputError, match="writes earlier turns differently"):
        render_prompt(CountingTokenizer(tokenizer, template), conversation(["a", "b", "c", "d", "e"]))
