"""Any model behind an OpenAI-compatible server (Ollama, LM Studio, vLLM, mlx_lm.server, OpenAI) as a teacher."""

from __future__ import annotations

import ipaddress
import os
import re
from typing import Any
from urllib.parse import urlsplit

import openai
from openai.types.chat import ChatCompletion

from mlx_distill.errors import InputError, TeacherError
from mlx_distill.records import Answer, Request, Usage
from mlx_distill.sanitize import without_thinking
from mlx_distill.teachers.base import MalformedResponseError, Reply
from mlx_distill.teachers.http_utils import HttpTeacher, client_options, text_of, token_count

OPENAI_HOST = "api.openai.com"
ADDRESS_ADVICE = (
    "Set OPENAI_BASE_URL to the server's address, or write it after the model: openai:MODEL@http://localhost:11434/v1 "
    "(Ollama; LM Studio uses port 1234, mlx_lm.server 8080, vLLM 8000)."
)
MAX_SECONDS = 3600.0
"""Deadline of a request. A local server answers a few at a time and keeps the others waiting."""
CONNECT_SECONDS = 10.0
STOP_REASONS = {
    "stop": "end_turn",
    "length": "max_tokens",
    "content_filter": "refusal",
    "tool_calls": "tool_use",
    "function_call": "tool_use",
}
"""The API's finish reasons in the words of the journal, which are Anthropic's. Unknown ones stay as they are."""


class OpenAITeacher(HttpTeacher):
    """`MODEL` or `MODEL@URL`. Without a URL, OPENAI_BASE_URL gives the server; OPENAI_API_KEY is optional.

    The URL is not part of the teacher's name: answers stay valid if the server moves.
    """

    max_retry_tokens = 8192
    """Most common models write no more than this."""
    key_name = "OPENAI_API_KEY"

    def __init__(self, source: str, max_seconds: float = MAX_SECONDS) -> None:
        model, self._url = _split(source)
        super().__init__(openai, f"openai:{model}", model, max_seconds)

    @property
    def base_url(self) -> str:
        """The server's address."""
        return self._url or os.environ.get("OPENAI_BASE_URL", "").strip() or f"https://{OPENAI_HOST}/v1"

    @property
    def _is_openai(self) -> bool:
        return urlsplit(self.base_url).hostname == OPENAI_HOST

    @property
    def billed_model(self) -> str:
        """The model; empty if it runs on this machine."""
        return "" if is_loopback(self.base_url) else self.model

    @property
    def terms(self) -> str:
        """OpenAI's terms for their own models. For other servers the model's licence applies."""
        if not self._is_openai:
            return ""
        return "OpenAI's terms of use apply to training on these answers: they forbid models that compete with theirs."

    def connect(self) -> openai.AsyncOpenAI:
        key = os.environ.get("OPENAI_API_KEY", "")
        if not key and self._is_openai:
            raise TeacherError("No API key and no server: set OPENAI_API_KEY or OPENAI_BASE_URL.", ADDRESS_ADVICE)
        self.secrets = (key,)
        return openai.AsyncOpenAI(
            api_key=key or "none",  # local servers need no key, but the SDK wants one
            base_url=self.base_url,
            max_retries=0,
            timeout=openai.Timeout(MAX_SECONDS, connect=CONNECT_SECONDS),
            http_client=openai.DefaultAsyncHttpxClient(**client_options()),
        )

    async def send(self, request: Request) -> Reply:
        """Send one request. Servers have no common headers for rate limits, so the reply has none."""
        # OpenAI's newer models refuse the old name of the limit; older local servers do not know the new one.
        limit = "max_completion_tokens" if self._is_openai else "max_tokens"
        messages = [message.to_json() for message in request.messages]
        options = {"model": self.model, "messages": messages, limit: request.max_tokens}
        return Reply(self._answer(await self.connection.chat.completions.create(**options)))

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
                model=text_of(completion.model) or self.model,
                usage=_usage(completion),
                cost_usd=None if self.billed_model else 0.0,
                detail=self.clean(refusal),
            )
        except (AssertionError, AttributeError, TypeError, IndexError) as error:
            raise MalformedResponseError(
                f"{self.address} does not speak the Chat Completions API: its response is not an answer.",
                ADDRESS_ADVICE,
            ) from error

    async def sort_status(self, error: openai.APIStatusError) -> Exception:
        # `{"error": {"message": ...}}`, `{"error": "..."}` and plain text all occur.
        words = error.body.get("message") if isinstance(error.body, dict) else error.body
        message = self.clean(words if isinstance(words, str) and words else error.message)
        if not isinstance(error, openai.NotFoundError):
            headers = error.response.headers
            return self.sort_error(error.status_code, error.code or "", error.type or "", message, headers)
        try:
            names = self.clean(", ".join(model.id for model in (await self.connection.models.list()).data or []))
        except (openai.OpenAIError, ValueError, AttributeError, TypeError):  # not every server has this list
            names = ""
        return TeacherError(
            f"{self.address} does not serve {self.model!r} ({error.status_code}): {message}",
            f"It serves {names}: write openai:MODEL with one of them." if names else ADDRESS_ADVICE,
        )


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


def _split(source: str) -> tuple[str, str]:
    """Split `MODEL@URL`. A model's name may contain an @ of its own."""
    found = re.fullmatch(r"(?P<model>.*?)@(?P<url>https?://.*)", source)
    if found is None and re.search(r"@(localhost|[\w.-]+:\d+)(/|$)", source):
        raise InputError(f"teacher 'openai:{source}': its address does not begin with http://.", ADDRESS_ADVICE)
    if found is None:
        return source, ""
    model, url = found["model"].strip(), found["url"].strip()
    address = urlsplit(url)
    if not model or not address.hostname:
        raise InputError(f"teacher 'openai:{source}': the model or the address is missing.", ADDRESS_ADVICE)
    if address.username or address.password:
        raise InputError("teacher: the address contains a password.", "Set OPENAI_API_KEY instead: it is never saved.")
    return model, url


def is_loopback(url: str) -> bool:
    """Return whether the address is on this machine, so that nobody charges for answers."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
