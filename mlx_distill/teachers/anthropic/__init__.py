"""Claude as a teacher, through the Messages API."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Self

from mlx_distill.records import Answer, Request
from mlx_distill.teachers.anthropic.batches import AnthropicBatches
from mlx_distill.teachers.anthropic.connection import AnthropicConnection
from mlx_distill.teachers.anthropic.messages import parameters
from mlx_distill.teachers.headers import ANTHROPIC_LIMITS, limits_of
from mlx_distill.teachers.protocol import Limit, TryLaterError, UnreadableError

if TYPE_CHECKING:
    from anthropic.types import Message

STREAM_ABOVE_TOKENS = 8192
"""Longer answers are streamed: the SDK refuses to wait for them in one piece (at 21,333, for some models at 8,192)."""
LONGEST_SECONDS = 600.0
"""An answer that drips in for longer is given up: the SDK's own limit is from one byte to the next."""
LONGEST_SECONDS_PER_TOKEN = 0.1
"""What may come on top of that for each token allowed."""


class AnthropicTeacher:
    """A model of the Messages API: `ANTHROPIC_API_KEY` and `ANTHROPIC_BASE_URL` are read by the SDK."""

    terms = (
        "Training models on Claude's answers is bound by Anthropic's terms of service: where the model competes with "
        "theirs, it needs their permission."
    )

    longest_retry = STREAM_ABOVE_TOKENS

    def __init__(self, model: str, longest_seconds: float = LONGEST_SECONDS) -> None:
        self.name = f"anthropic:{model}"
        self.billed_model = model
        self.limits: tuple[Limit, ...] = ()
        self._longest_seconds = longest_seconds
        self._connection = AnthropicConnection(model)
        self.batches = AnthropicBatches(self._connection, model)

    async def __aenter__(self) -> Self:
        await self._connection.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._connection.__aexit__(kind, error, trace)

    async def answer(self, request: Request) -> Answer:
        started = time.monotonic()
        deadline = self._longest_seconds + LONGEST_SECONDS_PER_TOKEN * request.max_tokens
        with self._connection.failures_told():
            try:
                async with asyncio.timeout(deadline):
                    message, headers = await self._message(request)
            except TimeoutError as error:
                raise TryLaterError(f"no whole answer within {deadline:g} s") from error
        self.limits = limits_of(headers, ANTHROPIC_LIMITS)
        return self._connection.answer_of(message, time.monotonic() - started)

    async def _message(self, request: Request) -> tuple[Message, Mapping[str, str]]:
        """The whole message, streamed where it may be long, and the headers it came with."""
        messages = self._connection.client.messages
        asked = parameters(self.billed_model, request)
        if request.max_tokens <= STREAM_ABOVE_TOKENS:
            whole = await messages.with_raw_response.create(**asked)
            message, headers = await whole.parse(), whole.headers
        else:
            async with messages.stream(**asked) as stream:
                headers = stream.response.headers
                self._refuse_no_stream(headers)
                ended = False
                async for event in stream:
                    ended = ended or event.type == "message_stop"
                if not ended:
                    raise TryLaterError("the stream broke off")
                message = await stream.get_final_message()
        return message, headers

    def _refuse_no_stream(self, headers: Mapping[str, str]) -> None:
        """Raise where a stream was asked for and something else came: asking again would bring the same."""
        kind = headers.get("content-type", "")
        if not kind.startswith("text/event-stream"):
            raise UnreadableError(
                f"{self._connection.address} does not stream: it answered with {kind or 'no content type'}.",
                f"Set max_tokens to {STREAM_ABOVE_TOKENS} or less, or check ANTHROPIC_BASE_URL and any proxy.",
            )
