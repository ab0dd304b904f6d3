"""What the HTTP providers share: response headers, error sorting, redaction, and limits on responses."""

from __future__ import annotations

import email.utils
import math
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import httpx2

from mlx_distill.errors import TeacherError
from mlx_distill.teachers.base import (
    BadRequestError,
    MalformedResponseError,
    MaxTokensError,
    PromptError,
    RateLimit,
    RetryableError,
)

MAX_RESPONSE_BYTES = 16 * 2**20
"""Larger responses are not read: a broken server must not fill the memory."""
MAX_MESSAGE_LENGTH = 300


@dataclass(frozen=True)
class ErrorResponse:
    """An HTTP error, as the sorting needs it."""

    status: int
    code: str
    kind: str
    message: str
    """One printable line without secrets."""
    headers: Mapping[str, str]


@dataclass(frozen=True)
class Service:
    """How a provider words its errors, and what its users can do about them."""

    name: str
    """Subject of error messages: `Anthropic`, or the address of a server."""
    model: str
    balance_codes: frozenset[str]
    """Error codes or types of an account without balance."""
    balance_words: tuple[str, ...]
    too_long_words: tuple[str, ...]
    blocked_words: tuple[str, ...]
    key_advice: str
    account_advice: str
    model_advice: str


def sort_error(error: ErrorResponse, service: Service) -> Exception:
    """Return what an HTTP error means for the run: retry the request, skip the prompt, or stop."""
    status, kind, message, lower = error.status, error.kind, error.message, error.message.lower()
    detail = f"({status}): {message}"
    wait = retry_after(error.headers)
    if (
        status == 402
        or {error.code, kind} & service.balance_codes
        or any(words in lower for words in service.balance_words)
    ):
        return TeacherError(
            f"The account at {service.name} has no balance or has reached its limit {detail}", service.account_advice
        )
    if status == 401 or kind == "authentication_error":
        return TeacherError(f"{service.name} refused the API key {detail}", service.key_advice)
    if status == 403 or kind == "permission_error":
        return TeacherError(f"The API key may not use {service.model} at {service.name} {detail}", service.model_advice)
    if status == 413 or any(words in f"{error.code} {lower}" for words in service.too_long_words):
        return PromptError(f"too long for {service.model} {detail}")
    if any(words in f"{error.code} {lower}" for words in service.blocked_words):
        return PromptError(f"blocked by the provider's filter {detail}")
    # An error inside a stream has the stream's status, 200: its type says what it is. It may have cost something.
    if status in (429, 503, 529) or kind in ("rate_limit_error", "overloaded_error"):
        reason = "rate limit" if status == 429 or kind == "rate_limit_error" else "overloaded"
        free = status in (429, 503, 529)
        return RetryableError(f"{reason} {detail}", retry_after=wait, overloaded=True, may_be_charged=not free)
    if status in (408, 409) or status >= 500 or kind in ("api_error", "timeout_error"):
        return RetryableError(f"server error {detail}", retry_after=wait)
    rejected = MaxTokensError if "max_tokens" in lower or "max_completion_tokens" in lower else BadRequestError
    return rejected(
        f"{service.name} refused the request {detail}",
        "Check the model, max_tokens and the system message.",
    )


def connection_error(error: BaseException, address: str, *secrets: str | None) -> Exception:
    """Return what a failed connection means. A request that never reached the server costs nothing."""
    cause = error.__cause__ or error
    if isinstance(cause, ResponseTooLargeError):
        return MalformedResponseError(f"{address}: {cause}.", "Check the address and any proxy in between.")
    never_sent = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout, httpx2.UnsupportedProtocol)
    return RetryableError(
        f"no connection to {address} ({clean(cause, *secrets) or type(cause).__name__})",
        may_be_charged=not isinstance(cause, never_sent),
    )


def clean(text: object, *secrets: str | None) -> str:
    """Return a server's words as one short printable line, without the secrets that it may repeat."""
    words = str(text)
    for secret in secrets:
        words = words.replace(secret, "[key]") if secret else words
    line = " ".join("".join(char if char.isprintable() else " " for char in words).split())
    return line if len(line) <= MAX_MESSAGE_LENGTH else line[: MAX_MESSAGE_LENGTH - 1] + "…"


def address_of(url: httpx2.URL) -> str:
    """Return the server of a URL, without path and password."""
    return f"{url.scheme}://{url.netloc.decode('ascii')}"


def is_valid_key(key: str) -> bool:
    """Return whether an HTTP header can carry the key."""
    return key.isascii() and key.isprintable() and " " not in key


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
    """The response has more than MAX_RESPONSE_BYTES, or is compressed although that was not allowed."""


def client_options() -> dict[str, Any]:
    """Return options for the SDKs' HTTP clients: no redirects, no compression, a limit on the response's size.

    Without compression the size on the wire is the size in memory. Batch results are large and read line by line, so
    the limit does not apply to them.
    """
    return {
        "follow_redirects": False,
        "headers": {"accept-encoding": "identity"},
        "event_hooks": {"response": [_limit_size]},
    }


async def _limit_size(response: httpx2.Response) -> None:
    if response.request.url.path.endswith("/results"):
        return
    if response.headers.get("content-encoding", "identity") != "identity":
        raise ResponseTooLargeError("the response is compressed, so its size cannot be limited")
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
