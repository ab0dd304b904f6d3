"""The records that pass between packages: prompts, teacher answers, and the rows made of them.

Each record is one JSON object of a file. `from_json` checks field types and raises ValueError with one sentence;
`to_json` returns plain data.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

import msgspec
from msgspec.structs import force_setattr

from mlx_distill.sanitize import surrogate_problem

Role = Literal["system", "user", "assistant", "tool"]
Split = Literal["train", "valid", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)

MAX_ID_CHARACTERS = 40
"""Maximum number of characters that a generated prompt id takes from the prompt's first words."""
COMPLETE_STOP_REASONS = frozenset({"end_turn", "stop_sequence"})
"""Stop reasons of complete answers. Answers with other stop reasons are kept, but the student never learns them."""

STUDENT_SYSTEM = "You are a helpful assistant."
"""Default system message of the student, in training and in use."""

Text = Annotated[str, msgspec.Meta(pattern=r"\S")]
"""Text that is not blank."""


class Record(msgspec.Struct, frozen=True):
    """Base of all records: conversion to and from plain JSON data."""

    written_if_set: ClassVar[frozenset[str]] = frozenset()
    """Fields that are left out of the JSON data while they are empty."""

    @classmethod
    def from_json(cls, data: object) -> Self:
        """Check the types of plain data and build the record. Raises ValueError with one sentence."""
        try:
            return msgspec.convert(data, cls)
        except msgspec.ValidationError as error:
            raise ValueError(explain(error)) from error

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data."""
        data: dict[str, Any] = msgspec.to_builtins(self)
        return {name: value for name, value in data.items() if value or name not in self.written_if_set}


def explain(error: msgspec.ValidationError) -> str:
    """Return msgspec's message in plain words, with the field's name first."""
    text, _, path = str(error).replace("`", "").partition(" - at $")
    name = path.removeprefix(".")
    missing = re.fullmatch(r"Object missing required field (\w+)", text)
    if missing:
        return f'"{".".join(filter(None, [name, missing.group(1)]))}" is missing'
    if "matching regex" in text:
        return f'"{name}" is empty'
    text = text.replace("Invalid enum value", "unknown value").replace("Expected", "expected")
    return f'"{name}": {text}' if name else text


class ToolFunction(Record, frozen=True):
    """The function of a tool call. Most templates want the arguments as an object."""

    name: Text
    arguments: dict[str, Any] | str


class ToolCall(Record, frozen=True, omit_defaults=True):
    """One call of a tool in an assistant turn."""

    function: ToolFunction
    type: Literal["function"] = "function"
    id: str = ""


class Message(Record, frozen=True, omit_defaults=True):
    """One turn of a conversation, as chat templates read it."""

    role: Role
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    """Calls that an assistant turn makes, after its text."""
    tool_call_id: str = ""
    """The call that a tool turn answers."""
    name: str = ""
    """The tool of a tool turn."""


Messages = tuple[Message, ...]


def build_messages(prompt: str, system: str = "") -> Messages:
    """Return the messages that ask `prompt`, with a system message if `system` is not empty."""
    user = Message("user", prompt)
    return (Message("system", system), user) if system else (user,)


def with_document(document: str, question: str) -> str:
    """Return a question after the document that it is about."""
    return f"{document}\n\n{question}" if document else question


def content_hash(data: Any) -> str:
    """Return the SHA-256 (hex) of JSON data in canonical form. Equal content has equal hashes."""
    canonical = json.dumps(data, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()


class Prompt(Record, frozen=True):
    """One prompt for the teacher: a line of `prompts.jsonl`."""

    written_if_set = frozenset({"context"})

    prompt: Text
    id: Text = ""
    """Default: the prompt's first words and its content hash."""
    family: Text = ""
    """A base prompt and its variations share a family, which is never split. Default: the id."""
    category: Text = "general"
    split: Split | None = None
    """The split that the row must go to. None: the family's hash decides."""
    context: str = ""
    """A document that only the teacher sees, before the prompt."""

    def __post_init__(self) -> None:
        if not self.id:
            force_setattr(self, "id", default_prompt_id(self.prompt))
        if not self.family:
            force_setattr(self, "family", self.id)

    @classmethod
    def from_json(cls, data: object) -> Self:
        """Check the types of plain data, field names that look misspelt, and lone surrogates."""
        if isinstance(data, Mapping):
            reject_misspelt(data, (*cls.__struct_fields__, "variations"))
        prompt = super().from_json(data)
        for value in (prompt.prompt, prompt.id, prompt.family, prompt.category, prompt.context):
            if problem := surrogate_problem(value):
                raise ValueError(problem)
        return prompt

    @property
    def text(self) -> str:
        return self.prompt


def default_prompt_id(prompt: str) -> str:
    """Return an id for a prompt without one: its first words, then 12 hex digits of its content hash."""
    words: list[str] = []
    for word in re.finditer(r"\w+", prompt.casefold()):
        if len("-".join([*words, word.group()])) > MAX_ID_CHARACTERS:
            break
        words.append(word.group())
    return "-".join([*words, content_hash(prompt)[:12]])


def reject_misspelt(data: Mapping[str, Any], known: Sequence[str]) -> None:
    """Raise ValueError for a field name that is close to a known one. Other unknown fields are ignored."""
    for name in data:
        if name in known:
            continue
        close = difflib.get_close_matches(str(name), known, n=1, cutoff=0.75)
        if close and close[0] not in data:
            raise ValueError(f"unknown field {name!r}; did you mean {close[0]!r}?")


Count = Annotated[int, msgspec.Meta(ge=0)]


class Usage(Record, frozen=True):
    """Tokens that the teacher billed. Total input is `input_tokens + cache_creation_tokens + cache_read_tokens`."""

    input_tokens: Count = 0
    output_tokens: Count = 0
    cache_creation_tokens: Count = 0
    cache_read_tokens: Count = 0
    thinking_tokens: Count = 0
    """The part of `output_tokens` that was thinking, if the provider reports it."""

    def plus(self, other: Usage) -> Usage:
        """Return the sum of both, token kind by token kind."""
        return Usage(*(getattr(self, name) + getattr(other, name) for name in self.__struct_fields__))


class Request(msgspec.Struct, frozen=True):
    """One request to a teacher."""

    teacher: str
    """Provider and model as the user names them: `anthropic:claude-sonnet-4-6`, `recorded:sample`."""
    messages: Messages
    max_tokens: int
    question: str = ""
    """The prompt alone, if the messages hold a context besides it. Part of no key."""
    temperature: float = 0.0
    """Temperature of a local teacher. Others have their own."""
    seed: int = 0
    """Random seed of a local teacher's answer."""
    sample: int = 0
    """The number of the answer, if several are wanted."""

    @property
    def key(self) -> str:
        """Content hash of all that decides the answer: 64 hex digits."""
        return content_hash({**self._content, "max_tokens": self.max_tokens})

    @property
    def prompt_key(self) -> str:
        """Content hash without `max_tokens`: a complete answer is valid for every limit."""
        return content_hash(self._content)

    @property
    def _content(self) -> dict[str, Any]:
        sampling = {"temperature": self.temperature, "seed": self.seed, "sample": self.sample}
        given = {name: value for name, value in sampling.items() if value}
        return {"teacher": self.teacher, "messages": [message.to_json() for message in self.messages], **given}


class Answer(msgspec.Struct, frozen=True):
    """A teacher's answer to one request."""

    text: str
    """The joined text blocks. Empty for a refusal, or if the answer contains only thinking."""
    stop_reason: str
    """The provider's stop reason: end_turn, max_tokens, stop_sequence, refusal, ..."""
    model: str
    """The model that answered, as the provider names it."""
    usage: Usage = Usage()
    cost_usd: float | None = None
    """None if the cost is unknown or not tracked, or if the answer comes from a recording."""
    seconds: float = 0.0
    detail: str = ""
    """More about the stop reason, if the provider gives it (for example the category of a refusal)."""

    @property
    def completion_status(self) -> str:
        """`complete`; `empty` for a complete answer without text; otherwise the stop reason."""
        return completion_status(self.stop_reason, self.text)

    @property
    def complete(self) -> bool:
        return self.completion_status == "complete"


def completion_status(stop_reason: str, text: str) -> str:
    """Return `complete`, `empty` (a complete answer without text), or the stop reason of an incomplete answer."""
    if stop_reason not in COMPLETE_STOP_REASONS:
        return stop_reason
    return "complete" if text.strip() else "empty"


class TeacherRecord(Record, frozen=True, kw_only=True):
    """One line of `teacher_data.jsonl`: a prompt, the request, and the teacher's answer."""

    written_if_set = frozenset({"question", "context", "temperature", "seed", "sample"})

    key: str = ""
    """Content hash of the request. Default: computed."""
    prompt_id: str = ""
    family: str = ""
    category: str = "general"
    split: Split | None = None
    teacher: str = "recorded"
    model: str = ""
    max_tokens: int = 0
    messages: Annotated[Messages, msgspec.Meta(min_length=1)]
    """The messages that the teacher saw, its context included."""
    question: str = ""
    """The prompt alone, if the messages hold a context besides it. The student sees only this."""
    context: str = ""
    """The document in the messages, if the prompt has one."""
    temperature: float = 0.0
    seed: int = 0
    sample: int = 0
    answer: str
    stop_reason: str = "end_turn"
    usage: Usage = Usage()
    cost_usd: float | None = None
    seconds: float = 0.0
    asked_at: str = ""
    """UTC, ISO 8601: when the answer arrived."""
    detail: str = ""
    batch: str = ""
    """The provider's id of the batch job. Empty for a live request."""

    def __post_init__(self) -> None:
        if not any(message.role == "user" for message in self.messages):
            raise ValueError('"messages" has no user message')
        if not self.prompt_id:
            force_setattr(self, "prompt_id", default_prompt_id(self.prompt_text))
        if not self.family:
            force_setattr(self, "family", self.prompt_id)
        if not self.key:
            force_setattr(self, "key", self.request.key)

    @classmethod
    def of(cls, prompt: Prompt, request: Request, answer: Answer, *, asked_at: str = "", batch: str = "") -> Self:
        """Build the record of an answered request."""
        return cls(
            key=request.key,
            prompt_id=prompt.id,
            family=prompt.family,
            category=prompt.category,
            split=prompt.split,
            teacher=request.teacher,
            model=answer.model,
            max_tokens=request.max_tokens,
            messages=request.messages,
            question=request.question,
            context=prompt.context,
            temperature=request.temperature,
            seed=request.seed,
            sample=request.sample,
            answer=answer.text,
            stop_reason=answer.stop_reason,
            usage=answer.usage,
            cost_usd=answer.cost_usd,
            seconds=round(answer.seconds, 3),
            asked_at=asked_at,
            detail=answer.detail,
            batch=batch,
        )

    @property
    def prompt_text(self) -> str:
        """The question, or the last user message."""
        users = (message.content for message in reversed(self.messages) if message.role == "user")
        return self.question or next(users)

    @property
    def turns(self) -> Messages:
        """The conversation before the answer as the student sees it: no system message, no context."""
        if self.question:
            return (Message("user", self.question),)
        return tuple(message for message in self.messages if message.role != "system")

    @property
    def request(self) -> Request:
        sampling = (self.temperature, self.seed, self.sample)
        return Request(self.teacher, self.messages, self.max_tokens, self.question, *sampling)

    @property
    def completion_status(self) -> str:
        """`complete`; `empty` for a complete answer without text; otherwise the stop reason."""
        return completion_status(self.stop_reason, self.answer)

    @property
    def complete(self) -> bool:
        return self.completion_status == "complete"


class Example(Record, frozen=True):
    """One row of `train.jsonl`, `valid.jsonl` or `test.jsonl`, in mlx-lm's chat format."""

    written_if_set = frozenset({"context", "tools", "mask_thinking"})

    messages: Annotated[Messages, msgspec.Meta(min_length=1)]
    """System message (always written out), user turns, assistant turns."""
    id: str = ""
    """Default: 12 hex digits of the content hash of the messages."""
    family: str = ""
    category: str = "general"
    context: str = ""
    """A document that only the teacher sees: never part of the student's tokens."""
    tools: tuple[dict[str, Any], ...] = ()
    """Descriptions of the tools that the messages may call, as JSON schemas."""
    mask_thinking: bool = False
    """The reasoning of the answers is read, but not learned."""

    @classmethod
    def from_json(cls, data: object) -> Self:
        """Check the types of plain data. A turn that only calls tools may have the content null, as in OpenAI's API."""
        if isinstance(data, Mapping) and isinstance(data.get("messages"), list):
            messages = [
                {**turn, "content": ""} if isinstance(turn, Mapping) and turn.get("content", "") is None else turn
                for turn in data["messages"]
            ]
            data = {**data, "messages": messages}
        return super().from_json(data)

    def __post_init__(self) -> None:
        if not any(message.role == "assistant" for message in self.messages):
            raise ValueError('"messages" has no assistant turn, so there is nothing to learn')
        if not self.id:
            content = [*(message.to_json() for message in self.messages), *self.tools]
            force_setattr(self, "id", content_hash(content)[:12])
        if not self.family:
            force_setattr(self, "family", self.id)
