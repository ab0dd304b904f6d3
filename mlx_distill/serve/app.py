"""The HTTP part of the server: routes, JSON and server-sent events on Starlette, without the model."""

from __future__ import annotations

import asyncio
import json
import queue
import re
import threading
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from typing import Any

import h11
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from mlx_distill.serve.protocol import ChatRequest, Finish, RequestError, ResponseBuilder, check_model

MAX_CONNECTIONS = 200
"""More connections get 503. macOS lets a process open 256 files by default."""
RECEIVE_SECONDS = 30.0
"""A client that has not sent a whole request after this time is disconnected: it holds one of the connections."""
_HOST = re.compile(r"(127\.0\.0\.1|localhost)(:\d+)?", re.IGNORECASE)
_ORIGIN = re.compile(r"https?://(127\.0\.0\.1|localhost)(:\d+)?", re.IGNORECASE)


class Job:
    """A request and its answer: texts, then Finish or RequestError. Create it inside the event loop."""

    def __init__(self, request: ChatRequest) -> None:
        self.request = request
        self.cancelled = threading.Event()
        self._loop = asyncio.get_running_loop()
        self._items: asyncio.Queue[str | Finish | RequestError] = asyncio.Queue()

    def put(self, item: str | Finish | RequestError) -> None:
        """Add a part of the answer, from any thread."""
        with suppress(RuntimeError):  # the event loop is closed, so no client waits
            self._loop.call_soon_threadsafe(self._items.put_nowait, item)

    async def next(self) -> str | Finish:
        """Wait for the next part of the answer. Raises the RequestError that ends it."""
        item = await self._items.get()
        if isinstance(item, RequestError):
            raise item
        return item


Jobs = queue.Queue[Job | None]
"""Requests on their way to the model; None ends the server."""


class _LocalOnly:
    """Refuses web pages of other hosts, also if they use a name that points to this machine (DNS rebinding)."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._app
        if scope["type"] == "http":
            headers = Request(scope).headers
            if not _HOST.fullmatch(headers.get("host", "")):
                app = _error_response(RequestError("This server answers only to 127.0.0.1 and localhost.", status=403))
            elif not all(map(_ORIGIN.fullmatch, headers.getlist("origin"))):
                app = _error_response(RequestError("This server refuses web pages of other hosts.", status=403))
        await app(scope, receive, send)


class _Protocol(H11Protocol):
    """Disconnects clients that are idle or slow. uvicorn does so only between two requests."""

    receive_seconds = RECEIVE_SECONDS

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # the base takes any transport
        super().connection_made(transport)
        self._expect_request()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._deadline.cancel()
        self._expect_request()

    def connection_lost(self, exc: Exception | None) -> None:
        self._deadline.cancel()
        super().connection_lost(exc)

    def _expect_request(self) -> None:
        self._deadline = self.loop.call_later(self.receive_seconds, self._disconnect)

    def _disconnect(self) -> None:
        if self.conn.their_state in (h11.IDLE, h11.SEND_BODY):
            self.transport.abort()


def http_server(
    models: Sequence[str], jobs: Jobs, max_body_bytes: int, receive_seconds: float = RECEIVE_SECONDS
) -> uvicorn.Server:
    """Return a server that puts each checked request for one of `models` into `jobs`. A full queue gives 503."""
    protocol = type("Protocol", (_Protocol,), {"receive_seconds": receive_seconds})
    return uvicorn.Server(
        uvicorn.Config(
            _Routes(models, jobs, max_body_bytes).app(),
            loop="asyncio",
            http=protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="critical",
            limit_concurrency=MAX_CONNECTIONS,
            timeout_graceful_shutdown=2,
        )
    )


class _Routes:
    def __init__(self, models: Sequence[str], jobs: Jobs, max_body_bytes: int) -> None:
        self._models, self._jobs, self._max_body_bytes = models, jobs, max_body_bytes
        self._started = int(time.time())
        self._watches: set[asyncio.Task[None]] = set()

    def app(self) -> Starlette:
        routes = [
            Route("/v1/models", self._list_models),
            Route("/v1/models/{name:path}", self._get_model),
            Route("/v1/chat/completions", self._complete, methods=["POST"]),
        ]
        handlers: dict[Any, Any] = {
            RequestError: lambda _, error: _error_response(error),
            HTTPException: lambda request, error: _error_response(
                RequestError(f"{request.method} {request.url.path}: {error.detail}.", status=error.status_code)
            ),
            ClientDisconnect: lambda *_: Response(status_code=400),
        }
        return Starlette(routes=routes, middleware=[Middleware(_LocalOnly)], exception_handlers=handlers)

    async def _list_models(self, _request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._describe(name) for name in self._models]})

    async def _get_model(self, request: Request) -> Response:
        return JSONResponse(self._describe(request.path_params["name"]))

    def _describe(self, name: str) -> dict[str, Any]:
        check_model(name, self._models)
        return {"id": name, "object": "model", "created": self._started, "owned_by": "mlx-distill"}

    async def _complete(self, request: Request) -> Response:
        """Answer a chat. The response starts with the first text, so an error before it still sets the HTTP status."""
        job = Job(ChatRequest.parse(await self._read(request), self._models))
        try:
            self._jobs.put_nowait(job)
        except queue.Full:
            raise RequestError("Too many requests are waiting. Try again later.", status=503) from None
        watch = asyncio.create_task(_cancel_on_disconnect(job, request))
        self._watches.add(watch)  # the event loop keeps no reference to a task
        watch.add_done_callback(self._watches.discard)
        item = await job.next()
        builder = ResponseBuilder(job.request.model)
        if job.request.stream:
            headers = {"Cache-Control": "no-cache"}
            return StreamingResponse(_events(job, item, builder), media_type="text/event-stream", headers=headers)
        texts = []
        while isinstance(item, str):
            texts.append(item)
            item = await job.next()
        return JSONResponse(builder.whole("".join(texts), item))

    async def _read(self, request: Request) -> bytes:
        too_long = RequestError(f"The body is longer than {self._max_body_bytes} bytes.", status=413)
        if int(request.headers.get("content-length", 0)) > self._max_body_bytes:
            raise too_long
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > self._max_body_bytes:
                raise too_long
        return bytes(body)


async def _cancel_on_disconnect(job: Job, request: Request) -> None:
    """Cancel the job if the client disconnects, with or without streaming."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    job.cancelled.set()


async def _events(job: Job, item: str | Finish, builder: ResponseBuilder) -> AsyncIterator[bytes]:
    yield _event(builder.chunk({"role": "assistant", "content": ""}))
    try:
        while isinstance(item, str):
            yield _event(builder.chunk({"content": item}))
            item = await job.next()
    except RequestError as error:
        yield _event(error.to_json())
        return
    yield _event(builder.chunk({}, item.reason))
    if job.request.include_usage:
        yield _event(builder.usage_chunk(item))
    yield b"data: [DONE]\n\n"


def _event(data: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(data).encode() + b"\n\n"


def _error_response(error: RequestError) -> JSONResponse:
    return JSONResponse(error.to_json(), error.status)
