"""Any model behind an OpenAI-compatible server (Ollama, LM Studio, vLLM, mlx_lm.server, OpenAI) as a teacher.

Through the official SDK, an optional extra, with its own silent retries off. What each failure means for the run is
decided in `_failure`, one reason a branch.
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
import time
from importlib.util import find_spec
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

from mlx_distill.errors import InputError, MissingError, TeacherError
from mlx_distill.records import Answer, Request, Usage
from mlx_distill.teachers.client import AGAIN, address_of, can_be_sent, count, no_connection, one_line, word
from mlx_distill.teachers.headers import retry_after
from mlx_distill.teachers.protocol import Limit, LimitError, NoAnswerError, RefusedError, TryLaterError, UnreadableError

if TYPE_CHECKING:
    from openai import APIStatusError, AsyncOpenAI
    from openai.types.chat import ChatCompletion

INSTALL = "pip install 'mlx-distill[openai]'"
OPENAI_HOST = "api.openai.com"
HOW_TO_ADDRESS = (
    "Set OPENAI_BASE_URL to the server's address, or write it behind the model: "
    "openai:MODEL@http://localhost:11434/v1 (Ollama; LM Studio has port 1234, mlx_lm.server 8080, vLLM 8000)."
)
LONGEST_ANSWER_SECONDS = 3600.0
"""A local server answers a few at a time and lets the others wait, each on its open connection."""
CONNECT_SECONDS = 10.0
LONGEST_RETRY = 8192
"""Up to which `max_tokens` an answer that was cut off is asked for again: what common models write at most."""

STOP_REASONS = {
    "stop": "end_turn",
    "length": "max_tokens",
    "content_filter": "refusal",
    "tool_calls": "tool_use",
    "function_call": "tool_use",
}
"""The API's finish reasons in the journal's words, which are Anthropic's. Unknown ones stay as they are."""

NO_BALANCE = frozenset({"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"})
"""Error codes of a 429 or 400 that no waiting mends."""
TOO_LONG = ("context length", "context window", "context size", "too long", "too many tokens")
"""How servers word a 400 that is about this prompt's length, where they give no code."""
BLOCKED = ("content_filter", "content_policy_violation")


class OpenAITeacher:
    """`MODEL` or `MODEL@URL`: `OPENAI_BASE_URL` where no URL is given, `OPENAI_API_KEY` where the server wants a key.

    The URL is no part of the teacher's name: a server that moves to another port has answered all the same.
    """

    longest_retry = LONGEST_RETRY

    def __init__(self, source: str) -> None:
        self._model, self._url = _model_and_url(source)
        self.name = f"openai:{self._model}"
        self.limits: tuple[Limit, ...] = ()  # each server has its own words for them, most have none
        self._client: AsyncOpenAI | None = None

    @property
    def billed_model(self) -> str:
        """The model, unless it runs on this machine."""
        return "" if is_here(self._base_url) else self._model

    @property
    def terms(self) -> str:
        """OpenAI's own, where it is they who answer; elsewhere the model's licence decides."""
        if (urlsplit(self._base_url).hostname or "") != OPENAI_HOST:
            return ""
        return (
            "Training models on these answers is bound by OpenAI's terms of use: a model that competes with theirs "
            "must not be made of them."
        )

    async def __aenter__(self) -> Self:
        if find_spec("openai") is None:
            raise MissingError("An openai: teacher needs the package openai, which is not installed.", INSTALL)
        self._client = _connect(self._base_url)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._client is not None:
            await self._client.close()
            self._client = None

    async def answer(self, request: Request) -> Answer:
        import httpx2
        import openai

        started = time.monotonic()
        try:
            completion = await self._completion(request)
        except openai.NotFoundError as error:
            raise await self._unknown_model(error) from error
        except openai.APIStatusError as error:
            raise self._failure(error) from error
        except (openai.APIConnectionError, httpx2.HTTPError) as error:
            raise no_connection(error, self._address, os.environ.get("OPENAI_API_KEY")) from error
        except (openai.APIResponseValidationError, json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
            raise TryLaterError("the answer arrived damaged") from error
        try:
            return self._read(completion, time.monotonic() - started)
        except (AttributeError, TypeError, IndexError) as error:  # the SDK does not check what is inside either
            raise self._no_completion() from error

    def _read(self, completion: ChatCompletion, seconds: float) -> Answer:
        choice: Any = completion.choices[0]  # servers leave out what the SDK's types promise
        refusal = word(choice.message.refusal)
        reason = word(choice.finish_reason) or "unknown"
        return Answer(
            text=without_thinking(word(choice.message.content)),
            stop_reason="refusal" if refusal else STOP_REASONS.get(reason, reason),
            model=word(completion.model) or self._model,
            usage=_usage(completion),
            cost_usd=None if self.billed_model else 0.0,
            seconds=seconds,
            detail=self._clean(refusal),
        )

    async def _completion(self, request: Request) -> ChatCompletion:
        from openai.types.chat import ChatCompletion

        client = self._open_client
        # OpenAI's newer models refuse the old name of the limit, older local servers do not know the new one.
        limit = "max_completion_tokens" if client.base_url.host == OPENAI_HOST else "max_tokens"
        messages: Any = [message.to_json() for message in request.messages]
        asked: dict[str, Any] = {limit: request.max_tokens}
        completion: object = await client.chat.completions.create(model=self._model, messages=messages, **asked)
        # The SDK does not check shapes: a login page arrives as text, any JSON as a completion of nothing.
        if not isinstance(completion, ChatCompletion):
            raise self._no_completion()
        return completion

    def _no_completion(self) -> UnreadableError:
        return UnreadableError(
            f"{self._address} does not speak the Chat Completions API: what it sent is no answer.", HOW_TO_ADDRESS
        )

    async def _unknown_model(self, error: APIStatusError) -> TeacherError:
        """A 404, with the names that the server would know."""
        import openai

        try:
            names = self._clean(", ".join(model.id for model in (await self._open_client.models.list()).data or []))
        except (openai.OpenAIError, ValueError, AttributeError, TypeError):  # not every server has this list
            names = ""
        return TeacherError(
            f"{self._address} does not serve {self._model!r} ({error.status_code}): {self._said(error)}",
            f"It serves {names}: write openai:MODEL with one of them." if names else HOW_TO_ADDRESS,
        )

    def _failure(self, error: APIStatusError) -> Exception:
        """What a refused request means: try later, this prompt never, or the whole run not at all."""
        status, code, said = error.status_code, error.code or "", self._said(error)
        lower = said.lower()
        if status == 402 or code in NO_BALANCE or error.type in NO_BALANCE:
            return TeacherError(
                f"The account at {self._address} has no balance or has reached its limit ({status}): {said}",
                f"Add credit or raise the limit, {AGAIN}",
            )
        if status == 401:
            return TeacherError(
                f"{self._address} refused the API key ({status}): {said}", "Set OPENAI_API_KEY to a key of this server."
            )
        if status == 403:
            return TeacherError(
                f"The API key may not use {self._model} at {self._address} ({status}): {said}",
                "Choose another model, or allow it to this key.",
            )
        if status == 413 or code == "context_length_exceeded" or any(words in lower for words in TOO_LONG):
            return NoAnswerError(f"too long for {self._model} ({status}): {said}")
        if code in BLOCKED:
            return NoAnswerError(f"the prompt was blocked ({status}): {said}")
        wait = retry_after(error.response.headers)
        if status in (429, 503, 529):
            reason = f"{'rate limit' if status == 429 else 'overloaded'} ({status}): {said}"
            return TryLaterError(reason, after_seconds=wait, overloaded=True, may_be_charged=False)
        if status in (408, 409) or status >= 500:
            return TryLaterError(f"server error ({status}): {said}", after_seconds=wait)
        refused = LimitError if "max_tokens" in lower or "max_completion_tokens" in lower else RefusedError
        return refused(
            f"{self._address} refused the request ({status}): {said}", "Check the model, max_tokens and the address."
        )

    @property
    def _base_url(self) -> str:
        return self._url or os.environ.get("OPENAI_BASE_URL", "").strip() or f"https://{OPENAI_HOST}/v1"

    @property
    def _open_client(self) -> AsyncOpenAI:
        if self._client is None:
            raise RuntimeError("a teacher is asked inside `async with teacher:`")
        return self._client

    @property
    def _address(self) -> str:
        return address_of(self._open_client.base_url)

    def _said(self, error: APIStatusError) -> str:
        """The server's own words: `{"error": {"message": ...}}`, `{"error": "..."}` and a bare text all occur."""
        body = error.body
        words = body.get("message") if isinstance(body, dict) else body
        return self._clean(words if isinstance(words, str) and words else error.message)

    def _clean(self, said: object) -> str:
        """The server's words as one short printable line without the key."""
        return one_line(said, os.environ.get("OPENAI_API_KEY"))


def _model_and_url(source: str) -> tuple[str, str]:
    """`MODEL@URL` in its parts; a model's name may hold an @ of its own."""
    found = re.fullmatch(r"(?P<model>.*?)@(?P<url>https?://.*)", source)
    if found is None and re.search(r"@(localhost|[\w.-]+:\d+)(/|$)", source):
        raise InputError(f"teacher 'openai:{source}': its address does not begin with http://.", HOW_TO_ADDRESS)
    if found is None:
        return source, ""
    model, url = found["model"].strip(), found["url"].strip()
    address = urlsplit(url)
    if not model or not address.hostname:
        raise InputError(f"teacher 'openai:{source}': a model and an address were expected.", HOW_TO_ADDRESS)
    if address.username or address.password:
        raise InputError("teacher: a password stands in the address.", "Set OPENAI_API_KEY instead: it is never saved.")
    return model, url


def _connect(url: str) -> AsyncOpenAI:
    """The SDK's client; a server of one's own needs no key, so that it gets a word that is none."""
    import openai

    key = os.environ.get("OPENAI_API_KEY", "")
    if not key and urlsplit(url).hostname == OPENAI_HOST:
        raise TeacherError(
            "No API key and no server: neither OPENAI_API_KEY nor OPENAI_BASE_URL is set.", HOW_TO_ADDRESS
        )
    if key and not can_be_sent(key):
        raise TeacherError(
            "OPENAI_API_KEY holds a space, a line break or another character no key has.", "Set it anew."
        )
    timeout = openai.Timeout(LONGEST_ANSWER_SECONDS, connect=CONNECT_SECONDS)
    return openai.AsyncOpenAI(api_key=key or "none", base_url=url, max_retries=0, timeout=timeout)


def is_here(url: str) -> bool:
    """Whether the address is on this machine, where nobody charges by the token; elsewhere may be a paid gateway."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def without_thinking(text: str) -> str:
    """What the model says after it has thought: some servers leave `<think>...</think>` in the answer's text.

    Some templates open the thought in the prompt, so that only its end is in the answer; a thought that never ends
    leaves nothing.
    """
    opened = text.lstrip().startswith("<think>")
    before, closing, after = text.partition("</think>")
    if closing and (opened or "<think>" not in before):
        return after.lstrip()
    return "" if opened else text


def _usage(completion: ChatCompletion) -> Usage:
    used = completion.usage
    if used is None:  # some servers count nothing
        return Usage()
    details = used.prompt_tokens_details
    cached = count(details.cached_tokens) if details else 0
    thought = used.completion_tokens_details
    return Usage(
        input_tokens=max(0, count(used.prompt_tokens) - cached),
        output_tokens=count(used.completion_tokens),
        cache_read_tokens=cached,
        thinking_tokens=count(thought.reasoning_tokens) if thought else 0,
    )
