"""A real HTTP server that speaks the Messages API from a script, and keeps a log of what it was asked.

Another path makes it speak another API whose requests hold `messages` too (`completions.py`).
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Call:
    """One request as it arrived."""

    prompt: str
    """The last user message."""
    nth: int
    """How often this prompt has been asked, this time included."""
    body: Mapping[str, Any]
    headers: Mapping[str, str]
    at: float
    """Monotonic seconds."""


@dataclass(frozen=True)
class Reply:
    """The response: JSON data, a page's text, or bytes as JSON. Without a body the connection is dropped."""

    status: int = 200
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    after_seconds: float = 0.0
    cut: bool = False
    """Send half of the body, then drop the connection."""
    events: tuple[tuple[str, Any], ...] = ()
    """Server-sent events instead of a body."""
    endless: bool = False
    """Send the body again and again, in chunks, until the client leaves."""
    drip_seconds: float = 0.0
    """Send the body, or the events, in ten pieces over so long."""


Script = Callable[[Call], Reply]


def text(value: str) -> dict[str, Any]:
    return {"type": "text", "text": value}


def thinking(value: str) -> dict[str, Any]:
    return {"type": "thinking", "thinking": value, "signature": "c2lnbmVk"}


def message(*blocks: dict[str, Any], stop_reason: Any = "end_turn", **more: Any) -> dict[str, Any]:
    """A message as the API sends it: 100 tokens in, 50 out."""
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-sonnet-4-6",
        "content": list(blocks),
        "stop_reason": stop_reason,
        "stop_sequence": None,
        "usage": {"input_tokens": 100, "output_tokens": 50},
        **more,
    }


def answer(value: str = "An answer.", **more: Any) -> Reply:
    return Reply(body=message(text(value), **more))


def error(status: int, kind: str, words: str, code: str = "", **headers: str) -> Reply:
    details = {"details": {"error_code": code}} if code else {}
    body = {"type": "error", "error": {"type": kind, "message": words, **details}, "request_id": "req_1"}
    return Reply(status, body, {name.replace("_", "-"): value for name, value in headers.items()})


DROPPED = Reply()


def streamed(value: str, stop_reason: str = "end_turn") -> Reply:
    """An answer as the events of a stream."""
    start: dict[str, Any] = message(usage={"input_tokens": 100, "output_tokens": 1}) | {"stop_reason": None}
    delta = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": value}}
    ending = {"delta": {"stop_reason": stop_reason, "stop_sequence": None}, "usage": {"output_tokens": 50}}
    events: list[tuple[str, dict[str, Any]]] = [
        ("message_start", {"message": start}),
        ("content_block_start", {"index": 0, "content_block": text("")}),
        ("content_block_delta", delta),
        ("content_block_stop", {"index": 0}),
        ("message_delta", ending),
        ("message_stop", {}),
    ]
    return Reply(events=tuple((name, {"type": name, **data}) for name, data in events))


class MessagesServer:
    """Answers by `script`, which may be replaced between runs; `calls` is the log."""

    def __init__(self, script: Script, port: int = 0, path: str = "/v1/messages") -> None:
        self.script = script
        self.path = path
        self.pages: dict[str, Reply] = {}
        """Responses to GET, by path."""
        self.calls: list[Call] = []
        self.max_at_once = 0
        self.at_once = 0
        self._lock = threading.Lock()
        self._http = _Server(("127.0.0.1", port), _handler(self))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    @property
    def prompts(self) -> list[str]:
        """Return the prompts in order of arrival."""
        return [call.prompt for call in self.calls]

    @contextmanager
    def running(self) -> Iterator[MessagesServer]:
        thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield self
        finally:
            self._http.shutdown()
            thread.join()
            self._http.server_close()

    def got(self, path: str) -> Reply:
        """The answer to a GET."""
        return self.pages.get(path, error(404, "not_found_error", path))

    def posted(self, path: str, body: Mapping[str, Any], headers: Mapping[str, str]) -> Reply:
        """The answer to a POST."""
        return self.reply(body, headers) if path == self.path else error(404, "not_found_error", path)

    def reply(self, body: Mapping[str, Any], headers: Mapping[str, str]) -> Reply:
        prompt = body["messages"][-1]["content"]
        with self._lock:
            call = Call(prompt, self.prompts.count(prompt) + 1, body, headers, time.monotonic())
            self.calls.append(call)
            self.at_once += 1
            self.max_at_once = max(self.max_at_once, self.at_once)
        try:
            reply = self.script(call)
            time.sleep(reply.after_seconds)
        finally:
            with self._lock:
                self.at_once -= 1
        return reply


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 256

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is what some tests do."""


def _handler(server: MessagesServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # head and body are two writes, and the second would wait for an ACK

        def do_GET(self) -> None:
            self._send(server.got(self.path))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            headers = {name.lower(): value for name, value in self.headers.items()}
            self._send(server.posted(self.path, body, headers))

        def _send(self, reply: Reply) -> None:
            if reply.events:
                self._send_events(reply)
            elif reply.endless:
                self._send_for_ever(reply)
            elif reply.body is None:
                self._hang_up()
            else:
                is_json = not isinstance(reply.body, str)
                text = json.dumps(reply.body) if is_json and not isinstance(reply.body, bytes) else reply.body
                data = text if isinstance(text, bytes) else text.encode()
                self._send_head(reply, "application/json" if is_json else "text/html", str(len(data)))
                self._write(data[: len(data) // 2] if reply.cut else data, reply.drip_seconds)
                if reply.cut:
                    self._hang_up()

        def _send_events(self, reply: Reply) -> None:
            self.close_connection = True
            self._send_head(reply, "text/event-stream", "")
            events = reply.events[: len(reply.events) // 2] if reply.cut else reply.events
            sent = "".join(f"event: {name}\ndata: {json.dumps(data)}\n\n" for name, data in events)
            self._write(sent.encode(), reply.drip_seconds)

        def _send_for_ever(self, reply: Reply) -> None:
            self.close_connection = True
            self._send_head(replace(reply, headers={"transfer-encoding": "chunked"}), "application/json", "")
            chunk = f"{len(reply.body):x}\r\n".encode() + reply.body + b"\r\n"
            while True:
                self.wfile.write(chunk)

        def _write(self, data: bytes, drip_seconds: float) -> None:
            if not drip_seconds:
                self.wfile.write(data)
                return
            step = len(data) // 9 + 1
            for start in range(0, len(data), step):
                self.wfile.write(data[start : start + step])
                time.sleep(drip_seconds / 10)

        def _send_head(self, reply: Reply, kind: str, length: str) -> None:
            self.send_response(reply.status)
            framing = {"content-length": length} if length else {"connection": "close"}
            for name, value in {"content-type": kind, **framing, **reply.headers}.items():
                self.send_header(name, value)
            self.end_headers()

        def _hang_up(self) -> None:
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

        def log_message(self, format: str, *args: Any) -> None:
            """Silent: the log is `calls`."""

    return Handler
