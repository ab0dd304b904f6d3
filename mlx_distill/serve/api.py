"""OpenAI's chat completions as JSON: what a request may say, and what answers look like.

https://platform.openai.com/docs/api-reference/chat
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlx_distill.records import Message, Messages, Role

NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "n": (1,),
    "presence_penalty": (0, 0.0),
    "frequency_penalty": (0, 0.0),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "functions": ([],),
    "response_format": ({"type": "text"},),
}
"""Parameters that are understood only where they change nothing. Passing over another value in silence would answer
another question than the one asked."""

_ROLES: Mapping[str, Role] = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


class RequestError(ValueError):
    """A request that cannot be answered: one sentence, and the parameter it is about."""

    def __init__(self, message: str, param: str | None = None, status: int = 400, code: str | None = None) -> None:
        super().__init__(message)
        self.param, self.status, self.code = param, status, code

    def to_json(self) -> dict[str, Any]:
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


@dataclass(frozen=True)
class ChatRequest:
    """A checked request. None means that the server's own setting holds."""

    model: str
    messages: Messages
    max_tokens: int | None
    temperature: float | None
    top_p: float
    seed: int | None
    stop: tuple[str, ...]
    stream: bool
    include_usage: bool

    @classmethod
    def from_json(cls, data: object, models: Sequence[str]) -> ChatRequest:
        """Raises RequestError."""
        if not isinstance(data, Mapping):
            raise RequestError("The body must be a JSON object.")
        for name, values in NEUTRAL.items():
            if data.get(name) is not None and data[name] not in values:
                raise RequestError(f"{name} is not supported by this server; leave it out.", name)
        options = data.get("stream_options")
        return cls(
            model=_model(data.get("model"), models),
            messages=_messages(data.get("messages")),
            max_tokens=_number(data, "max_completion_tokens", int, 1) or _number(data, "max_tokens", int, 1),
            temperature=_number(data, "temperature", float, 0, 10),
            top_p=1.0 if data.get("top_p") is None else _number(data, "top_p", float, 0, 1),
            seed=_number(data, "seed", int, 0, 2**63 - 1),
            stop=_stop(data.get("stop")),
            stream=data.get("stream") is True,
            include_usage=isinstance(options, Mapping) and options.get("include_usage") is True,
        )


def _model(name: object, models: Sequence[str]) -> str:
    if not isinstance(name, str):
        raise RequestError(f'"model" is missing; this server has {", ".join(models)}.', "model")
    if name not in models:
        message = f"There is no model {name!r}; this server has {', '.join(models)}."
        raise RequestError(message, "model", 404, "model_not_found")
    return name


def _messages(data: object) -> Messages:
    if not isinstance(data, list) or not data:
        raise RequestError('"messages" must be a non-empty list.', "messages")
    messages = []
    for number, item in enumerate(data):
        where = f"messages[{number}]"
        role = item.get("role") if isinstance(item, Mapping) else None
        if not isinstance(role, str) or role not in _ROLES:
            raise RequestError(f"{where}: role {role!r} is not one of {', '.join(_ROLES)}.", "messages")
        messages.append(Message(_ROLES[role], _content(item.get("content"), where)))
    if messages[-1].role != "user":
        raise RequestError("The last message must be the user's.", "messages")
    return tuple(messages)


def _content(content: object, where: str) -> str:
    """Text, or the texts of a list of text parts."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else [None]
    texts = [part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else None for part in parts]
    if not all(isinstance(text, str) for text in texts):
        raise RequestError(f"{where}: the content must be text; images, audio and tools are not supported.", "messages")
    return "".join(text for text in texts if text)


def _number(data: Mapping[str, Any], name: str, kind: type, least: float, most: float = float("inf")) -> Any:
    value = data.get(name)
    if value is None:
        return None
    right = isinstance(value, (int, float) if kind is float else int) and not isinstance(value, bool)
    if not right or not least <= value <= most:
        kinds = {int: "a whole number", float: "a number"}
        limit = f" and at most {most:g}" if most < 2**31 else ""
        raise RequestError(f"{name} must be {kinds[kind]} of at least {least:g}{limit}, not {value!r}.", name)
    return value


def _stop(value: object) -> tuple[str, ...]:
    texts = [value] if isinstance(value, str) else value if isinstance(value, list) else [] if value is None else [0]
    if not all(isinstance(text, str) and text for text in texts):
        raise RequestError("stop must be a non-empty text or a list of them.", "stop")
    return tuple(texts)


def until(stops: Sequence[str], pieces: Iterable[str]) -> Iterator[str]:
    """The text of `pieces` up to the first of the stop texts, however the pieces cut it.

    What may be the beginning of a stop text is held back until it is known to be none.
    """
    held = ""
    for piece in pieces:
        held += piece
        found = [held.index(stop) for stop in stops if stop in held]
        if found:
            yield held[: min(found)]
            return
        lengths = range(1, max(map(len, stops), default=1))
        maybe = max((n for n in lengths if any(stop.startswith(held[-n:]) for stop in stops)), default=0)
        ready, held = (held[:-maybe], held[-maybe:]) if maybe else (held, "")
        yield ready
    yield held


@dataclass(frozen=True)
class Usage:
    """Tokens of one answer."""

    n_prompt: int
    n_reused: int
    n_completion: int

    def to_json(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.n_prompt,
            "completion_tokens": self.n_completion,
            "total_tokens": self.n_prompt + self.n_completion,
            "prompt_tokens_details": {"cached_tokens": self.n_reused},
        }


@dataclass(frozen=True)
class Shape:
    """What all objects of one answer share."""

    id: str
    model: str
    created: int

    def completion(self, text: str, finish_reason: str, usage: Usage) -> dict[str, Any]:
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish_reason}
        return {**self._head("chat.completion"), "choices": [choice], "usage": usage.to_json()}

    def chunk(self, delta: Mapping[str, str], finish_reason: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": dict(delta), "logprobs": None, "finish_reason": finish_reason}
        return {**self._head("chat.completion.chunk"), "choices": [choice]}

    def usage_chunk(self, usage: Usage) -> dict[str, Any]:
        return {**self._head("chat.completion.chunk"), "choices": [], "usage": usage.to_json()}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


def model_list(models: Sequence[str], created: int) -> dict[str, Any]:
    return {"object": "list", "data": [model_object(name, created) for name in models]}


def model_object(name: str, created: int) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": created, "owned_by": "mlx-distill"}
