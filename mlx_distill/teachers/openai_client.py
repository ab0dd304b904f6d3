"""The connection to an OpenAI-compatible server through the SDK, without the SDK's own retries."""

from __future__ import annotations

import json
import os
from typing import Any

import httpx2
import openai
from openai.types.chat import ChatCompletion

from mlx_distill.errors import TeacherError
from mlx_distill.records import Answer, Request, Usage
from mlx_distill.teachers import http_utils
from mlx_distill.teachers.base import MalformedResponseError, RetryableError
from mlx_distill.teachers.http_utils import text_of, token_count
from mlx_distill.teachers.openai import ADDRESS_ADVICE, MAX_SECONDS, OPENAI_HOST, without_thinking

CONNECT_SECONDS = 10.0
STOP_REASONS = {
    "stop": "end_turn",
    "length": "max_tokens",
    "content_filter": "refusal",
    "tool_calls": "tool_use",
    "function_call": "tool_use",
}
"""The API's finish reasons in the words of the journal, which are Anthropic's. Unknown ones stay as they are."""


class OpenAIClient:
    """An open connection. Raises the errors of the teacher protocol."""

    def __init__(self, model: str, base_url: str, *, is_free: bool) -> None:
        self._model, self._is_free = model, is_free
        self._key = os.environ.get("OPENAI_API_KEY", "")
        if self._key and not http_utils.is_valid_key(self._key):
            raise TeacherError(
                "OPENAI_API_KEY has a space, a line break or another invalid character.", "Set OPENAI_API_KEY again."
            )
        self._sdk = openai.AsyncOpenAI(
            api_key=self._key or "none",  # local servers need no key, but the SDK wants one
            base_url=base_url,
            max_retries=0,
            timeout=openai.Timeout(MAX_SECONDS, connect=CONNECT_SECONDS),
            http_client=openai.DefaultAsyncHttpxClient(**http_utils.client_options()),
        )
        self._address = http_utils.address_of(self._sdk.base_url)
        self._service = http_utils.Service(
            name=self._address,
            model=model,
            balance_codes=frozenset({"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"}),
            balance_words=(),
            too_long_words=(
                "context_length_exceeded",
                "context length",
                "context window",
                "context size",
                "too long",
                "too many tokens",
            ),
            blocked_words=("content_filter", "content_policy_violation"),
            key_advice="Set OPENAI_API_KEY to a key of this server.",
            account_advice="Add credit or raise the limit, then run the same command again.",
            model_advice="Choose another model, or allow it for this key.",
        )

    async def close(self) -> None:
        """Close all connections."""
        await self._sdk.close()

    async def complete(self, request: Request) -> Answer:
        """Send one request and return the answer."""
        # OpenAI's newer models refuse the old name of the limit; older local servers do not know the new one.
        limit = "max_completion_tokens" if self._sdk.base_url.host == OPENAI_HOST else "max_tokens"
        messages: Any = [message.to_json() for message in request.messages]
        options: dict[str, Any] = {limit: request.max_tokens}
        try:
            completion: object = await self._sdk.chat.completions.create(
                model=self._model, messages=messages, **options
            )
            return self._answer(completion)
        except openai.NotFoundError as error:
            raise await self._unknown_model(error) from error
        except openai.APIStatusError as error:
            headers, kind = error.response.headers, error.type or ""
            response = http_utils.ErrorResponse(
                error.status_code, error.code or "", kind, self._message(error), headers
            )
            raise http_utils.sort_error(response, self._service) from error
        except (openai.APIConnectionError, httpx2.HTTPError, http_utils.ResponseTooLargeError) as error:
            raise http_utils.connection_error(error, self._address, self._key) from error
        except (openai.APIResponseValidationError, json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
            raise RetryableError("the response is damaged") from error

    def _answer(self, completion: object) -> Answer:
        try:
            # The SDK does not check shapes: a login page arrives as text, any JSON as a completion without choices.
            assert isinstance(completion, ChatCompletion)
            choice: Any = completion.choices[0]
            refusal = text_of(choice.message.refusal)
            reason = text_of(choice.finish_reason) or "unknown"
            return Answer(
                text=without_thinking(text_of(choice.message.content)),
                stop_reason="refusal" if refusal else STOP_REASONS.get(reason, reason),
                model=text_of(completion.model) or self._model,
                usage=_usage(completion),
                cost_usd=0.0 if self._is_free else None,
                detail=self._clean(refusal),
            )
        except (AssertionError, AttributeError, TypeError, IndexError) as error:
            raise MalformedResponseError(
                f"{self._address} does not speak the Chat Completions API: its response is not an answer.",
                ADDRESS_ADVICE,
            ) from error

    async def _unknown_model(self, error: openai.APIStatusError) -> TeacherError:
        """Return the error for a 404, with the names that the server lists."""
        try:
            names = self._clean(", ".join(model.id for model in (await self._sdk.models.list()).data or []))
        except (openai.OpenAIError, ValueError, AttributeError, TypeError):  # not every server has this list
            names = ""
        return TeacherError(
            f"{self._address} does not serve {self._model!r} ({error.status_code}): {self._message(error)}",
            f"It serves {names}: write openai:MODEL with one of them." if names else ADDRESS_ADVICE,
        )

    def _message(self, error: openai.APIStatusError) -> str:
        """Return the server's words: `{"error": {"message": ...}}`, `{"error": "..."}` and plain text all occur."""
        body = error.body
        words = body.get("message") if isinstance(body, dict) else body
        return self._clean(words if isinstance(words, str) and words else error.message)

    def _clean(self, text: object) -> str:
        return http_utils.clean(text, self._key)


def _usage(completion: ChatCompletion) -> Usage:
    used = completion.usage
    if used is None:  # some servers count nothing
        return Usage()
    details, output_details = used.prompt_tokens_details, used.completion_tokens_details
    cached = token_count(details.cached_tokens) if details else 0
    return Usage(
        input_tokens=max(0, token_count(used.prompt_tokens) - cached),
        output_tokens=token_count(used.completion_tokens),
        cache_read_tokens=cached,
        thinking_tokens=token_count(output_details.reasoning_tokens) if output_details else 0,
    )
