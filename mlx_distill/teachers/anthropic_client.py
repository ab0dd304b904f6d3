"""The connection to the Anthropic API through its SDK, without the SDK's own retries."""

from __future__ import annotations

import difflib
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Literal

import anthropic
import httpx2
from anthropic.types import Message
from anthropic.types.messages import MessageBatch, MessageBatchIndividualResponse

from mlx_distill.errors import TeacherError
from mlx_distill.records import Answer, Usage
from mlx_distill.teachers import http_utils
from mlx_distill.teachers.base import (
    BatchGoneError,
    BatchResult,
    BatchState,
    MalformedResponseError,
    PromptError,
    Reply,
    RetryableError,
)
from mlx_distill.teachers.http_utils import text_of, token_count
from mlx_distill.teachers.pricing import PRICES

CONSOLE = "platform.claude.com"
KEY_ADVICE = f"Set ANTHROPIC_API_KEY to a key from {CONSOLE} (export ANTHROPIC_API_KEY=...)."
NO_BATCH_ADVICE = "Leave out --batch (in distill.toml: batch) to send single requests."
RATE_LIMITS: Mapping[str, Literal["requests", "input tokens", "output tokens"]] = {
    "anthropic-ratelimit-requests": "requests",
    "anthropic-ratelimit-input-tokens": "input tokens",
    "anthropic-ratelimit-output-tokens": "output tokens",
}
BALANCE_CODES = frozenset(
    {
        "billing_error",
        "enforced_spend_limit_reached",
        "contract_spend_limit_reached",
        "linked_organization_spend_limit_reached",
        "linked_organization_billing_unavailable",
    }
)
FINAL_BATCH_ERRORS = frozenset({"invalid_request_error", "request_too_large", "not_found_error", "permission_error"})
"""Errors of a batch's request that would come again."""
BATCH_ENDS = {"expired": "it expired", "canceled": "it was cancelled"}


class AnthropicClient:
    """An open connection. Raises the errors of the teacher protocol."""

    def __init__(self, model: str) -> None:
        self._model = model
        try:
            http = anthropic.DefaultAsyncHttpxClient(**http_utils.client_options())
            self._sdk = anthropic.AsyncAnthropic(max_retries=0, http_client=http)
        except (anthropic.AnthropicError, ValueError) as error:
            raise TeacherError(f"The Anthropic SDK cannot be set up: {error}", KEY_ADVICE) from error
        headers = {name.lower() for name in self._sdk.default_headers}
        if self._sdk.credentials is None and not headers & {"authorization", "x-api-key"}:
            raise TeacherError("No API key: ANTHROPIC_API_KEY is not set.", KEY_ADVICE)
        if any(secret and not http_utils.is_valid_key(secret) for secret in self._secrets):
            raise TeacherError("ANTHROPIC_API_KEY has a space, a line break or another invalid character.", KEY_ADVICE)
        self._address = http_utils.address_of(self._sdk.base_url)
        self._service = http_utils.Service(
            name="Anthropic",
            model=model,
            balance_codes=BALANCE_CODES,
            balance_words=("credit balance", "usage limit"),
            too_long_words=("prompt is too long", "exceed context limit", "context window"),
            blocked_words=("content filtering",),
            key_advice=KEY_ADVICE,
            account_advice=f"Add credit or raise the limit at {CONSOLE}, then run the same command again.",
            model_advice=f"Choose another model, or allow it for this key at {CONSOLE}.",
        )

    async def close(self) -> None:
        """Close all connections."""
        await self._sdk.close()

    async def message(self, parameters: Mapping[str, Any], *, stream: bool) -> Reply:
        """Send a request; return the answer and the rate limits of the response's headers."""
        with self._sorted_errors():
            if stream:
                message, headers = await self._streamed(parameters)
            else:
                response = await self._sdk.messages.with_raw_response.create(**parameters)
                message, headers = await response.parse(), response.headers
        return Reply(self._answer(message), http_utils.rate_limits(headers, RATE_LIMITS))

    async def _streamed(self, parameters: Mapping[str, Any]) -> tuple[Message, Mapping[str, str]]:
        async with self._sdk.messages.stream(**parameters) as stream:
            headers = stream.response.headers
            kind = headers.get("content-type", "")
            if not kind.startswith("text/event-stream"):  # another attempt would bring the same
                raise MalformedResponseError(
                    f"{self._address} does not stream: it answered with {kind or 'no content type'}.",
                    "Set max_tokens to 8192 or less, or check ANTHROPIC_BASE_URL and any proxy.",
                )
            ended = False
            async for event in stream:
                ended = ended or event.type == "message_stop"
            if not ended:
                raise RetryableError("the stream broke off")
            return await stream.get_final_message(), headers

    async def create_batch(self, entries: Sequence[Mapping[str, Any]]) -> BatchState:
        """Submit a batch."""
        requests: Any = entries
        try:
            with self._sorted_errors():
                return self._state(await self._sdk.messages.batches.create(requests=requests))
        except PromptError as error:
            raise TeacherError(f"Anthropic refused the batch: {error.reason}.", NO_BATCH_ADVICE) from error
        except TeacherError as error:
            if isinstance(error.__cause__, anthropic.NotFoundError):
                raise TeacherError(f"{self._address} has no batches (404).", NO_BATCH_ADVICE) from error
            raise

    async def retrieve_batch(self, batch_id: str) -> BatchState:
        """Return the state of a batch."""
        with self._sorted_errors(missing=batch_id):
            return self._state(await self._sdk.messages.batches.retrieve(batch_id))

    async def list_batches(self, since: datetime) -> list[BatchState]:
        """Return the batches created at `since` or later."""
        found: list[BatchState] = []
        with self._sorted_errors(missing=f"the list of batches at {self._address}"):
            async for batch in self._sdk.messages.batches.list(limit=100):  # the newest first
                state = self._state(batch)
                if state.created_at < since:
                    break
                found.append(state)
        return found

    async def batch_results(self, batch_id: str) -> AsyncGenerator[BatchResult, None]:
        """Yield the readable results of an ended batch."""
        with self._sorted_errors(missing=batch_id):
            try:
                lines = await self._sdk.messages.batches.results(batch_id)
            except anthropic.APIError:
                raise
            except anthropic.AnthropicError as error:  # it has no results_url: results are deleted after 29 days
                raise BatchGoneError(f"the results of {batch_id} are gone") from error
            try:
                async for line in lines:
                    result = self._result(line)
                    if result:
                        yield result
            finally:
                await lines.close()

    @property
    def _secrets(self) -> tuple[str | None, str | None]:
        return self._sdk.api_key, self._sdk.auth_token

    @contextmanager
    def _sorted_errors(self, missing: str = "") -> Iterator[None]:
        """Turn the SDK's errors into those of the protocol; a 404 means that the batch `missing` is gone."""
        try:
            yield
        except anthropic.APIStatusError as error:
            if missing and isinstance(error, anthropic.NotFoundError):
                raise BatchGoneError(f"{missing} is gone") from error
            raise self._sort(error) from error
        except anthropic.CredentialsError as error:
            message = f"The Anthropic credentials cannot be used: {self._clean(error)}"
            raise TeacherError(message, KEY_ADVICE) from error
        except (anthropic.APIConnectionError, httpx2.HTTPError, http_utils.ResponseTooLargeError) as error:
            raise http_utils.connection_error(error, self._address, *self._secrets) from error
        except (anthropic.APIResponseValidationError, ValueError, RecursionError) as error:
            raise RetryableError("the response is damaged") from error

    def _sort(self, error: anthropic.APIStatusError) -> Exception:
        status, kind = error.status_code, str(error.type or "")
        message = self._clean(error.api_message or error.message)
        if kind == "not_found_error":
            near = difflib.get_close_matches(self._model, [name for name in PRICES if name != self._model], n=1)
            return TeacherError(
                f"{self._address} has no model {self._model!r} ({status}): {message}",
                f"Did you mean anthropic:{near[0]}?" if near else f"Known models: {', '.join(PRICES)}.",
            )
        if status == 404:
            return TeacherError(f"{self._address} has no Messages API (404): {message}", "Check ANTHROPIC_BASE_URL.")
        headers = error.response.headers
        response = http_utils.ErrorResponse(status, error.error_code or "", kind, message, headers)
        return http_utils.sort_error(response, self._service)

    def _malformed(self, expected: str) -> MalformedResponseError:
        return MalformedResponseError(
            f"{self._address} does not speak the Messages API: its response is not a {expected}.",
            "Check ANTHROPIC_BASE_URL and any proxy in between.",
        )

    def _clean(self, text: object) -> str:
        return http_utils.clean(text, *self._secrets)

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
                detail=self._clean(_detail(message)),
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

    def _result(self, line: MessageBatchIndividualResponse) -> BatchResult | None:
        """Return the result of a request; None if the line cannot be read."""
        try:
            result = line.result
            if result.type == "succeeded":
                return BatchResult(line.custom_id, self._answer(result.message))
            if result.type == "errored":
                error = result.error.error
                reason = f"{error.type}: {self._clean(error.message)}"
                return BatchResult(line.custom_id, None, reason, retryable=error.type not in FINAL_BATCH_ERRORS)
            return BatchResult(line.custom_id, None, BATCH_ENDS[result.type], retryable=result.type == "expired")
        except (AttributeError, KeyError, TypeError, MalformedResponseError):
            return None


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
