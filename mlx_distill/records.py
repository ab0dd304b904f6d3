"""The data that crosses from room to room: prompts, the teacher's answers, and the examples made of them.

Each type reads itself from one JSON object (`from_json`, raising ValueError with a sentence about the field) and
writes itself back (`to_json`). Dicts exist at that edge only.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, Literal, get_args

Role = Literal["system", "user", "assistant"]
Split = Literal["train", "valid", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
ROLES: tuple[Role, ...] = get_args(Role)

NAME_LENGTH = 40
"""Characters of a prompt's first words in the id that is made of it."""
PROMPT_FIELDS = ("id", "prompt", "family", "category", "split", "variations")
COMPLETE_STOP_REASONS = frozenset({"end_turn", "stop_sequence"})
"""Stop reasons after which an answer is whole. Everything else (max_tokens, refusal, ...) is kept but never learnt."""

STUDENT_SYSTEM = "You are a helpful assistant."
"""The system message that the student is trained and used with, unless a project says otherwise."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str

    @classmethod
    def from_json(cls, data: object) -> Message:
        if not isinstance(data, Mapping):
            raise ValueError('a message must be an object with "role" and "content"')
        role, content = data.get("role"), data.get("content")
        if role not in ROLES:
            raise ValueError(f"role {role!r} is not one of {', '.join(ROLES)}")
        if not isinstance(content, str):
            raise ValueError(f"the content of a {role} message must be text")
        return cls(role, content)

    def to_json(self) -> dict[str, str]:
        return {"role": self.role, "content": self.content}


Messages = tuple[Message, ...]


def messages_from_json(data: object) -> Messages:
    """A non-empty list of message objects."""
    if not isinstance(data, Sequence) or isinstance(data, str) or not data:
        raise ValueError('"messages" must be a non-empty list')
    return tuple(Message.from_json(item) for item in data)


def conversation(prompt: str, system: str = "") -> Messages:
    """The messages that ask `prompt`, under an explicit system message where one is given."""
    ask = (Message("user", prompt),)
    return (_system(system), *ask) if system else ask


@lru_cache(maxsize=4)
def _system(text: str) -> Message:
    """One object for the many conversations under it."""
    return Message("system", text)


def content_hash(data: Any) -> str:
    """SHA-256 (hex) of JSON data in canonical form: the identity of things that are equal when their content is."""
    canonical = json.dumps(data, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()


@dataclass(frozen=True, slots=True)
class Prompt:
    """One question to the teacher."""

    id: str
    text: str
    family: str
    """A base prompt and its variations share one; a family is never split between train and test."""
    category: str = "general"
    split: Split | None = None
    """Where its example must go; None lets the family's hash decide."""

    @classmethod
    def from_json(cls, data: object) -> Prompt:
        if not isinstance(data, Mapping):
            raise ValueError("a prompt must be a JSON object")
        refuse_misspelt(data, PROMPT_FIELDS)
        text = data.get("prompt")
        if not isinstance(text, str):
            raise ValueError('"prompt" is missing or not text')
        if not text.strip():
            raise ValueError('"prompt" is empty')
        _refuse_half_characters(text)
        prompt_id = data.get("id", name_of(text))
        family = data.get("family", prompt_id)
        category = data.get("category", "general")
        for name, value in (("id", prompt_id), ("family", family), ("category", category)):
            if not isinstance(value, str) or not value.strip():
                raise ValueError(f'"{name}" must be non-empty text')
            _refuse_half_characters(value)
        return cls(prompt_id, text, family, category, split_from_json(data.get("split")))

    def to_json(self) -> dict[str, Any]:
        data: dict[str, Any] = {"id": self.id, "prompt": self.text, "family": self.family, "category": self.category}
        if self.split:
            data["split"] = self.split
        return data


def _refuse_half_characters(text: str) -> None:
    """Raise ValueError for a lone surrogate, which JSON can write and UTF-8 cannot: no teacher can be sent it."""
    found = re.search(r"[\ud800-\udfff]", text)
    if found:
        raise ValueError(f"it holds \\u{ord(found.group()):04x}, half of a character")


def name_of(prompt: str) -> str:
    """An id for a prompt that has none: its first words, to be known by, and its content's hash, to be told apart."""
    words: list[str] = []
    for word in re.finditer(r"\w+", prompt.casefold()):
        if len("-".join([*words, word.group()])) > NAME_LENGTH:
            break
        words.append(word.group())
    return "-".join([*words, content_hash(prompt)[:12]])


def refuse_misspelt(data: Mapping[str, Any], known: Sequence[str]) -> None:
    """Raise ValueError for a field that is nearly a known one: it would be passed over, and what it says be lost."""
    for name in data:
        if name in known:  # looking for near ones takes a while
            continue
        near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.75)
        if near and near[0] not in data:
            raise ValueError(f"unknown field {name!r}; did you mean {near[0]!r}?")


def split_from_json(value: object) -> Split | None:
    """A named split, or None where the field is absent or null."""
    if value is None:
        return None
    for split in SPLITS:
        if value == split:
            return split
    raise ValueError(f'"split" is {value!r}, not one of {", ".join(SPLITS)}')


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens as the teacher billed them. All input is `input_tokens + cache_creation_tokens + cache_read_tokens`."""

    input_tokens: int = 0
    output_tokens: int = 0
    cache_creation_tokens: int = 0
    cache_read_tokens: int = 0
    thinking_tokens: int = 0
    """The part of `output_tokens` that was thinking, where the provider says."""

    def plus(self, other: Usage) -> Usage:
        """Both together."""
        return Usage(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))


@dataclass(frozen=True, slots=True)
class Request:
    """One question as a teacher is asked it; its key is what makes two questions the same question."""

    teacher: str
    """Provider and model as the user names them: `anthropic:claude-sonnet-4-6`, `recorded:sample`."""
    messages: Messages
    max_tokens: int

    @property
    def key(self) -> str:
        """Content hash of teacher, parameters and messages: 64 hex digits."""
        messages = [message.to_json() for message in self.messages]
        return content_hash({"teacher": self.teacher, "max_tokens": self.max_tokens, "messages": messages})

    @property
    def question(self) -> str:
        """Content hash of teacher and messages alone: a whole answer holds whatever `max_tokens` would have allowed."""
        return content_hash({"teacher": self.teacher, "messages": [message.to_json() for message in self.messages]})


@dataclass(frozen=True, slots=True)
class Answer:
    """What a teacher said to one request."""

    text: str
    """The joined text blocks; empty for a refusal or an answer of thinking only."""
    stop_reason: str
    """As the provider gives it: end_turn, max_tokens, stop_sequence, refusal, ..."""
    model: str
    """The model that answered, as the provider names it."""
    usage: Usage = Usage()
    cost_usd: float | None = None
    """None where it is not known or not counted, or where the answer is a replay."""
    seconds: float = 0.0
    detail: str = ""
    """Why it stopped, where the provider says more (a refusal's category)."""

    @property
    def complete(self) -> bool:
        return self.outcome == "complete"

    @property
    def outcome(self) -> str:
        """`complete`, `empty` where it ended without a word of text, else the stop reason: max_tokens, refusal, ..."""
        if self.stop_reason not in COMPLETE_STOP_REASONS:
            return self.stop_reason
        return "complete" if self.text.strip() else "empty"


@dataclass(frozen=True, slots=True)
class TeacherRecord:
    """One line of a `teacher_data.jsonl` journal: a prompt, what was asked and what came back."""

    key: str
    prompt: Prompt
    request: Request
    answer: Answer
    asked_at: str = ""
    """UTC, ISO 8601, when the answer arrived."""
    batch: str = ""
    """The provider's name of the batch that it came with; empty for an answer to a request of its own."""

    @classmethod
    def from_json(cls, data: object) -> TeacherRecord:
        if not isinstance(data, Mapping):
            raise ValueError("a record must be a JSON object")
        messages = messages_from_json(data.get("messages"))
        users = [message.content for message in messages if message.role == "user"]
        if not users:
            raise ValueError('"messages" has no user message')
        text = data.get("answer")
        if not isinstance(text, str):
            raise ValueError('"answer" is missing or not text')
        prompt_id = data.get("prompt_id") or name_of(users[-1])
        prompt = Prompt.from_json(
            {
                "id": prompt_id,
                "prompt": users[-1],
                "family": data.get("family") or prompt_id,
                "category": data.get("category") or "general",
                "split": data.get("split"),
            }
        )
        request = Request(str(data.get("teacher", "recorded")), messages, int(data.get("max_tokens", 0)))
        usage = data.get("usage") or {}
        if not isinstance(usage, Mapping):
            raise ValueError('"usage" must be an object')
        answer = Answer(
            text=text,
            stop_reason=str(data.get("stop_reason", "end_turn")),
            model=str(data.get("model", "")),
            usage=Usage(**{name: int(usage.get(name, 0)) for name in Usage.__dataclass_fields__}),
            cost_usd=data.get("cost_usd"),
            seconds=float(data.get("seconds", 0.0)),
            detail=str(data.get("detail", "")),
        )
        key, asked_at, batch = (str(data.get(name) or "") for name in ("key", "asked_at", "batch"))
        return cls(key or request.key, prompt, request, answer, asked_at, batch)

    def to_json(self) -> dict[str, Any]:
        data: dict[str, Any] = {
            "key": self.key,
            "prompt_id": self.prompt.id,
            "family": self.prompt.family,
            "category": self.prompt.category,
            "split": self.prompt.split,
            "teacher": self.request.teacher,
            "model": self.answer.model,
            "max_tokens": self.request.max_tokens,
            "messages": [message.to_json() for message in self.request.messages],
            "answer": self.answer.text,
            "stop_reason": self.answer.stop_reason,
            "usage": asdict(self.answer.usage),
            "cost_usd": self.answer.cost_usd,
            "seconds": round(self.answer.seconds, 3),
            "asked_at": self.asked_at,
        }
        if self.answer.detail:
            data["detail"] = self.answer.detail
        if self.batch:
            data["batch"] = self.batch
        return data


@dataclass(frozen=True)
class Example:
    """One row of `train.jsonl`, `valid.jsonl` or `test.jsonl`, in mlx-lm's chat format with our identity beside it."""

    id: str
    family: str
    category: str
    messages: Messages
    """System message (explicit), user turns, assistant turns."""

    @classmethod
    def from_json(cls, data: object) -> Example:
        if not isinstance(data, Mapping):
            raise ValueError("an example must be a JSON object")
        messages = messages_from_json(data.get("messages"))
        if not any(message.role == "assistant" for message in messages):
            raise ValueError('"messages" has no assistant turn, so there is nothing to learn')
        identity = str(data.get("id") or content_hash(data["messages"])[:12])
        return cls(
            id=identity,
            family=str(data.get("family") or identity),
            category=str(data.get("category") or "general"),
            messages=messages,
        )

    def to_json(self) -> dict[str, Any]:
        messages = [message.to_json() for message in self.messages]
        return {"id": self.id, "family": self.family, "category": self.category, "messages": messages}
