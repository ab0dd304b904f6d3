"""The one function that turns messages into tokens: for training, scoring, comparing and chatting.

It tokenizes a conversation turn by turn. So the tokens before an answer are exactly the prompt for that answer.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlx_distill.errors import InputError
from mlx_distill.formatting import first_line
from mlx_distill.records import Messages, build_messages

MAX_TEMPLATE_CHARACTERS = 100_000
"""Maximum number of characters that a chat template may add to a conversation, besides four times its own text."""
TRIAL_BYTES = 4 << 30
"""Memory limit for the trial of a chat template (Linux only)."""
_TRIAL = f"""
import json, resource, sys
if sys.platform == "linux":
    resource.setrlimit(resource.RLIMIT_AS, ({TRIAL_BYTES}, {TRIAL_BYTES}))
from transformers.utils.chat_template_utils import render_jinja_template
render_jinja_template(**json.load(sys.stdin), add_generation_prompt=True)
"""
_OTHER_MODEL = "Use an instruct model whose chat template writes turns one after another (Qwen2.5, SmolLM2, Llama)."


@dataclass(frozen=True)
class TokenizedChat:
    """The tokens of a conversation, and which of them are supervised."""

    tokens: tuple[int, ...]
    mask: tuple[bool, ...]
    """True for supervised tokens: each answer and its end token, and nothing else."""

    @property
    def n_supervised(self) -> int:
        return sum(self.mask)


def render(tokenizer: TokenizerWrapper, messages: Messages) -> TokenizedChat:
    """Return the tokens and the answer mask of a conversation, without the template's text after the last end token.

    Raises InputError if the template fails, rewrites earlier turns, or writes no end token.
    """
    tokens: list[int] = []
    mask: list[bool] = []
    for text, supervised in _pieces(tokenizer, messages):
        ids = tokenizer.encode(text, add_special_tokens=False)
        tokens.extend(ids)
        mask.extend([supervised] * len(ids))
    return TokenizedChat(tuple(tokens), tuple(mask))


def render_prompt(tokenizer: TokenizerWrapper, messages: Messages) -> list[int]:
    """Return the tokens after which the model writes the next answer."""
    whole = _text(tokenizer, messages, ask=True)
    texts = _find_answers(tokenizer, messages, whole)
    if texts is None:
        texts = [text for text, _ in _pieces(tokenizer, messages)]
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
        for token in control_tokens:
            if token in message.content:
                return f"the {message.role} message contains {token}"
    return ""


def check_chat_template(tokenizer: TokenizerWrapper, max_seconds: float = 30.0) -> None:
    """Render one message in a child process. InputError if the template fails, or exceeds the time or memory limit.

    A template is a program from the model's author: it can loop or fill the memory even when it is only compiled.
    """
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    if isinstance(template, str):
        _check_template(template, max_seconds)


@cache
def _check_template(template: str, max_seconds: float) -> None:
    conversations = [[message.to_json() for message in build_messages("Hello")]]
    trial = json.dumps({"conversations": conversations, "chat_template": template})
    command = [sys.executable, "-P", "-c", _TRIAL]  # -P: do not import modules from the working folder
    try:
        done = subprocess.run(command, input=trial, capture_output=True, text=True, timeout=max_seconds, check=False)
    except subprocess.TimeoutExpired as error:
        raise InputError(f"The chat template does not finish within {max_seconds:g} s.", _OTHER_MODEL) from error
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["the process ended without a message"]
        raise InputError(f"The chat template cannot write a conversation: {first_line(lines[-1])}", _OTHER_MODEL)


def _pieces(tokenizer: TokenizerWrapper, messages: Messages) -> list[tuple[str, bool]]:
    """Split the text up to the last answer's end token into (given text, False) and (answer, True)."""
    pieces: list[tuple[str, bool]] = []
    done = ""
    for index, message in enumerate(messages):
        if message.role != "assistant":
            continue
        before = _text(tokenizer, messages[:index], ask=True)
        after = _text(tokenizer, messages[: index + 1], ask=False)
        if not before.startswith(done) or not after.startswith(before):
            raise InputError("The chat template writes earlier turns differently once an answer follows.", _OTHER_MODEL)
        turn = after[len(before) :]
        ends = [turn.rfind(text) + len(text) for text in end_tokens(tokenizer) if text in turn]
        if not ends:
            raise InputError("The chat template writes no end token after an answer.", _OTHER_MODEL)
        answer = turn[: max(ends)]
        pieces += [(before[len(done) :], False), (answer, True)]
        done = before + answer
    return pieces


def _find_answers(tokenizer: TokenizerWrapper, messages: Messages, whole: str) -> list[str] | None:
    """Split `whole` like `_pieces`, in time linear in the number of turns: each answer follows a generation prompt.

    Returns None if this cannot be told from the text alone.
    """
    answers = [index for index, message in enumerate(messages) if message.role == "assistant"]
    if not answers:
        return []
    before = messages[: answers[0]]
    opening = _text(tokenizer, before, ask=True).removeprefix(_text(tokenizer, before, ask=False))
    ends = end_tokens(tokenizer)
    parts = whole.split(opening) if opening else []
    controls_in_content = any(token in message.content for message in messages for token in (opening, *ends))
    unchanged = whole.startswith(_text(tokenizer, messages[: answers[-1] + 1], ask=False))
    if controls_in_content or not unchanged or len(parts) != len(answers) + 2:
        return None
    texts = [parts[0] + opening]
    for part in parts[1 : len(answers) + 1]:
        found = [part.index(end) + len(end) for end in ends if end in part]
        if not found:
            return None
        texts += [part[: min(found)], part[min(found) :] + opening]
    return texts[:-1]


def _text(tokenizer: TokenizerWrapper, messages: Messages, *, ask: bool) -> str:
    turns = [message.to_json() for message in messages]
    try:
        text: str = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=ask)
        text.encode()  # the tokenizer cannot read lone surrogates
    except Exception as error:  # a template is a program of the model's author and may raise anything
        raise InputError(
            f"The chat template cannot write this conversation: {first_line(error)}", _OTHER_MODEL
        ) from error
    if len(text) > MAX_TEMPLATE_CHARACTERS + 4 * sum(len(message.content) for message in messages):
        raise InputError(f"The chat template makes {len(text)} characters of a short conversation.", _OTHER_MODEL)
    return text
