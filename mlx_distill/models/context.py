"""The context that the teacher sees and the student does not: a system message, example dialogues, a document.

Learning to answer as if the context were there is context distillation. This module is light: settings import it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from msgspec import structs

from mlx_distill.config import Config, doc
from mlx_distill.errors import InputError
from mlx_distill.records import Example, Message, Messages, Prompt, Request, content_hash, with_document
from mlx_distill.storage.jsonl import read_jsonl

TEACHER_SYSTEM = "You are a helpful assistant. Answer completely and concisely."
"""Default system message of the teacher. Small students learn better from short answers that come to an end."""


class ContextConfig(Config, frozen=True):
    """The section [teacher_context]. A document for one prompt is the field `context` of that prompt."""

    system: Annotated[str, doc("system message of the teacher")] = TEACHER_SYSTEM
    examples: (
        Annotated[Path, doc('dialogues that the teacher sees before each question: JSON lines with "messages"')] | None
    ) = None

    def inputs(self) -> list[Path]:
        """Return the files that the context depends on."""
        return [self.examples] if self.examples else []


@dataclass(frozen=True)
class TeacherContext:
    """A context that is read. The default adds nothing."""

    system: str = ""
    """Replaces the system message of a conversation, if it is not empty."""
    examples: Messages = ()
    """User and assistant turns before the first question."""

    @property
    def digest(self) -> str:
        """A hash of the content."""
        return content_hash([self.system, [message.to_json() for message in self.examples]])


def read_context(config: ContextConfig) -> TeacherContext:
    """Read the example dialogues. Their system messages are left out: the teacher has one.

    Raises MissingError or InputError, with all problems of the file.
    """
    if config.examples is None:
        return TeacherContext(config.system)
    dialogues = read_jsonl(config.examples, _dialogue, "Check `examples` in [teacher_context].")
    if not dialogues:
        raise InputError(f"{config.examples}: no dialogue in this file.", "Write one dialogue a line, or leave it out.")
    return TeacherContext(config.system, tuple(turn for dialogue in dialogues for turn in dialogue))


def with_context(context: TeacherContext, messages: Messages, document: str = "") -> Messages:
    """Return what the teacher sees of a conversation: system message, examples, then its own turns.

    The document stands at the beginning of the first user turn.
    """
    if context.system:
        system = [Message("system", context.system)]
    else:
        system = [message for message in messages if message.role == "system"]
    turns = [message for message in messages if message.role != "system"]
    first = next((index for index, message in enumerate(turns) if message.role == "user"), None)
    if first is not None:
        turns[first] = structs.replace(turns[first], content=with_document(document, turns[first].content))
    return (*system, *context.examples, *turns)


def request_with_context(teacher: str, prompt: Prompt, context: TeacherContext, max_tokens: int) -> Request:
    """Return the request that asks a teacher `prompt` in the context."""
    messages = with_context(context, (Message("user", prompt.text),), prompt.context)
    question = prompt.text if context.examples or prompt.context else ""
    return Request(teacher, messages, max_tokens, question)


def _dialogue(data: object) -> Messages:
    """Return the user and assistant turns of a row with "messages"."""
    return tuple(message for message in Example.from_json(data).messages if message.role != "system")
