"""Parts that HTTP providers share: deadline, sorted errors, redaction, rate-limit headers, size limit."""

from __future__ import annotations

import asyncio
import email.utils
import math
import re
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import datetime
from types import TracebackType
from typing import Any, Literal, Self

import httpx2
from msgspec import structs

from mlx_distill.errors import TeacherError
from mlx_distill.records import Request
from mlx_distill.teachers.base import (
    DEFAULT_CONCURRENCY,
    BadRequestError,
    MalformedResponseError,
    PromptError,
    RateLimit,
    Reply,
    RetryableError,
)

MAX_RESPONSE_BYTES = 16 * 2**20
"""Larger responses are not read: a broken server must not fill the memory."""
MAX_MESSAGE_LENGTH = 300
SECONDS_PER_TOKEN = 0.1
"""Added to the deadline of a request for each token of `max_tokens`."""

# Error codes, types and words of all providers. Their statuses alone do not say whether to wait, skip or stop.
BALANCE_CODES = frozenset(
    {
        "billing_error",
        "enforced_spend_limit_reached",
        "contract_spend_limit_reached",
        "linked_organization_spend_limit_reached",
        "linked_organization_billing_unavailable",
        "insufficient_quota",
        "billing_hard_limit_reached",
        "billing_not_active",
    }
)
BALANCE_WORDS = ("credit balance", "usage limit")
TOO_LONG_WORDS = (
    "context_length_exceeded",
    "context length",
    "context limit",
    "context window",
    "context size",
    "too long",
    "too many tokens",
)
BLOCKED_WORDS = ("content filtering", "content_filter", "content_policy_violation")


class HttpTeacher(ABC):
    """A teacher behind an HTTP API, through an SDK whose own retries are off."""

    default_concurrency = DEFAULT_CONCURRENCY
    service = ""
    """Subject of error messages. Default: the server's address."""
    key_name: str
    """Environment variable of the API key."""
    secrets: tuple[str | None, ...] = ()
    """Never shown, even if the server repeats them."""
    connection: Any = None
    """The SDK's client, inside `async with teacher:`."""

    def __init__(self, sdk: Any, name: str, model: str, max_seconds: float) -> None:
        self._sdk, self.name, self.model, self.max_seconds = sdk, name, model, max_seconds

    @abstractmethod
    def connect(self) -> Any:
        """Return the SDK's client and set `secrets`. Raises TeacherError for a missing or invalid key."""

    @abstractmethod
    async def send(self, request: Request) -> Reply:
        """Send a request. Raises the SDK's errors."""

    @abstractmethod
    async def sort_status(self, error: Any) -> Exception:
        """Return what the SDK's APIStatusError means."""

    async def __aenter__(self) -> Self:
        connection = self.connect()
        if not all(re.fullmatch("[!-~]*", secret or "") for secret in self.secrets):
            message = f"{self.key_name} has a space, a line break or another invalid character."
            raise TeacherError(message, f"Set {self.key_name} again.")
        self.connection = connection
        url = self.connection.base_url
        self.address = f"{url.scheme}://{url.netloc.decode('ascii')}"  # without path and password
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.connection is not None:
            await self.connection.close()
            self.connection = None

    async def complete(self, request: Request) -> Reply:
        """Send one request within its deadline."""
        if self.connection is None:
            raise RuntimeError("use the teacher inside `async with teacher:`")
        started, deadline = time.monotonic(), self.max_seconds + SECONDS_PER_TOKEN * request.max_tokens
        try:
            async with asyncio.timeout(deadline), self.sorted_errors():
                reply = await self.send(request)
        except TimeoutError as error:
            raise RetryableError(f"no complete answer within {deadline:g} s") from error
        return Reply(structs.replace(reply.answer, seconds=time.monotonic() - started), reply.rate_limits)

    @asynccontextmanager
    async def sorted_errors(self) -> AsyncIterator[None]:
        """Turn the SDK's errors into those of the teacher protocol."""
        try:
            yield
        except self._sdk.APIStatusError as error:
            raise await self.sort_status(error) from error
        except (self._sdk.APIConnectionError, httpx2.HTTPError, ResponseTooLargeError) as error:
            raise self._connection_error(error) from error
        except (self._sdk.APIResponseValidationError, ValueError, RecursionError) as error:
            raise RetryableError("the response is damaged") from error

    def sort_error(self, status: int, code: str, kind: str, message: str, headers: Mapping[str, str]) -> Exception:
        """Return what an HTTP error means for the run: retry the request, skip the prompt, or stop."""
        lower, detail, service = message.lower(), f"({status}): {message}", self.service or self.address
        if status == 402 or {code, kind} & BALANCE_CODES or any(words in lower for words in BALANCE_WORDS):
            return TeacherError(
                f"The account at {service} has no balance or has reached its limit {detail}",
                "Add credit or raise the limit, then run the same command again.",
            )
        if status == 401 or kind == "authentication_error":
            return TeacherError(f"{service} refused the API key {detail}", f"Set {self.key_name} to a valid key.")
        if status == 403 or kind == "permission_error":
            return TeacherError(
                f"The API key may not use {self.model} at {service} {detail}",
                "Choose another model, or allow it for this key.",
            )
        if status == 413 or any(words in f"{code} {lower}" for words in TOO_LONG_WORDS):
            return PromptError(f"too long for {self.model} {detail}")
        if any(words in f"{code} {lower}" for words in BLOCKED_WORDS):
            return PromptError(f"blocked by the provider's filter {detail}")
        # An error inside a stream has the stream's status, 200: its type says what it is. It may be charged.
        is_free = status in (429, 503, 529)
        if is_free or kind in ("rate_limit_error", "overloaded_error"):
            reason = "rate limit" if status == 429 or kind == "rate_limit_error" else "overloaded"
            wait = retry_after(headers)
            return RetryableError(f"{reason} {detail}", retry_after=wait, overloaded=True, may_be_charged=not is_free)
        if status in (408, 409) or status >= 500 or kind in ("api_error", "timeout_error"):
            return RetryableError(f"server error {detail}", retry_after=retry_after(headers))
        next_step = "Check the model, max_tokens and the system message."
        return BadRequestError(f"{service} refused the request {detail}", next_step)

    def _connection_error(self, error: BaseException) -> Exception:
        """Return what a failed connection means. A request that never reached the server costs nothing."""
        cause = error.__cause__ or error
        if isinstance(cause, ResponseTooLargeError):
            return MalformedResponseError(f"{self.address}: {cause}.", "Check the address and any proxy in between.")
        never_sent = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout, httpx2.UnsupportedProtocol)
        return RetryableError(
            f"no connection to {self.address} ({self.clean(cause) or type(cause).__name__})",
            may_be_charged=not isinstance(cause, never_sent),
        )

    def clean(self, text: object) -> str:
        """Return a server's words as one short printable line, without the secrets that it may repeat."""
        words = str(text)
        for secret in filter(None, self.secrets):
            words = words.replace(secret, "[key]")
        line = " ".join("".join(char if char.isprintable() else " " for char in words).split())
        return line if len(line) <= MAX_MESSAGE_LENGTH else line[: MAX_MESSAGE_LENGTH - 1] + "…"


def token_count(value: object) -> int:
    """Return a token count; 0 if the provider leaves it out. Raises TypeError for impossible values (-1, NaN, text)."""
    if value is None:
        return 0
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 53:
        raise TypeError(f"{value!r} is not a number of tokens")
    return value


def text_of(value: object) -> str:
    """Return a text; empty if the provider leaves it out. Raises TypeError for anything else."""
    if not isinstance(value, str | None):
        raise TypeError(f"{value!r} is not text")
    return value or ""


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds of `retry-after-ms`, or of `retry-after` in seconds or as a date (RFC 9110, 10.2.3).

    None if there is nothing to wait for: no header, a date in the past, nonsense.
    """
    milliseconds = _number(headers.get("retry-after-ms", ""))
    seconds = milliseconds / 1000.0 if milliseconds is not None else _number(headers.get("retry-after", ""))
    if seconds is None:
        try:
            date = email.utils.parsedate_tz(headers.get("retry-after", ""))
            seconds = email.utils.mktime_tz(date) - time.time() if date else 0.0
        except (ValueError, OverflowError):  # a year outside the calendar
            return None
    return seconds if seconds > 0.0 else None


def rate_limits(
    headers: Mapping[str, str], units: Mapping[str, Literal["requests", "input tokens", "output tokens"]]
) -> tuple[RateLimit, ...]:
    """Return the limits in `PREFIX-limit`, `PREFIX-remaining` and `PREFIX-reset` (RFC 3339). Nonsense is ignored."""
    found = []
    for prefix, unit in units.items():
        remaining = _number(headers.get(f"{prefix}-remaining", ""))
        try:
            resets_at = datetime.fromisoformat(headers.get(f"{prefix}-reset", "")).timestamp()
        except ValueError:
            continue
        if remaining is not None:
            limit = _number(headers.get(f"{prefix}-limit", "")) or 0.0
            found.append(RateLimit(unit, max(0, int(limit)), int(remaining), resets_at - time.time()))
    return tuple(found)


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


class ResponseTooLargeError(Exception):
    """The response has more bytes than allowed, or is compressed although that was not allowed."""


def client_options() -> dict[str, Any]:
    """Return options for the SDKs' HTTP clients: no redirects, no compression, a limit on the response's size.

    Without compression the size on the wire is the size in memory. Batch results are read with `limited_lines`, which
    has limits of its own.
    """
    return {
        "follow_redirects": False,
        "headers": {"accept-encoding": "identity"},
        "event_hooks": {"response": [_limit_size]},
    }


async def _limit_size(response: httpx2.Response) -> None:
    if response.headers.get("content-encoding", "identity") != "identity":
        raise ResponseTooLargeError("the response is compressed, so its size cannot be limited")
    if not response.request.url.path.endswith("/results"):
        assert isinstance(response.stream, httpx2.AsyncByteStream)
        response.stream = _LimitedStream(response.stream)


class _LimitedStream(httpx2.AsyncByteStream):
    def __init__(self, stream: httpx2.AsyncByteStream) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        n_bytes = 0
        async for chunk in self._stream:
            n_bytes += len(chunk)
            if n_bytes > MAX_RESPONSE_BYTES:
                raise ResponseTooLargeError(f"the response has more than {MAX_RESPONSE_BYTES >> 20} MiB")
            yield chunk

    async def aclose(self) -> None:
        await self._stream.aclose()


async def limited_lines(chunks: AsyncIterator[bytes], max_bytes: int) -> AsyncIterator[bytes]:
    """Yield the lines of a response that has at most `max_bytes`, and at most MAX_RESPONSE_BYTES in one line."""
    n_bytes, line = 0, bytearray()
    async for chunk in chunks:
        n_bytes += len(chunk)
        *ends, rest = chunk.split(b"\n")
        for end in ends:
            yield bytes(line + end)
            line.clear()
        line += rest
        if n_bytes > max_bytes or len(line) > MAX_RESPONSE_BYTES:
            limits = f"{max_bytes >> 20} MiB, or a line of more than {MAX_RESPONSE_BYTES >> 20} MiB"
            raise ResponseTooLargeError(f"the results of the batch have more than {limits}")
    if line:
        yield bytes(line)
