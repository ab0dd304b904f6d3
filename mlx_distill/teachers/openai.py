"""Any model behind an OpenAI-compatible server (Ollama, LM Studio, vLLM, mlx_lm.server, OpenAI) as a teacher."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import re
import time
from importlib.util import find_spec
from types import TracebackType
from typing import TYPE_CHECKING, Self
from urllib.parse import urlsplit

from msgspec import structs

from mlx_distill.errors import InputError, MissingError, TeacherError
from mlx_distill.records import Request
from mlx_distill.teachers.base import Reply, RetryableError
from mlx_distill.teachers.registry import PROVIDERS

if TYPE_CHECKING:
    from mlx_distill.teachers.openai_client import OpenAIClient

OPENAI_HOST = "api.openai.com"
ADDRESS_ADVICE = (
    "Set OPENAI_BASE_URL to the server's address, or write it after the model: openai:MODEL@http://localhost:11434/v1 "
    "(Ollama; LM Studio uses port 1234, mlx_lm.server 8080, vLLM 8000)."
)
MAX_SECONDS = 3600.0
"""Deadline of a request. A local server answers a few at a time and keeps the others waiting."""
MAX_RETRY_TOKENS = 8192
"""Most common models write no more than this."""


class OpenAITeacher:
    """`MODEL` or `MODEL@URL`. Without a URL, OPENAI_BASE_URL gives the server; OPENAI_API_KEY is optional.

    The URL is not part of the teacher's name: answers stay valid if the server moves.
    """

    max_retry_tokens = MAX_RETRY_TOKENS

    def __init__(self, source: str, max_seconds: float = MAX_SECONDS) -> None:
        self.model, self._url = _split(source)
        self.name = f"openai:{self.model}"
        self._max_seconds = max_seconds
        self._client: OpenAIClient | None = None

    @property
    def billed_model(self) -> str:
        """The model; empty if it runs on this machine."""
        return "" if is_loopback(self.base_url) else self.model

    @property
    def terms(self) -> str:
        """OpenAI's terms for their own models. For other servers the model's licence applies."""
        if urlsplit(self.base_url).hostname != OPENAI_HOST:
            return ""
        return "OpenAI's terms of use apply to training on these answers: they forbid models that compete with theirs."

    @property
    def base_url(self) -> str:
        """The server's address."""
        return self._url or os.environ.get("OPENAI_BASE_URL", "").strip() or f"https://{OPENAI_HOST}/v1"

    async def __aenter__(self) -> Self:
        if find_spec("openai") is None:
            raise MissingError(
                "An openai: teacher needs the package openai, which is not installed.", PROVIDERS["openai"].install
            )
        if not os.environ.get("OPENAI_API_KEY") and urlsplit(self.base_url).hostname == OPENAI_HOST:
            raise TeacherError("No API key and no server: set OPENAI_API_KEY or OPENAI_BASE_URL.", ADDRESS_ADVICE)
        from mlx_distill.teachers.openai_client import OpenAIClient

        self._client = OpenAIClient(self.model, self.base_url, is_free=not self.billed_model)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._client is not None:
            await self._client.close()
            self._client = None

    async def complete(self, request: Request) -> Reply:
        """Send one request. Servers have no common headers for rate limits, so the reply has none."""
        if self._client is None:
            raise RuntimeError("use the teacher inside `async with teacher:`")
        started = time.monotonic()
        try:
            async with asyncio.timeout(self._max_seconds):
                answer = await self._client.complete(request)
        except TimeoutError as error:
            raise RetryableError(f"no complete answer within {self._max_seconds:g} s") from error
        return Reply(structs.replace(answer, seconds=time.monotonic() - started))


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


def without_thinking(text: str) -> str:
    """Remove `<think>...</think>`, which some servers leave in the answer's text.

    Some chat templates open the thought in the prompt, so the answer may contain only its end. A thought without an
    end leaves nothing.
    """
    opened = text.lstrip().startswith("<think>")
    before, closing, after = text.partition("</think>")
    if closing and (opened or "<think>" not in before):
        return after.lstrip()
    return "" if opened else text
