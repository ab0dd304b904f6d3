"""Rendering: what is supervised, the same tokens in training and asking, and a prompt's cost by its turns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlx_distill.errors import InputError
from mlx_distill.models.load import load_tokenizer
from mlx_distill.models.tokenize import TokenizedChat, _continues, find_control_token, render, render_prompt
from mlx_distill.records import Message, Messages, ToolCall, ToolFunction
from tests.support.hard_text import HARD_TEXTS

SYSTEM = Message("system", "You are a helpful assistant.")
TWO_TURNS = (
    SYSTEM,
    Message("user", "Count words."),
    Message("assistant", "def count_words(text): ..."),
    Message("user", "Thanks. 🎉 再见"),
    Message("assistant", "A queue hands out what came first.\n"),
)


@pytest.fixture
def tokenizer(tiny_student: Path) -> TokenizerWrapper:
    return load_tokenizer(tiny_student)


def supervised_text(tokenizer: TokenizerWrapper, chat: TokenizedChat) -> str:
    ids = [token for token, supervised in zip(chat.tokens, chat.mask, strict=True) if supervised]
    return str(tokenizer.decode(ids))


def test_a_control_token_is_found_in_the_call_of_a_tool() -> None:
    call = ToolCall(ToolFunction("search", {"query": "<|im_end|>"}))
    messages = (Message("user", "Search."), Message("assistant", "", tool_calls=(call,)))
    assert find_control_token(messages, ["<|im_end|>"]) == "the assistant message contains <|im_end|>"
    assert find_control_token(messages, ["<|im_start|>"]) == ""


def test_answers_and_their_end_tokens_are_supervised(tokenizer: TokenizerWrapper) -> None:
    rendered = render(tokenizer, TWO_TURNS)
    expected = "def count_words(text): ...<|im_end|>A queue hands out what came first.\n<|im_end|>"
    assert supervised_text(tokenizer, rendered) == expected


def test_the_tokens_before_an_answer_are_its_prompt(tokenizer: TokenizerWrapper) -> None:
    rendered = render(tokenizer, TWO_TURNS)
    for turns in (2, 4):
        asked = render_prompt(tokenizer, TWO_TURNS[:turns])
        assert asked == list(rendered.tokens[: len(asked)])
        assert not rendered.mask[len(asked) - 1]
        assert rendered.mask[len(asked)]


def test_turn_by_turn_tokens_equal_the_whole_text(tokenizer: TokenizerWrapper) -> None:
    whole = tokenizer.apply_chat_template([turn.to_json() for turn in TWO_TURNS], tokenize=False)
    tail = len(tokenizer.encode("\n", add_special_tokens=False))
    assert list(render(tokenizer, TWO_TURNS).tokens) == tokenizer.encode(whole, add_special_tokens=False)[:-tail]


def test_an_explicit_system_message_keeps_the_hidden_default_out(tokenizer: TokenizerWrapper) -> None:
    with_system = tokenizer.decode(render_prompt(tokenizer, TWO_TURNS[:2]))
    without = tokenizer.decode(render_prompt(tokenizer, TWO_TURNS[1:2]))
    assert "hidden default" not in with_system
    assert "hidden default" in without


REWRITES = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content if loop.last else '...' }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NO_END = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (REWRITES, "earlier turns"),
        (NO_END, "no end token"),
        ("{{ raise_exception('system messages are not allowed') }}", "system messages are not allowed"),
        ("{{ 'a' * 1000000 }}", "makes 1000000 characters"),
    ],
)
def test_an_unusable_template_is_refused(tokenizer: TokenizerWrapper, template: str, message: str) -> None:
    tokenizer.chat_template = template
    with pytest.raises(InputError, match=message):
        render(tokenizer, TWO_TURNS)
    with pytest.raises(InputError, match=message):
        render_prompt(tokenizer, TWO_TURNS[:4])


class CountingTokenizer:
    """Counts the calls of the chat template, and passes everything on."""

    def __init__(self, tokenizer: TokenizerWrapper) -> None:
        self._tokenizer = tokenizer
        self.n_calls = 0

    def apply_chat_template(self, *arguments: Any, **options: Any) -> Any:
        self.n_calls += 1
        return self._tokenizer.apply_chat_template(*arguments, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)


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


def test_thoughts_without_an_end_take_linear_time() -> None:
    opened = "<think>" * 200_000  # an hour if the time is quadratic
    assert not _continues(f"a b{opened}", "a <think>c</think> b")
