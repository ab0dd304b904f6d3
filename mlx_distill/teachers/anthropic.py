"""Claude as a teacher, through the Anthropic SDK; the SDK's own silent retries are off.

What each failure means for the run is decided in `_failure`, one reason a branch.
"""

from __future__ import annotations

import asyncio
import difflib
import json
import time
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from mlx_distill.errors import TeacherError
from mlx_distill.records import Answer, Request, Usage
from mlx_distill.teachers.headers import ANTHROPIC_LIMITS, limits_of, retry_after
from mlx_distill.teachers.prices import PRICES
from mlx_distill.teachers.protocol import Limit, LimitError, NoAnswerError, TryLaterError, UnreadableError

if TYPE_CHECKING:
    from anthropic import APIStatusError, AsyncAnthropic
    from anthropic.types import Message

STREAM_ABOVE_TOKENS = 8192
"""Longer answers are streamed: the SDK refuses to wait for them in one piece (at 21,333, for some models at 8,192)."""
LONGEST_SECONDS = 600.0
"""An answer that drips in for longer is given up: the SDK's own limit is from one byte to the next."""
LONGEST_SECONDS_PER_TOKEN = 0.1
"""What may come on top of that for each token allowed."""

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

    longest_retry = STREAM_ABOVE_TOKENS

    def __init__(self, model: str, longest_seconds: float = LONGEST_SECONDS) -> None:
        self.name = f"anthropic:{model}"
        self.billed_model = model
        self.limits: tuple[Limit, ...] = ()
        self._model = model
        self._longest_seconds = longest_seconds
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
        deadline = self._longest_seconds + LONGEST_SECONDS_PER_TOKEN * request.max_tokens
        try:
            async with asyncio.timeout(deadline):
                message, headers = await self._message(request)
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
        except TimeoutError as error:
            raise TryLaterError(f"no whole answer within {deadline:g} s") from error
        self.limits = limits_of(headers, ANTHROPIC_LIMITS)
        return Answer(
            text="".join(block.text for block in message.content if block.type == "text"),
            stop_reason=message.stop_reason or "unknown",
            model=message.model,
            usage=_usage(message),
            seconds=time.monotonic() - started,
            detail=_why(message),
        )

    async def _message(self, request: Request) -> tuple[Message, Mapping[str, str]]:
        """The whole message, streamed where it may be long, and the headers it came with."""
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
            whole = await client.messages.with_raw_response.create(**asked)
            message, headers = await whole.parse(), whole.headers
        else:
            async with client.messages.stream(**asked) as stream:
                headers = stream.response.headers
                self._refuse_no_stream(headers)
                ended = False
                async for event in stream:
                    ended = ended or event.type == "message_stop"
                if not ended:
                    raise TryLaterError("the stream broke off")
                message = await stream.get_final_message()
        # The SDK does not check shapes: a proxy's login page arrives as text, any JSON as a Message of nothing.
        if not isinstance(message, anthropic.types.Message) or not isinstance(message.content, list):
            raise UnreadableError(
                f"{self._address} does not speak the Messages API: what it sent is no message.",
                "Check ANTHROPIC_BASE_URL and any proxy in between.",
            )
        return message, headers

    def _refuse_no_stream(self, headers: Mapping[str, str]) -> None:
        """Raise where a stream was asked for and something else came: asking again would bring the same."""
        kind = headers.get("content-type", "")
        if not kind.startswith("text/event-stream"):
            raise UnreadableError(
                f"{self._address} does not stream: it answered with {kind or 'no content type'}.",
                f"Set max_tokens to {STREAM_ABOVE_TOKENS} or less, or check ANTHROPIC_BASE_URL and any proxy.",
            )

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
            near = difflib.get_close_matches(self._model, PRICES, n=1)
            return TeacherError(
                f"{self._address} knows no model {self._model!r} ({status}): {said}",
                f"Did you mean anthropic:{near[0]}?" if near else f"Model names: {', '.join(PRICES)}.",
            )
        wait = retry_after(error.response.headers)
        # Refused before any work was done; inside a stream (200) or behind a gateway (502) some may have been.
        free = status in (429, 503, 529)
        if status == 429 or kind == "rate_limit_error":
            reason = f"rate limit ({status}): {said}"
            return TryLaterError(reason, after_seconds=wait, overloaded=True, may_be_charged=not free)
        if status in (503, 529) or kind == "overloaded_error":
            reason = f"overloaded ({status}): {said}"
            return TryLaterError(reason, after_seconds=wait, overloaded=True, may_be_charged=not free)
        if status in (408, 409) or status >= 500 or kind in ("api_error", "timeout_error"):
            return TryLaterError(f"server error ({status}): {said}", after_seconds=wait)
        refused = LimitError if "max_tokens" in lower else TeacherError
        return refused(
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
    details = used.output_tokens_details
    return Usage(
        input_tokens=used.input_tokens or 0,
        output_tokens=used.output_tokens or 0,
        cache_creation_tokens=used.cache_creation_input_tokens or 0,
        cache_read_tokens=used.cache_read_input_tokens or 0,
        thinking_tokens=(details.thinking_tokens or 0) if details else 0,
    )


def _why(message: Message) -> str:
    """What the provider or the message itself says about why there is no whole answer."""
    details = message.stop_details
    if details:
        return ": ".join(filter(None, [details.category, details.explanation]))
    if any(block.type == "text" and block.text.strip() for block in message.content):
        return ""
    return "thinking only" if any("thinking" in block.type for block in message.content) else "empty"
