"""OpenAI's chat completions (https://platform.openai.com/docs/api-reference/chat): requests and responses.

An unsupported parameter that would change the answer is refused, because an answer without it would be wrong.
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

import msgspec
from msgspec import Meta

from mlx_distill.models.config import MAX_TEMPERATURE
from mlx_distill.records import Message, Messages, explain

MAX_STOP_TEXTS = 4
MAX_STOP_CHARACTERS = 200

Zero = Annotated[float, Meta(ge=0, le=0)]
StopText = Annotated[str, Meta(min_length=1, max_length=MAX_STOP_CHARACTERS)]


class RequestError(Exception):
    """The reason why a request gets no answer, with the parameter, the HTTP status and OpenAI's error code."""

    def __init__(self, message: str, param: str | None = None, status: int = 400, code: str | None = None) -> None:
        super().__init__(message)
        self.param, self.status, self.code = param, status, code

    def to_json(self) -> dict[str, Any]:
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


class Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of the parts of a request."""


class TextPart(Strict, frozen=True):
    type: Literal["text"]
    text: str


class RequestMessage(Strict, frozen=True):
    """One turn. Clients copy the last fields from answers of this server; they must be empty."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | tuple[TextPart, ...]
    refusal: None = None
    annotations: Annotated[tuple[Any, ...], Meta(max_length=0)] | None = None
    audio: None = None
    function_call: None = None
    tool_calls: None = None

    def to_message(self) -> Message:
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return Message("system" if self.role == "developer" else self.role, text)


class TextFormat(Strict, frozen=True):
    type: Literal["text"]


class StreamOptions(Strict, frozen=True):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class ChatRequest(Strict, frozen=True):
    """A checked request. None means the server's default."""

    model: str
    messages: Annotated[tuple[RequestMessage, ...], Meta(min_length=1)]
    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Meta(ge=1)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=MAX_TEMPERATURE)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] | None = None
    stop: StopText | Annotated[tuple[StopText, ...], Meta(max_length=MAX_STOP_TEXTS)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    # Parameters that do not change the answer.
    user: str | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    # Parameters whose only supported value does not change the answer.
    n: Annotated[int, Meta(ge=1, le=1)] | None = None
    presence_penalty: Zero | None = None
    frequency_penalty: Zero | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=0)] | None = None
    logit_bias: Annotated[dict[str, float], Meta(max_length=0)] | None = None
    tools: Annotated[tuple[Any, ...], Meta(max_length=0)] | None = None
    functions: Annotated[tuple[Any, ...], Meta(max_length=0)] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    response_format: TextFormat | None = None

    def __post_init__(self) -> None:
        if self.logprobs:
            raise ValueError('"logprobs" is not supported')
        if self.messages[-1].role != "user":
            raise ValueError('the last of the "messages" must be a user message')

    @classmethod
    def parse(cls, body: bytes, models: Sequence[str]) -> Self:
        """Decode and check a request for one of `models`. Raises RequestError."""
        try:
            request = msgspec.json.decode(body, type=cls)
        except msgspec.ValidationError as error:
            param = re.search(r" - at `\$\.(\w+)", str(error))
            raise RequestError(f"{explain(error)}.", param[1] if param else None) from error
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise RequestError(f"The body is not valid JSON: {error}.") from error
        check_model(request.model, models)
        return request

    def to_messages(self, system: str) -> Messages:
        """Return the messages. `system` comes first if the request has no system message."""
        messages = tuple(message.to_message() for message in self.messages)
        if system and all(message.role != "system" for message in messages):
            return (Message("system", system), *messages)
        return messages

    @property
    def stop_texts(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else self.stop or ()

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)


def check_model(name: str, models: Sequence[str]) -> None:
    """Raise RequestError if the server has no model of this name."""
    if name not in models:
        message = f"There is no model {name!r}; this server has {', '.join(models)}."
        raise RequestError(message, "model", 404, "model_not_found")


class Finish(msgspec.Struct, frozen=True):
    """The end of an answer, and its token counts."""

    reason: str
    """`stop` or `length`."""
    n_prompt: int
    n_reused: int
    n_completion: int

    def usage(self) -> dict[str, Any]:
        """Return the token counts under OpenAI's names."""
        return {
            "prompt_tokens": self.n_prompt,
            "completion_tokens": self.n_completion,
            "total_tokens": self.n_prompt + self.n_completion,
            "prompt_tokens_details": {"cached_tokens": self.n_reused},
        }


class ResponseBuilder:
    """Builds the responses to one request: a whole answer, or chunks with the same id."""

    def __init__(self, model: str) -> None:
        self._head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}

    def whole(self, text: str, finish: Finish) -> dict[str, Any]:
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish.reason}
        return {**self._head, "object": "chat.completion", "choices": [choice], "usage": finish.usage()}

    def chunk(self, delta: dict[str, str], finish_reason: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return {**self._head, "object": "chat.completion.chunk", "choices": [choice]}

    def usage_chunk(self, finish: Finish) -> dict[str, Any]:
        return {**self._head, "object": "chat.completion.chunk", "choices": [], "usage": finish.usage()}


class StopFilter:
    """Passes the text before the first stop text on. Several pieces together may contain it."""

    def __init__(self, stop_texts: Sequence[str]) -> None:
        self.found = False
        self._stop_texts = stop_texts
        self._held = ""
        """The end of the text so far: it may be the start of a stop text, and the next pieces decide."""

    def add(self, piece: str, *, is_last: bool = False) -> str:
        """Return the text that is certain to come before a stop text."""
        text = self._held + piece
        starts = [text.index(stop) for stop in self._stop_texts if stop in text]
        self.found = bool(starts)
        if starts:
            return text[: min(starts)]
        lengths = range(1, min(max(map(len, self._stop_texts), default=0), len(text) + 1))
        n_held = max((n for n in lengths if any(stop.startswith(text[-n:]) for stop in self._stop_texts)), default=0)
        ready = len(text) if is_last else len(text) - n_held
        self._held = text[ready:]
        return text[:ready]
