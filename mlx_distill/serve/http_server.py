"""The HTTP side of the server: routes, JSON, server-sent events. Knows requests and answers, nothing of models."""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from mlx_distill import __version__
from mlx_distill.errors import MachineError
from mlx_distill.serve.api import ChatRequest, RequestError, Shape, model_list, model_object

if TYPE_CHECKING:
    from mlx_distill.serve.run import Finish, Job

MOST_BODY_BYTES = 16 << 20
_HOSTS = frozenset({"127.0.0.1", "localhost"})


class Listener:
    """A port on 127.0.0.1, taken at once. Requests wait until `start` says who answers them.

    As a context manager it frees the port at the end of the block.
    """

    def __init__(self, port: int) -> None:
        self.models: Sequence[str] = ()
        self.created = int(time.time())
        try:
            self._server = _HTTPServer(("127.0.0.1", port), _Handler)
        except OSError as error:
            raise MachineError(
                f"Port {port} on 127.0.0.1 cannot be used ({error.strerror}).", "Choose another one with --port."
            ) from error
        self._server.listener = self
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), daemon=True)

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, *_error: object) -> None:
        self.stop()

    def start(self, models: Sequence[str], submit: Callable[[ChatRequest], Job]) -> None:
        """Hand every checked request for one of `models` to `submit`, which returns the job to read from."""
        self.models, self.submit = models, submit
        self._thread.start()

    def stop(self) -> None:
        """Take no more requests and close the port; threads that still answer go on until their answer ends."""
        if self._thread.is_alive():
            self._server.shutdown()
        self._server.server_close()


class _HTTPServer(ThreadingHTTPServer):
    listener: Listener
    daemon_threads = True
    block_on_close = False


class _Handler(BaseHTTPRequestHandler):
    server: _HTTPServer
    protocol_version = "HTTP/1.1"
    server_version = f"mlx-distill/{__version__}"
    timeout = 60  # a client that sends half a request does not hold its thread for ever

    def do_GET(self) -> None:
        self._guarded(self._get)

    def do_POST(self) -> None:
        self._guarded(self._post)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet: the server reports each answer once, when it is done."""

    def _guarded(self, handle: Callable[[], None]) -> None:
        try:
            self._check_host()
            handle()
        except RequestError as error:
            self.close_connection = True  # the body may not have been read
            self._send_json(error.to_json(), error.status)
        except ConnectionError:
            self.close_connection = True

    def _check_host(self) -> None:
        """A page in a browser that made its own name point here (DNS rebinding) sends that name as the host."""
        host = self.headers.get("Host", "").rsplit(":", 1)[0]
        if host not in _HOSTS:
            raise RequestError("This server answers to 127.0.0.1 and localhost only.", status=403)

    def _get(self) -> None:
        listener = self.server.listener
        name = self.path.removeprefix("/v1/models/")
        if self.path == "/v1/models":
            self._send_json(model_list(listener.models, listener.created))
        elif name in listener.models:
            self._send_json(model_object(name, listener.created))
        else:
            raise self._no_such_path()

    def _post(self) -> None:
        if self.path != "/v1/chat/completions":
            raise self._no_such_path()
        request = ChatRequest.from_json(self._body(), self.server.listener.models)
        job = self.server.listener.submit(request)
        try:
            self._reply(job)
        except OSError:
            job.cancelled.set()
            raise

    def _no_such_path(self) -> RequestError:
        known = "GET /v1/models and POST /v1/chat/completions"
        return RequestError(f"There is no {self.command} {self.path} here; there are {known}.", status=404)

    def _body(self) -> object:
        length = self.headers.get("Content-Length", "")
        if not length.isdigit():
            raise RequestError("The request has no Content-Length.", status=411)
        if int(length) > MOST_BODY_BYTES:
            raise RequestError(f"The body is longer than {MOST_BODY_BYTES} bytes.", status=413)
        try:
            return json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError) as error:
            raise RequestError(f"The body is not valid JSON: {error}") from error

    def _reply(self, job: Job) -> None:
        """Wait for the first word of the answer: until then an error can still have its own status."""
        request = job.request
        shape = Shape(f"chatcmpl-{uuid.uuid4().hex}", request.model, int(time.time()))
        first = job.answer.get()
        if isinstance(first, RequestError):
            raise first
        if request.stream:
            self._stream(job, shape, first)
            return
        texts: list[str] = []
        item: str | Finish | RequestError = first
        while isinstance(item, str):
            texts.append(item)
            item = job.answer.get()
        if isinstance(item, RequestError):
            raise item
        self._send_json(shape.completion("".join(texts), item.reason, item.usage))

    def _stream(self, job: Job, shape: Shape, item: str | Finish | RequestError) -> None:
        self.close_connection = True  # the end of the connection is the end of the body
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Cache-Control", "no-cache")
        self.send_header("Connection", "close")
        self.end_headers()
        self._event(shape.chunk({"role": "assistant", "content": ""}))
        while isinstance(item, str):
            self._event(shape.chunk({"content": item}))
            item = job.answer.get()
        if isinstance(item, RequestError):
            self._event(item.to_json())
            return
        self._event(shape.chunk({}, item.reason))
        if job.request.include_usage:
            self._event(shape.usage_chunk(item.usage))
        self.wfile.write(b"data: [DONE]\n\n")

    def _event(self, data: dict[str, Any]) -> None:
        self.wfile.write(b"data: " + json.dumps(data).encode() + b"\n\n")
        self.wfile.flush()

    def _send_json(self, data: dict[str, Any], status: int = 200) -> None:
        body = json.dumps(data).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)
