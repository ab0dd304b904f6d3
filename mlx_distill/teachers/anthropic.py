"""Claude as a teacher. The SDK takes a second to import, so it is loaded only when the teacher is entered."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Mapping
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from msgspec import structs

from mlx_distill.records import Request
from mlx_distill.teachers.base import BatchResult, BatchState, Reply, RetryableError

if TYPE_CHECKING:
    from mlx_distill.teachers.anthropic_client import AnthropicClient

STREAM_ABOVE_TOKENS = 8192
"""Longer answers are streamed: the SDK refuses to wait for them in one piece (for some models above 8,192 tokens)."""
MAX_SECONDS = 600.0
"""Deadline of a request, besides the SDK's limit between two bytes."""
MAX_SECONDS_PER_TOKEN = 0.1
"""Added to the deadline for each token of `max_tokens`."""
BATCH_FRAME_BYTES = 128
"""Upper bound of what surrounds the parameters of a request in a batch: its custom_id and the braces."""


def parameters(model: str, request: Request) -> dict[str, Any]:
    """Return the parameters of a Messages API request, the same for live requests and batches."""
    system = "\n\n".join(message.content for message in request.messages if message.role == "system")
    values: dict[str, Any] = {
        "model": model,
        "max_tokens": request.max_tokens,
        "messages": [message.to_json() for message in request.messages if message.role != "system"],
    }
    return {**values, "system": system} if system else values


class AnthropicTeacher:
    """A model of the Messages API. The SDK reads ANTHROPIC_API_KEY and ANTHROPIC_BASE_URL."""

    terms = (
        "Anthropic's terms of service apply to training on Claude's answers: a model that competes with theirs needs "
        "their permission."
    )
    max_retry_tokens = STREAM_ABOVE_TOKENS
    max_requests = 100_000
    max_bytes = 250_000_000
    """The API allows 256 MB. The difference covers what the SDK encodes differently."""

    def __init__(self, model: str, max_seconds: float = MAX_SECONDS) -> None:
        self.name = f"anthropic:{model}"
        self.billed_model = model
        self._max_seconds = max_seconds
        self._client: AnthropicClient | None = None

    async def __aenter__(self) -> Self:
        from mlx_distill.teachers.anthropic_client import AnthropicClient

        self._client = AnthropicClient(self.billed_model)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._client is not None:
            await self._client.close()
            self._client = None

    @property
    def client(self) -> AnthropicClient:
        """The connection; only inside `async with teacher:`."""
        if self._client is None:
            raise RuntimeError("use the teacher inside `async with teacher:`")
        return self._client

    async def complete(self, request: Request) -> Reply:
        """Send one live request; stream it if the answer may be long."""
        started = time.monotonic()
        deadline = self._max_seconds + MAX_SECONDS_PER_TOKEN * request.max_tokens
        stream = request.max_tokens > STREAM_ABOVE_TOKENS
        try:
            async with asyncio.timeout(deadline):
                reply = await self.client.message(parameters(self.billed_model, request), stream=stream)
        except TimeoutError as error:
            raise RetryableError(f"no complete answer within {deadline:g} s") from error
        return Reply(structs.replace(reply.answer, seconds=time.monotonic() - started), reply.rate_limits)

    # The Message Batches API: many requests at half price, answered within a day

    def size_bytes(self, request: Request) -> int:
        return len(json.dumps(parameters(self.billed_model, request)).encode()) + BATCH_FRAME_BYTES

    async def create(self, requests: Mapping[str, Request]) -> BatchState:
        return await self.client.create_batch(
            [{"custom_id": name, "params": parameters(self.billed_model, each)} for name, each in requests.items()]
        )

    async def retrieve(self, batch_id: str) -> BatchState:
        return await self.client.retrieve_batch(batch_id)

    async def list_since(self, moment: datetime) -> list[BatchState]:
        return await self.client.list_batches(moment)

    def results(self, batch_id: str) -> AsyncGenerator[BatchResult, None]:
        return self.client.batch_results(batch_id)
