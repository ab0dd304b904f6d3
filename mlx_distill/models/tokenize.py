"""The one function that turns messages into tokens: for training, scoring, comparing and chatting.

It tokenizes a conversation turn by turn. So the tokens before an answer are exactly the prompt for that answer.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlx_distill.errors import InputError
from mlx_distill.formatting import first_line
from mlx_distill.records import Example, Message, Messages, build_messages
from mlx_distill.sanitize import thinking_of

MAX_TEMPLATE_CHARACTERS = 100_000
"""Maximum number of characters that a chat template may add to a conversation, besides four times its own text."""
TRIAL_BYTES = 4 << 30
"""Memory limit for the trial of a chat template (Linux only)."""
_TRIAL = f"""
import json, resource, sys, time
if sys.platform == "linux":
    resource.setrlimit(resource.RLIMIT_AS, ({TRIAL_BYTES}, {TRIAL_BYTES}))
from transformers.utils.chat_template_utils import render_jinja_template
seconds = int(time.process_time()) + int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
render_jinja_template(**json.load(sys.stdin), add_generation_prompt=True)
"""
_REWRITES = "The chat template writes earlier turns differently once an answer follows."
_THOUGHT = re.compile(r"<think>.*?(</think>\s*|\Z)", re.DOTALL)
_OTHER_MODEL = "Use an instruct model whose chat template writes turns one after another (Qwen2.5, SmolLM2, Llama)."


Tools = Sequence[Mapping[str, Any]]
"""Descriptions of tools, as JSON schemas."""


@dataclass(frozen=True)
class TokenizedChat:
    """The tokens of a conversation, and which of them are supervised."""

    tokens: tuple[int, ...]
    mask: tuple[bool, ...]
    """True for supervised tokens: each answer and its end token, and nothing else."""

    @property
    def n_supervised(self) -> int:
        return sum(self.mask)

    @property
    def n_targets(self) -> int:
        """The supervised tokens that are predicted: nothing predicts the first token of a row."""
        return sum(self.mask[1:])


def render(tokenizer: TokenizerWrapper, conversation: Messages | Example) -> TokenizedChat:
    """Return the tokens and the answer mask of a conversation, without the template's text after the last end token.

    A template may leave the reasoning out of earlier answers: these are not supervised. Raises InputError if the
    template fails, rewrites earlier turns in another way, writes no end token, or leaves out reasoning or tools.
    """
    tokens: list[int] = []
    mask: list[bool] = []
    if isinstance(conversation, Example):
        pieces = _pieces(tokenizer, conversation.messages, conversation.tools)
        if conversation.mask_thinking:
            pieces = [part for text, supervised in pieces for part in _without_thought(text, supervised)]
    else:
        pieces = _pieces(tokenizer, conversation, ())
    for text, supervised in pieces:
        ids = tokenizer.encode(text, add_special_tokens=False)
        tokens.extend(ids)
        mask.extend([supervised] * len(ids))
    return TokenizedChat(tuple(tokens), tuple(mask))


def render_prompt(tokenizer: TokenizerWrapper, messages: Messages, tools: Tools = ()) -> list[int]:
    """Return the tokens after which the model writes the next answer."""
    whole = _text(tokenizer, messages, tools, ask=True)
    texts = _split_at_answers(tokenizer, messages, tools, whole)
    if texts is None:
        given = [text for text, _ in _pieces(tokenizer, messages, tools)]
        texts = given if _continues(whole, "".join(given)) else []
    rest = whole[sum(map(len, texts)) :]
    return [token for text in (*texts, rest) for token in tokenizer.encode(text, add_special_tokens=False)]


def end_tokens(tokenizer: TokenizerWrapper) -> list[str]:
    """Return the texts of the tokens that end a turn, such as `<|im_end|>`."""
    texts = tokenizer.convert_ids_to_tokens(sorted(tokenizer.eos_token_ids))
    return [text for text in texts if text]


def control_tokens(tokenizer: TokenizerWrapper) -> list[str]:
    """Return the texts that the tokenizer always reads as control tokens. They cannot be part of an answer."""
    added = tokenizer.added_tokens_decoder.values()
    return sorted({str(token) for token in added if token.special})


def find_control_token(messages: Messages, control_tokens: Sequence[str]) -> str:
    """Return which message contains a control token; "" if none does. It would end or open a turn."""
    for message in messages:
        text = message.content + str([call.to_json() for call in message.tool_calls])
        for token in control_tokens:
            if token in text:
                return f"the {message.role} message contains {token}"
    return ""


def check_chat_template(tokenizer: TokenizerWrapper, max_seconds: int = 30) -> None:
    """Render one message in a child process. InputError if the template fails, or exceeds the time or memory limit.

    A template is a program from the model's author: it can loop or fill the memory even when it is only compiled.
    The time is processor time, so that a busy machine does not refuse a good template.
    """
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    if isinstance(template, str):
        _check_template(template, max_seconds)


@cache
def _check_template(template: str, max_seconds: int) -> None:
    conversations = [[message.to_json() for message in build_messages("Hello")]]
    trial = json.dumps({"conversations": conversations, "chat_template": template})
    command = [sys.executable, "-P", "-c", _TRIAL, str(max_seconds)]  # -P: no modules from the working folder
    done = subprocess.run(command, input=trial, capture_output=True, text=True, check=False)
    if done.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        raise InputError(f"The chat template does not finish within {max_seconds} s.", _OTHER_MODEL)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["the process ended without a message"]
        raise InputError(f"The chat template cannot write a conversation: {first_line(lines[-1])}", _OTHER_MODEL)


def _pieces(tokenizer: TokenizerWrapper, messages: Messages, tools: Tools) -> list[tuple[str, bool]]:
    """Split the text up to the last answer's end token into (given text, False) and (answer, True)."""
    if tools and _text(tokenizer, messages, tools, ask=False) == _text(tokenizer, messages, (), ask=False):
        raise InputError("The chat template does not write the tools of a conversation.", _OTHER_MODEL)
    pieces: list[tuple[str, bool]] = []
    done = ""
    for index, message in enumerate(messages):
        if message.role != "assistant":
            continue
        before = _text(tokenizer, messages[:index], tools, ask=True)
        after = _text(tokenizer, messages[: index + 1], tools, ask=False)
        if not after.startswith(before):
            raise InputError(_REWRITES, _OTHER_MODEL)
        if not _continues(before, done):
            pieces, done = [], ""
        turn = after[len(before) :]
        ends = [turn.rfind(text) + len(text) for text in end_tokens(tokenizer) if text in turn]
        if not ends:
            raise InputError("The chat template writes no end token after an answer.", _OTHER_MODEL)
        answer = turn[: max(ends)]
        _check_complete(message, answer)
        pieces += [(before[len(done) :], False), (answer, True)]
        done = before + answer
    return pieces


def _continues(whole: str, start: str) -> bool:
    """Return whether a text begins with `start`; False if it does except for reasoning, which some templates forget.

    Raises InputError for any other difference.
    """
    if whole.startswith(start):
        return True
    if _without_thoughts(whole).startswith(_without_thoughts(start)):
        return False
    raise InputError(_REWRITES, _OTHER_MODEL)


def _without_thoughts(text: str) -> str:
    """Remove all reasoning that has an end, in time linear in the text."""
    return _THOUGHT.sub(lambda found: "" if found[1] else found[0], text)


def _check_complete(message: Message, answer: str) -> None:
    """Raise InputError if the template left out the reasoning or a tool call of an answer."""
    thinking = thinking_of(message.content)
    if thinking and thinking not in answer:
        raise InputError(
            "The chat template leaves out the reasoning of an answer.",
            'Set thinking = "drop" in [prepare], or use a student whose template writes <think>.',
        )
    if any(call.function.name not in answer for call in message.tool_calls):
        raise InputError("The chat template does not write the tool calls of an answer.", _OTHER_MODEL)


def _without_thought(text: str, supervised: bool) -> list[tuple[str, bool]]:
    """Split the reasoning off a supervised text. It is read, but not learned."""
    _, closing, rest = text.partition("</think>")
    if not supervised or not closing:
        return [(text, supervised)]
    answer = rest.lstrip()
    return [(text[: len(text) - len(answer)], False), (answer, True)]


def _split_at_answers(tokenizer: TokenizerWrapper, messages: Messages, tools: Tools, whole: str) -> list[str] | None:
    """Split `whole` like `_pieces`, in time linear in the number of turns: each answer follows a generation prompt.

    Returns None if the places of the answers cannot be told from the text alone.
    """
    answers = [index for index, message in enumerate(messages) if message.role == "assistant"]
    if not answers:
        return []
    before = messages[: answers[0]]
    opening = _text(tokenizer, before, tools, ask=True).removeprefix(_text(tokenizer, before, tools, ask=False))
    ends = end_tokens(tokenizer)
    if not opening or any(token in message.content for message in messages for token in (opening, *ends)):
        return None
    answered = _text(tokenizer, messages[: answers[-1] + 1], tools, ask=False)
    if not whole.startswith(answered) or "</think>" in answered:  # the template may leave out earlier reasoning
        return None
    parts = whole.split(opening)
    if len(parts) != len(answers) + 2:
        return None
    texts = [parts[0] + opening]
    for part in parts[1 : len(answers) + 1]:
        found = [part.index(end) + len(end) for end in ends if end in part]
        if not found:
            return None
        texts += [part[: min(found)], part[min(found) :] + opening]
    return texts[:-1]


def _text(tokenizer: TokenizerWrapper, messages: Messages, tools: Tools, *, ask: bool) -> str:
    turns = [message.to_json() for message in messages]
    given = {"tools": list(tools)} if tools else {}
    try:
        text: str = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=ask, **given)
        text.encode()  # the tokenizer cannot read lone surrogates
    except Exception as error:  # a template is a program of the model's author and may raise anything
        raise InputError(
            f"The chat template cannot write this conversation: {first_line(error)}", _OTHER_MODEL
        ) from error
    if len(text) > MAX_TEMPLATE_CHARACTERS + 4 * len(json.dumps([turns, given])):
        raise InputError(f"The chat template makes {len(text)} characters of a short conversation.", _OTHER_MODEL)
    return text
