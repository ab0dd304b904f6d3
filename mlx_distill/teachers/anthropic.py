"""Claude as a teacher, through the Anthropic SDK; the SDK's own silent retries are off.

What each failure means for the run is decided in `_failure`, one reason a branch.
"""

from __future__ import annotations

import difflib
import email.utils
import json
import time
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from mlx_distill.errors import TeacherError
from mlx_distill.records import Answer, Request, Usage
from mlx_distill.teachers.prices import PRICES, Price, cost_usd
from mlx_distill.teachers.protocol import NoAnswerError, TryLaterError

if TYPE_CHECKING:
    from anthropic import APIStatusError, AsyncAnthropic
    from anthropic.types import Message

STREAM_ABOVE_TOKENS = 8192
"""Longer answers are streamed: the SDK refuses to wait for them in one piece (at 21,333, for some models at 8,192)."""

CONSOLE = "platform.claude.com"
AGAIN = "then run the same command again: everything answered so far is saved."
SPEND_LIMITS = frozenset(
    {
        "enforced_spend_limit_reached",
        "contract_spend_limit_reached",
        "linked_organization_spend_limit_reached",
        "linked_organization_billing_unavailable",
    }
)
"""Error codes of a 429 that no waiting mends."""

TOO_LONG = ("prompt is too long", "exceed context limit", "context window")
"""How the API words a 400 that is about this prompt's length; it has no code of its own."""


class AnthropicTeacher:
    """A model of the Messages API: `ANTHROPIC_API_KEY` and `ANTHROPIC_BASE_URL` are read by the SDK."""

    terms = (
        "Training models on Claude's answers is bound by Anthropic's terms of service: where the model competes with "
        "theirs, it needs their permission."
    )

    def __init__(self, model: str, prices: Mapping[str, Price] = PRICES) -> None:
        self.name = f"anthropic:{model}"
        self._model = model
        self._prices = prices
        self._client: AsyncAnthropic | None = None

    async def __aenter__(self) -> Self:
        self._client = _connect()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._client is not None:
            await self._client.close()
            self._client = None

    async def answer(self, request: Request) -> Answer:
        import anthropic
        import httpx2

        started = time.monotonic()
        try:
            message = await self._message(request)
        except anthropic.APIStatusError as error:
            raise self._failure(error) from error
        except anthropic.CredentialsError as error:
            raise TeacherError(
                f"The Anthropic credentials cannot be used: {self._clean(error)}", "Set ANTHROPIC_API_KEY."
            ) from error
        except (anthropic.APIConnectionError, httpx2.HTTPError) as error:
            reason = self._clean(error.__cause__ or error) or type(error.__cause__ or error).__name__
            raise TryLaterError(f"no connection to {self._address} ({reason})") from error
        except (anthropic.APIResponseValidationError, json.JSONDecodeError) as error:
            raise TryLaterError("the answer arrived damaged") from error
        usage = _usage(message)
        details = message.stop_details
        return Answer(
            text="".join(block.text for block in message.content if block.type == "text"),
            stop_reason=message.stop_reason or "unknown",
            model=message.model,
            usage=usage,
            cost_usd=cost_usd(message.model, usage, self._prices),
            seconds=time.monotonic() - started,
            detail=": ".join(filter(None, [details.category, details.explanation])) if details else "",
        )

    async def _message(self, request: Request) -> Message:
        """The whole message, streamed where it may be long."""
        import anthropic

        client = self._open_client
        system = "\n\n".join(message.content for message in request.messages if message.role == "system")
        asked: dict[str, Any] = {
            "model": self._model,
            "max_tokens": request.max_tokens,
            "messages": [message.to_json() for message in request.messages if message.role != "system"],
            "system": system or anthropic.omit,
        }
        if request.max_tokens <= STREAM_ABOVE_TOKENS:
            message = await client.messages.create(**asked)
        else:
            async with client.messages.stream(**asked) as stream:
                ended = False
                async for event in stream:
                    ended = ended or event.type == "message_stop"
                if not ended:
                    raise TryLaterError("the stream broke off")
                message = await stream.get_final_message()
        # The SDK does not check shapes: a proxy's login page arrives as text, any JSON as a Message of nothing.
        if not isinstance(message, anthropic.types.Message) or not isinstance(message.content, list):
            raise TeacherError(
                f"{self._address} does not speak the Messages API: what it sent is no message.",
                "Check ANTHROPIC_BASE_URL and any proxy in between.",
            )
        return message

    def _failure(self, error: APIStatusError) -> Exception:
        """What a refused request means: try later, this prompt never, or the whole run not at all."""
        status, code = error.status_code, error.error_code or ""
        kind = str(error.type or "")
        said = self._clean(error.api_message or error.message)
        lower = said.lower()
        # An error inside a stream comes with the status of the stream, 200: its type says what it is.
        if code in SPEND_LIMITS or status == 402 or kind == "billing_error" or "credit balance" in lower:
            return TeacherError(
                f"The Anthropic account has no balance or has reached its spend limit ({status}): {said}",
                f"Add credit or raise the limit at {CONSOLE}, {AGAIN}",
            )
        if status == 401 or kind == "authentication_error":
            return TeacherError(
                f"Anthropic refused the API key ({status}): {said}", f"Set ANTHROPIC_API_KEY to a key from {CONSOLE}."
            )
        if status == 403 or kind == "permission_error":
            return TeacherError(
                f"The API key may not use {self._model} ({status}): {said}",
                f"Choose another model, or allow it to this key at {CONSOLE}.",
            )
        if status == 413 or any(words in lower for words in TOO_LONG):
            return NoAnswerError(f"too long for {self._model} ({status}): {said}")
        if "content filtering" in lower:
            return NoAnswerError(f"the answer was blocked ({status}): {said}")
        if status == 404 or kind == "not_found_error":
            near = difflib.get_close_matches(self._model, self._prices, n=1)
            return TeacherError(
                f"{self._address} knows no model {self._model!r} ({status}): {said}",
                f"Did you mean anthropic:{near[0]}?" if near else f"Model names: {', '.join(self._prices)}.",
            )
        wait = _retry_after(error.response.headers)
        if status == 429 or kind == "rate_limit_error":
            return TryLaterError(f"rate limit ({status}): {said}", after_seconds=wait, overloaded=True)
        if status in (503, 529) or kind == "overloaded_error":
            return TryLaterError(f"overloaded ({status}): {said}", after_seconds=wait, overloaded=True)
        if status in (408, 409) or status >= 500 or kind in ("api_error", "timeout_error"):
            return TryLaterError(f"server error ({status}): {said}", after_seconds=wait)
        return TeacherError(
            f"Anthropic refused the request ({status}): {said}", "Check the model, max_tokens and the system prompt."
        )

    @property
    def _open_client(self) -> AsyncAnthropic:
        if self._client is None:
            raise RuntimeError("a teacher is asked inside `async with teacher:`")
        return self._client

    @property
    def _address(self) -> str:
        url = self._open_client.base_url
        return f"{url.scheme}://{url.netloc.decode('ascii')}"

    def _clean(self, said: object) -> str:
        """A server's words as one short printable line without the key, should it have repeated it."""
        text = str(said)
        for secret in (self._open_client.api_key, self._open_client.auth_token):
            text = text.replace(secret, "[key]") if secret else text
        line = " ".join("".join(char if char.isprintable() else " " for char in text).split())
        return line if len(line) <= 300 else line[:299] + "…"


def _connect() -> AsyncAnthropic:
    """The SDK's client, after making sure that it has a key that can be sent."""
    import anthropic

    how = f"Set ANTHROPIC_API_KEY to a key from {CONSOLE} (export ANTHROPIC_API_KEY=...), or use a recorded: teacher."
    try:
        client = anthropic.AsyncAnthropic(max_retries=0)
    except (anthropic.AnthropicError, ValueError) as error:
        raise TeacherError(f"The Anthropic SDK cannot be set up: {error}", how) from error
    headers = {name.lower() for name in client.default_headers}
    if client.credentials is None and not headers & {"authorization", "x-api-key"}:
        raise TeacherError("No API key: ANTHROPIC_API_KEY is not set.", how)
    for secret in (client.api_key, client.auth_token):
        if secret and not (secret.isascii() and secret.isprintable() and " " not in secret):
            raise TeacherError("ANTHROPIC_API_KEY holds a space, a line break or another character no key has.", how)
    return client


def _usage(message: Message) -> Usage:
    used: Any = message.usage
    if used is None:  # a gateway may leave out what the SDK's types promise
        return Usage()
    return Usage(
        input_tokens=used.input_tokens or 0,
        output_tokens=used.output_tokens or 0,
        cache_creation_tokens=used.cache_creation_input_tokens or 0,
        cache_read_tokens=used.cache_read_input_tokens or 0,
    )


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait by the `retry-after` header, given in seconds or as a date (RFC 9110, 10.2.3)."""
    text = headers.get("retry-after", "")
    try:
        seconds = float(text)
    except ValueError:
        date = email.utils.parsedate_tz(text)
        seconds = email.utils.mktime_tz(date) - time.time() if date else -1.0
    return seconds if 0.0 <= seconds < float("inf") else None
