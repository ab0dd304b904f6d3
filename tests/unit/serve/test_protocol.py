"""Requests of OpenAI's API: what is accepted, what is refused, and how stop texts end an answer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_distill.records import Message
from mlx_distill.serve.protocol import ChatRequest, RequestError, StopFilter

MODELS = ["distilled", "base"]
MESSAGES = [{"role": "user", "content": "Hi"}]


def parse(**changes: Any) -> ChatRequest:
    body = {"model": "base", "messages": MESSAGES, **changes}
    return ChatRequest.parse(json.dumps(body).encode(), MODELS)


@pytest.mark.parametrize(
    ("changes", "param", "says"),
    [
        ({"model": "gpt-4"}, "model", "There is no model 'gpt-4'; this server has distilled, base."),
        ({"messages": []}, "messages", '"messages": expected array of length >= 1.'),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages", "unknown value 'tool'"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages", "unknown value 'image_url'"),
        ({"messages": [{"role": "user", "content": None}]}, "messages", "expected str | array, got null"),
        ({"messages": [{"role": "user", "content": "x", "tool_calls": [1]}]}, "messages", "expected null"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, None, "must be a user message"),
        ({"max_tokens": 0}, "max_tokens", '"max_tokens": expected int >= 1.'),
        ({"max_tokens": True}, "max_tokens", "got bool"),
        ({"temperature": -1}, "temperature", "expected float >= 0"),
        ({"top_p": 1.5}, "top_p", "expected float <= 1"),
        ({"n": 2}, "n", '"n": expected int <= 1.'),
        ({"stream": "true"}, "stream", "expected bool | null, got str"),
        ({"tools": [{"type": "function"}]}, "tools", '"tools": expected array of length <= 0.'),
        ({"tool_choice": "required"}, "tool_choice", "unknown value 'required'"),
        ({"response_format": {"type": "json_object"}}, "response_format", "unknown value 'json_object'"),
        ({"logprobs": True}, None, '"logprobs" is not supported'),
        ({"frequency_penalty": 0.5}, "frequency_penalty", "expected float <= 0"),
        ({"stop": [""]}, "stop", "expected str of length >= 1"),
        ({"stop": list("abcde")}, "stop", "expected array of length <= 4"),
        ({"stop": "a" * 201}, "stop", "expected str of length <= 200"),
        ({"grammar": "x"}, None, "unknown field grammar"),
    ],
)
def test_a_bad_request_gets_one_clear_sentence(changes: dict[str, Any], param: str | None, says: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse(**changes)
    assert says in str(caught.value) and "\n" not in str(caught.value)
    assert caught.value.param == param
    assert caught.value.status == (404 if changes.get("model") else 400)


def test_neutral_values_are_accepted() -> None:
    neutral: dict[str, Any] = {"n": 1, "presence_penalty": 0.0, "logprobs": False, "tools": [], "tool_choice": "none"}
    request = parse(**neutral, response_format={"type": "text"}, logit_bias={}, user="me", temperature=None)
    assert request.temperature is None


def test_developer_messages_and_text_parts_are_read() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    request = parse(messages=[{"role": "developer", "content": "Be brief."}, {"role": "user", "content": parts}])
    assert request.to_messages("default") == (Message("system", "Be brief."), Message("user", "ab"))


def test_the_default_system_message_fills_a_gap() -> None:
    assert parse().to_messages("default") == (Message("system", "default"), Message("user", "Hi"))
    assert parse().to_messages("") == (Message("user", "Hi"),)


def shown(stops: Sequence[str], text: str, size: int) -> str:
    """The text that a client sees, of a text in pieces of this size."""
    stop, said = StopFilter(stops), ""
    for start in range(0, len(text), size):
        said += stop.add(text[start : start + size], is_last=start + size >= len(text))
        if stop.found:
            break
    return said


@given(st.text("ab", max_size=30), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3), st.integers(1, 5))
def test_text_ends_before_the_first_stop_text(text: str, stops: list[str], size: int) -> None:
    assert shown(stops, text, size) == text[: min((text.index(stop) for stop in stops if stop in text), default=30)]


@pytest.mark.parametrize("size", [1, 2, 5, 100])
def test_stop_texts_are_found_across_pieces(size: int) -> None:
    text = "one two END three STOP four"
    assert shown(["STOP", "END"], text, size) == "one two "
    assert shown(["ENDLESS"], text, size) == shown([], text, size) == text
