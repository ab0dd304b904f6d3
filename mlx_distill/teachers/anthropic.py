"""Claude as a teacher: the Messages API, and Message Batches at half price."""

from __future__ import annotations

import difflib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any, Literal

import anthropic
from anthropic.types import Message
from anthropic.types.messages import MessageBatch, MessageBatchIndividualResponse

from mlx_distill.errors import TeacherError
from mlx_distill.records import Answer, Request, Usage
from mlx_distill.teachers.base import (
    BatchGoneError,
    BatchResult,
    BatchState,
    MalformedResponseError,
    PromptError,
    Reply,
    RetryableError,
)
from mlx_distill.teachers.http_utils import (
    MAX_RESPONSE_BYTES,
    HttpTeacher,
    client_options,
    limited_lines,
    rate_limits,
    text_of,
    token_count,
)
from mlx_distill.teachers.pricing import PRICES

STREAM_ABOVE_TOKENS = 8192
"""Longer answers are streamed: the SDK refuses to wait for them in one piece (for some models above 8,192 tokens)."""
MAX_SECONDS = 600.0
"""Deadline of a request, besides the SDK's limit between two bytes and the time for its tokens."""
BATCH_FRAME_BYTES = 128
"""Upper bound of what surrounds the parameters of a request in a batch: its custom_id and the braces."""
MAX_RESULT_BYTES = 2**20
"""Bytes that the results of a batch may have for each of its requests, on average."""
KEY_ADVICE = "Set ANTHROPIC_API_KEY to a key from platform.claude.com (export ANTHROPIC_API_KEY=...)."
NO_BATCH_ADVICE = "Leave out --batch (in distill.toml: batch) to send single requests."
RATE_LIMITS: Mapping[str, Literal["requests", "input tokens", "output tokens"]] = {
    "anthropic-ratelimit-requests": "requests",
    "anthropic-ratelimit-input-tokens": "input tokens",
    "anthropic-ratelimit-output-tokens": "output tokens",
}
FINAL_BATCH_ERRORS = frozenset({"invalid_request_error", "request_too_large", "not_found_error", "permission_error"})
"""Errors of a batch's request that would come again."""
BATCH_ENDS = {"expired": "it expired", "canceled": "it was cancelled"}


class AnthropicTeacher(HttpTeacher):
    """A model of the Messages API. The SDK reads ANTHROPIC_API_KEY and ANTHROPIC_BASE_URL."""

    terms = (
        "Anthropic's terms of service apply to training on Claude's answers: a model that competes with theirs needs "
        "their permission."
    )
    max_retry_tokens = STREAM_ABOVE_TOKENS
    max_requests = 100_000
    max_bytes = 250_000_000
    """The API allows 256 MB. The difference covers what the SDK encodes differently."""

    service = "Anthropic"
    key_name = "ANTHROPIC_API_KEY"

    def __init__(self, model: str, max_seconds: float = MAX_SECONDS) -> None:
        super().__init__(anthropic, f"anthropic:{model}", model, max_seconds)
        self.billed_model = model

    def connect(self) -> anthropic.AsyncAnthropic:
        try:
            http = anthropic.DefaultAsyncHttpxClient(**client_options())
            connection = anthropic.AsyncAnthropic(max_retries=0, http_client=http)
        except (anthropic.AnthropicError, ValueError) as error:
            raise TeacherError(f"The Anthropic SDK cannot be set up: {error}", KEY_ADVICE) from error
        headers = {name.lower() for name in connection.default_headers}
        if connection.credentials is None and not headers & {"authorization", "x-api-key"}:
            raise TeacherError("No API key: ANTHROPIC_API_KEY is not set.", KEY_ADVICE)
        self.secrets = (connection.api_key, connection.auth_token)
        return connection

    async def send(self, request: Request) -> Reply:
        """Send one live request; stream it if the answer may be long."""
        values = parameters(self.model, request)
        if request.max_tokens > STREAM_ABOVE_TOKENS:
            message, headers = await self._stream(values)
        else:
            response = await self.connection.messages.with_raw_response.create(**values)
            message, headers = await response.parse(), response.headers
        return Reply(self._answer(message), rate_limits(headers, RATE_LIMITS))

    async def _stream(self, values: Mapping[str, Any]) -> tuple[Message, Mapping[str, str]]:
        async with self.connection.messages.stream(**values) as stream:
            headers = stream.response.headers
            kind = headers.get("content-type", "")
            if not kind.startswith("text/event-stream"):  # another attempt would bring the same
                raise MalformedResponseError(
                    f"{self.address} does not stream: it answered with {kind or 'no content type'}.",
                    "Set max_tokens to 8192 or less, or check ANTHROPIC_BASE_URL and any proxy.",
                )
            ended = False
            async for event in stream:
                ended = ended or event.type == "message_stop"
            if not ended:
                raise RetryableError("the stream broke off")
            return await stream.get_final_message(), headers

    async def sort_status(self, error: anthropic.APIStatusError) -> Exception:
        status, kind = error.status_code, str(error.type or "")
        message = self.clean(error.api_message or error.message)
        if kind == "not_found_error":
            near = difflib.get_close_matches(self.model, [name for name in PRICES if name != self.model], n=1)
            return TeacherError(
                f"{self.address} has no model {self.model!r} ({status}): {message}",
                f"Did you mean anthropic:{near[0]}?" if near else f"Known models: {', '.join(PRICES)}.",
            )
        if status == 404:
            return TeacherError(f"{self.address} has no Messages API (404): {message}", "Check ANTHROPIC_BASE_URL.")
        return self.sort_error(status, error.error_code or "", kind, message, error.response.headers)

    @asynccontextmanager
    async def sorted_errors(self, missing: str = "") -> AsyncIterator[None]:
        """Turn the SDK's errors into those of the protocol; a 404 means that the batch `missing` is gone."""
        async with super().sorted_errors():
            try:
                yield
            except anthropic.CredentialsError as error:
                message = f"The Anthropic credentials cannot be used: {self.clean(error)}"
                raise TeacherError(message, KEY_ADVICE) from error
            except anthropic.NotFoundError as error:
                if not missing:
                    raise
                raise BatchGoneError(f"{missing} is gone") from error

    # The Message Batches API

    def size_bytes(self, request: Request) -> int:
        return len(json.dumps(parameters(self.model, request)).encode()) + BATCH_FRAME_BYTES

    async def create(self, requests: Mapping[str, Request]) -> BatchState:
        entries = [{"custom_id": name, "params": parameters(self.model, each)} for name, each in requests.items()]
        try:
            async with self.sorted_errors():
                return self._state(await self.connection.messages.batches.create(requests=entries))
        except PromptError as error:
            raise TeacherError(f"Anthropic refused the batch: {error.reason}.", NO_BATCH_ADVICE) from error
        except TeacherError as error:
            if isinstance(error.__cause__, anthropic.NotFoundError):
                raise TeacherError(f"{self.address} has no batches (404).", NO_BATCH_ADVICE) from error
            raise

    async def retrieve(self, batch_id: str) -> BatchState:
        async with self.sorted_errors(missing=batch_id):
            return self._state(await self.connection.messages.batches.retrieve(batch_id))

    async def list_since(self, moment: datetime) -> list[BatchState]:
        found: list[BatchState] = []
        async with self.sorted_errors(missing=f"the list of batches at {self.address}"):
            async for batch in self.connection.messages.batches.list(limit=100):  # the newest first
                state = self._state(batch)
                if state.created_at < moment:
                    break
                found.append(state)
        return found

    async def results(self, batch_id: str, n_requests: int) -> AsyncGenerator[BatchResult, None]:
        max_bytes = MAX_RESPONSE_BYTES + n_requests * MAX_RESULT_BYTES
        async with self.sorted_errors(missing=batch_id):
            try:
                async with self.connection.messages.batches.with_streaming_response.results(batch_id) as response:
                    async for line in limited_lines(response.iter_bytes(), max_bytes):
                        result = self._result(line)
                        if result:
                            yield result
            except anthropic.APIError:
                raise
            except anthropic.AnthropicError as error:  # it has no results_url: results are deleted after 29 days
                raise BatchGoneError(f"the results of {batch_id} are gone") from error

    def _malformed(self, expected: str) -> MalformedResponseError:
        return MalformedResponseError(
            f"{self.address} does not speak the Messages API: its response is not a {expected}.",
            "Check ANTHROPIC_BASE_URL and any proxy in between.",
        )

    def _answer(self, message: object) -> Answer:
        # The SDK does not check shapes: a login page arrives as text, any JSON as a Message without content.
        if not isinstance(message, Message):
            raise self._malformed("message")
        try:
            return Answer(
                text="".join(block.text for block in message.content if block.type == "text"),
                stop_reason=text_of(message.stop_reason) or "unknown",
                model=text_of(message.model),
                usage=_usage(message),
                detail=self.clean(_detail(message)),
            )
        except (AttributeError, TypeError) as error:
            raise self._malformed("message") from error

    def _state(self, batch: object) -> BatchState:
        try:
            assert isinstance(batch, MessageBatch) and batch.id
            assert isinstance(batch.created_at, datetime) and isinstance(batch.expires_at, datetime)
            counts = batch.request_counts
            n_done = counts.succeeded + counts.errored + counts.canceled + counts.expired
            n_requests = n_done + counts.processing
        except (AssertionError, AttributeError, TypeError) as error:
            raise self._malformed("batch") from error
        ended = batch.processing_status == "ended"
        return BatchState(batch.id, batch.created_at, batch.expires_at, n_requests, n_done, ended)

    def _result(self, line: bytes) -> BatchResult | None:
        """Return the result of a request; None if the line cannot be read."""
        try:
            response = MessageBatchIndividualResponse.construct(**json.loads(line))
            name, result = response.custom_id, response.result
            if result.type == "succeeded":
                return BatchResult(name, self._answer(result.message))
            if result.type == "errored":
                error = result.error.error
                reason = f"{error.type}: {self.clean(error.message)}"
                return BatchResult(name, None, reason, retryable=error.type not in FINAL_BATCH_ERRORS)
            return BatchResult(name, None, BATCH_ENDS[result.type], retryable=result.type == "expired")
        except (ValueError, RecursionError, AttributeError, KeyError, TypeError, MalformedResponseError):
            return None


def parameters(model: str, request: Request) -> dict[str, Any]:
    """Return the parameters of a Messages API request, the same for live requests and batches."""
    system = "\n\n".join(message.content for message in request.messages if message.role == "system")
    values: dict[str, Any] = {
        "model": model,
        "max_tokens": request.max_tokens,
        "messages": [message.to_json() for message in request.messages if message.role != "system"],
    }
    return {**values, "system": system} if system else values


def _usage(message: Message) -> Usage:
    used: Any = message.usage
    if used is None:  # gateways leave out what the SDK's types promise
        return Usage()
    details = used.output_tokens_details
    return Usage(
        input_tokens=token_count(used.input_tokens),
        output_tokens=token_count(used.output_tokens),
        cache_creation_tokens=token_count(used.cache_creation_input_tokens),
        cache_read_tokens=token_count(used.cache_read_input_tokens),
        thinking_tokens=token_count(details.thinking_tokens) if details else 0,
    )


def _detail(message: Message) -> str:
    """Return why the answer is not complete, as far as the provider or the message says."""
    details = message.stop_details
    if details:
        return ": ".join(filter(None, [details.category, details.explanation]))
    if any(block.type == "text" and block.text.strip() for block in message.content):
        return ""
    return "thinking only" if any("thinking" in block.type for block in message.content) else "empty"
