"""What an answer must be to become a row: one function a reason, each saying what is wrong or nothing."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Annotated

from mlx_distill.code_blocks import code_blocks, parse_fault
from mlx_distill.config import Config, doc
from mlx_distill.records import COMPLETE_STOP_REASONS, Messages, TeacherRecord


class FilterConfig(Config, frozen=True):
    """The quality gate: what an answer must be to become a row. Whatever fails is in rejected.jsonl with its reason."""

    stop_reasons: Annotated[tuple[str, ...], doc("how an answer must have ended; end_turn is of its own accord")] = (
        tuple(sorted(COMPLETE_STOP_REASONS))
    )
    shortest_answer: Annotated[int, doc("fewest tokens of an answer, its end token included", ge=1)] = 1
    longest_answer: Annotated[int, doc("most tokens of an answer, its end token included", ge=1)] | None = None
    require_parsing_code: Annotated[bool, doc("reject answers with Python code that does not parse")] = True
    near_duplicate: Annotated[
        float,
        doc(
            "likeness to an earlier row (shared runs of three words) from which one is rejected; 0 keeps all",
            ge=0,
            le=1,
        ),
    ] = 0.8
    reject_identity: Annotated[bool, doc('reject answers that say "as an AI" or "I am Claude"; else only count')] = True

    def check(self) -> None:
        if not self.stop_reasons:
            raise ValueError("stop_reasons is empty, so that no answer would be kept")
        if self.longest_answer is not None and self.longest_answer < self.shortest_answer:
            raise ValueError(f"longest_answer is {self.longest_answer}, below shortest_answer ({self.shortest_answer})")


def broken_code(answer: str) -> str:
    """The first code block in a language with a parser here (Python) that does not parse, and where; else ""."""
    for number, block in enumerate(code_blocks(answer), start=1):
        fault = parse_fault(block)
        if fault:
            return f"code block {number} ({block.language}), {fault}"
    return ""


def identity_phrase(answer: str) -> str:
    """A phrase in which the teacher speaks of itself as a model ("as an AI", "I am Claude"); else ""."""
    found = _IDENTITY.search(answer)
    return found.group() if found else ""


def control_token(messages: Messages, control_tokens: Sequence[str]) -> str:
    """A control token's text inside a message, where it would end or open a turn; else ""."""
    for message in messages:
        for token in control_tokens:
            if token in message.content:
                return f"the {message.role} message holds {token}"
    return ""


class Duplicates:
    """Tells of each record whether an earlier one asked the same."""

    def __init__(self) -> None:
        self._first: dict[tuple[str, ...], str] = {}

    def same_as(self, record: TeacherRecord) -> str:
        """Which earlier record has the same prompt up to case, spaces and Unicode form; else ""."""
        turns = tuple(_normal(turn.content) for turn in record.messages if turn.role != "system")
        first = self._first.setdefault(turns, record.prompt_id)
        return "" if first == record.prompt_id else f"asks the same as {first}"


def _normal(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


_IDENTITY = re.compile(
    r"\bas an? (?:large |small )?(?:AI|artificial intelligence|language model)\b(?!-)"
    r"|\bI(?:['’]m| am) (?:an? (?:AI|artificial intelligence|(?:large )?language model)\b(?!-)"
    r"|(?:Claude|ChatGPT|GPT|Gemini|Llama|Qwen|Mistral|DeepSeek)\b)"
    r"|\bmy name is (?:Claude|ChatGPT|Gemini|Qwen)\b"
    r"|\b(?:created|developed|made|trained) by (?:Anthropic|OpenAI|Google DeepMind|Alibaba Cloud|Meta AI)\b",
    re.IGNORECASE,
)
