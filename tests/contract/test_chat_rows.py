"""Rows with reasoning, several turns and tools, in the chat templates of several families: tokens and mask."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.tuner.datasets import ChatDataset

from mlx_distill.errors import InputError
from mlx_distill.models.load import load_tokenizer
from mlx_distill.models.tokenize import render, render_prompt
from mlx_distill.records import Example
from tests.support.templates import FORGETFUL, LLAMA3, QWEN3, SMOLLM2, TEMPLATES
from tests.support.tiny import edit_json, make_tokenizer

THOUGHT = "A queue:\n\nfirst in, first out.  Not a stack."
ANSWER = "Use a queue."
TRACE = f"<think>\n{THOUGHT}\n</think>\n\n{ANSWER}"
WEATHER = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}


@pytest.fixture
def tokenizer_of(tmp_path: Path) -> Callable[[str], TokenizerWrapper]:
    def make(template: str) -> TokenizerWrapper:
        make_tokenizer(tmp_path)
        edit_json(tmp_path / "tokenizer_config.json", chat_template=template)
        (tmp_path / "config.json").write_text('{"model_type": "qwen2", "eos_token_id": 2}')
        return load_tokenizer(tmp_path)

    return make


def example(*turns: tuple[str, Any], **fields: Any) -> Example:
    """Return a row; a turn is (role, text) or (role, more fields)."""
    messages = [{"role": role, **({"content": more} if isinstance(more, str) else more)} for role, more in turns]
    return Example.from_json({"messages": messages, **fields})


def supervised(tokenizer: TokenizerWrapper, row: Example) -> str:
    chat = render(tokenizer, row)
    return str(tokenizer.decode([token for token, on in zip(chat.tokens, chat.mask, strict=True) if on]))


@pytest.mark.parametrize("name", TEMPLATES)
def test_trace_in_the_text_is_the_trace_in_the_tokens(name: str, tokenizer_of: Callable[..., TokenizerWrapper]) -> None:
    tokenizer = tokenizer_of(TEMPLATES[name])
    row = example(("user", "Queue or stack?"), ("assistant", TRACE))

    opening = "<think>\n" if name == "opening" else ""  # the prompt holds it
    assert supervised(tokenizer, row) == f"{TRACE}<|im_end|>".removeprefix(opening)
    prompt = render_prompt(tokenizer, row.messages[:1])
    assert list(render(tokenizer, row).tokens[: len(prompt)]) == prompt


@pytest.mark.parametrize("name", TEMPLATES)
def test_masked_trace_is_read_but_not_learned(name: str, tokenizer_of: Callable[..., TokenizerWrapper]) -> None:
    tokenizer = tokenizer_of(TEMPLATES[name])
    row = example(("user", "Queue or stack?"), ("assistant", TRACE), mask_thinking=True)

    assert supervised(tokenizer, row) == f"{ANSWER}<|im_end|>"
    assert THOUGHT in tokenizer.decode(list(render(tokenizer, row).tokens))


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_answer_of_several_turns_is_supervised(name: str, tokenizer_of: Callable[..., TokenizerWrapper]) -> None:
    tokenizer = tokenizer_of(TEMPLATES[name])
    row = example(("user", "Queue?"), ("assistant", "Yes."), ("user", "Why?"), ("assistant", "Order."))

    found = supervised(tokenizer, row)
    if name in ("qwen3", "opening"):  # they write an empty thought, and forget it when the next question comes
        assert found == "<think>\n\n</think>\n\nOrder.<|im_end|>".removeprefix("<think>\n" if name == "opening" else "")
    else:
        assert found == "Yes.<|im_end|>Order.<|im_end|>"
    for n in (1, 3):
        prompt = render_prompt(tokenizer, row.messages[:n])
        own = render(tokenizer, example(*((m.role, m.content) for m in row.messages[: n + 1])))
        assert list(own.tokens[: len(prompt)]) == prompt


def test_qwen3_forgets_earlier_reasoning(tokenizer_of: Callable[..., TokenizerWrapper]) -> None:
    tokenizer = tokenizer_of(QWEN3)
    row = example(
        ("user", "Queue?"), ("assistant", TRACE), ("user", "Sure?"), ("assistant", "<think>\nOK\n</think>\n\nYes.")
    )

    assert supervised(tokenizer, row) == "<think>\nOK\n</think>\n\nYes.<|im_end|>"
    assert THOUGHT not in tokenizer.decode(list(render(tokenizer, row).tokens))


def test_lost_reasoning_is_refused_with_the_setting(tokenizer_of: Callable[..., TokenizerWrapper]) -> None:
    with pytest.raises(InputError, match="leaves out the reasoning") as raised:
        render(tokenizer_of(FORGETFUL), example(("user", "Queue?"), ("assistant", TRACE)))
    assert 'thinking = "drop"' in raised.value.next_step


@pytest.mark.parametrize("name", ["qwen2.5", "qwen3"])
def test_tool_calls_are_supervised_and_results_are_not(
    name: str, tokenizer_of: Callable[..., TokenizerWrapper]
) -> None:
    tokenizer = tokenizer_of(TEMPLATES[name])
    row = example(
        ("system", "Be kind."),
        ("user", "Weather in Oslo?"),
        ("assistant", {"content": None, "tool_calls": [CALL, CALL]}),
        ("tool", {"content": "rain", "name": "weather"}),
        ("tool", {"content": "wind", "name": "weather"}),
        ("assistant", "Rain and wind."),
        tools=[WEATHER],
    )
    assert Example.from_json(row.to_json()) == row

    call = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
    found = supervised(tokenizer, row)
    if name == "qwen3":  # it forgets the empty thought of the call, so the call is not what the model writes
        assert found == "<think>\n\n</think>\n\nRain and wind.<|im_end|>"
    else:
        assert found == f"{call}\n{call}<|im_end|>Rain and wind.<|im_end|>"
    text = tokenizer.decode(list(render(tokenizer, row).tokens))
    assert '"name": "weather", "parameters"' in text and text.count("<tool_response>") == 2
    for n in (2, 5):
        prompt = render_prompt(tokenizer, row.messages[:n], row.tools)
        partial = render(tokenizer, Example(row.messages[: n + 1], tools=row.tools))
        assert list(partial.tokens[: len(prompt)]) == prompt


def test_qwen3_keeps_the_reasoning_of_a_tool_call(tokenizer_of: Callable[..., TokenizerWrapper]) -> None:
    tokenizer = tokenizer_of(QWEN3)
    thought = "<think>\nI must ask.\n</think>\n\n"
    row = example(
        ("user", "Weather in Oslo?"),
        ("assistant", {"content": thought, "tool_calls": [CALL]}),
        ("tool", {"content": "rain"}),
        ("assistant", f"{thought}Rain."),
        tools=[WEATHER],
    )
    found = supervised(tokenizer, row)
    assert found.startswith(thought) and found.endswith(f"</tool_call><|im_end|>{thought}Rain.<|im_end|>")


def test_mlx_lm_reads_the_same_tokens(tokenizer_of: Callable[..., TokenizerWrapper]) -> None:
    tokenizer = tokenizer_of(TEMPLATES["qwen2.5"])
    row = example(
        ("user", "Weather in Oslo?"),
        ("assistant", {"content": "", "tool_calls": [CALL]}),
        ("tool", {"content": "rain"}),
        ("assistant", "Rain."),
        tools=[WEATHER],
    )
    theirs, _ = ChatDataset([row.to_json()], tokenizer).process(row.to_json())
    ours = render(tokenizer, row).tokens
    assert list(theirs[: len(ours)]) == list(ours)


def test_template_without_tools_is_refused(tokenizer_of: Callable[..., TokenizerWrapper]) -> None:
    row = example(("user", "Weather?"), ("assistant", "Rain."), tools=[WEATHER])
    with pytest.raises(InputError, match="does not write the tools"):
        render(tokenizer_of(SMOLLM2), row)
    row = example(("user", "Weather?"), ("assistant", {"content": "", "tool_calls": [CALL]}))
    with pytest.raises(InputError, match="does not write the tool calls"):
        render(tokenizer_of(LLAMA3), row)


@pytest.mark.parametrize(
    ("turn", "problem"),
    [
        ({"role": "tools", "content": "x"}, "unknown value 'tools'"),
        ({"role": "assistant", "content": 3}, "expected str, got int"),
        ({"role": "assistant", "content": "", "tool_calls": [{"function": {"arguments": {}}}]}, '"name" is missing'),
        ({"role": "assistant", "content": "", "tool_calls": {}}, "expected array, got object"),
    ],
)
def test_wrong_turn_is_explained(turn: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem.replace('"name"', ".*name.*")):
        Example.from_json({"messages": [{"role": "user", "content": "x"}, turn]})
