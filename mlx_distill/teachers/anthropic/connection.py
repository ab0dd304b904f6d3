"""The connection to the Anthropic API that live requests and batches share, through the SDK without its silent retries.

What each failure means for the run is decided in `_failure`, one reason a branch.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Self

from msgspec import structs

from mlx_distill.errors import TeacherError
from mlx_distill.records import Answer
from mlx_distill.teachers.anthropic.messages import answer_of
from mlx_distill.teachers.client import AGAIN, address_of, can_be_sent, no_connection, one_line
from mlx_distill.teachers.headers import retry_after
from mlx_distill.teachers.money.prices import PRICES
from mlx_distill.teachers.protocol import LimitError, NoAnswerError, RefusedError, TryLaterError, UnreadableError

if TYPE_CHECKING:
    from anthropic import APIStatusError, AsyncAnthropic
    from anthropic.types import Message

CONSOLE = "platform.claude.com"
SPEND_LIMITS = frozenset(
    {
        "enforced_spend_limit_reached",
        "contract_spend_limit_reached",
        "linked_organization_spend_limit_reached",
        "linked_organization_billing_unavailable",
    }
)
"""Error codes of a 429 that no waiting mends."""

SPENT = ("credit balance", "usage limit")
"""How the API words a 400 that is about the account."""

TOO_LONG = ("prompt is too long", "exceed context limit", "context window")
"""How the API words a 400 that is about this prompt's length; it has no code of its own."""


class AnthropicConnection:
    """Open between entering and leaving; `ANTHROPIC_API_KEY` and `ANTHROPIC_BASE_URL` are read by the SDK."""

    def __init__(self, model: str) -> None:
        self._model = model
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

    @property
    def client(self) -> AsyncAnthropic:
        """The SDK's client."""
        if self._client is None:
            raise RuntimeError("a teacher is asked inside `async with teacher:`")
        return self._client

    @property
    def address(self) -> str:
        """The server, as messages name it."""
        return address_of(self.client.base_url)

    @contextmanager
    def failures_told(self) -> Iterator[None]:
        """Whatever the SDK raises inside becomes an error of the teachers' protocol."""
        import anthropic
        import httpx2

        try:
            yield
        except anthropic.APIStatusError as error:
            raise self._failure(error) from error
        except anthropic.CredentialsError as error:
            raise TeacherError(
                f"The Anthropic credentials cannot be used: {self.clean(error)}", "Set ANTHROPIC_API_KEY."
            ) from error
        except (anthropic.APIConnectionError, httpx2.HTTPError) as error:
            raise no_connection(error, self.address, *self._secrets) from error
        except (
            anthropic.APIResponseValidationError,
            json.JSONDecodeError,
            UnicodeDecodeError,
            RecursionError,
        ) as error:
            raise TryLaterError("the answer arrived damaged") from error

    def unreadable(self, what: str) -> UnreadableError:
        """The error for something that came in the place of a `what`."""
        return UnreadableError(
            f"{self.address} does not speak the Messages API: what it sent is no {what}.",
            "Check ANTHROPIC_BASE_URL and any proxy in between.",
        )

    def answer_of(self, message: Message, seconds: float = 0.0) -> Answer:
        """The answer that a message is; UnreadableError where it is none: the SDK does not check shapes."""
        import anthropic

        # A proxy's login page arrives as text, any JSON as a Message of nothing.
        if not isinstance(message, anthropic.types.Message):
            raise self.unreadable("message")
        try:
            answer = answer_of(message, seconds)
            return structs.replace(answer, detail=self.clean(answer.detail))
        except (AttributeError, TypeError) as error:
            raise self.unreadable("message") from error

    def clean(self, said: object) -> str:
        """The server's words as one short printable line without the key."""
        return one_line(said, *self._secrets)

    @property
    def _secrets(self) -> tuple[str | None, str | None]:
        return self.client.api_key, self.client.auth_token

    def _failure(self, error: APIStatusError) -> Exception:
        """What a refused request means: try later, this prompt never, or the whole run not at all."""
        status, code = error.status_code, error.error_code or ""
        kind = str(error.type or "")
        said = self.clean(error.api_message or error.message)
        lower = said.lower()
        # An error inside a stream comes with the status of the stream, 200: its type says what it is.
        if code in SPEND_LIMITS or status == 402 or kind == "billing_error" or any(words in lower for words in SPENT):
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
        if kind == "not_found_error":
            near = difflib.get_close_matches(self._model, [name for name in PRICES if name != self._model], n=1)
            return TeacherError(
                f"{self.address} knows no model {self._model!r} ({status}): {said}",
                f"Did you mean anthropic:{near[0]}?" if near else f"Model names: {', '.join(PRICES)}.",
            )
        if status == 404:
            return TeacherError(f"{self.address} has no Messages API (404): {said}", "Check ANTHROPIC_BASE_URL.")
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
        refused = LimitError if "max_tokens" in lower else RefusedError
        return refused(
            f"Anthropic refused the request ({status}): {said}", "Check the model, max_tokens and the system prompt."
        )


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
        if secret and not can_be_sent(secret):
            raise TeacherError("ANTHROPIC_API_KEY holds a space, a line break or another character no key has.", how)
    return client
