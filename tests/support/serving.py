"""A running `serve` server for tests, and clients of it: the official one and raw sockets."""

from __future__ import annotations

import json
import socket
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import openai


@dataclass(frozen=True)
class ServerClient:
    """Talks to the server on a port of 127.0.0.1."""

    port: int

    @cached_property
    def openai(self) -> openai.OpenAI:
        """The official client. The caller closes it."""
        return openai.OpenAI(base_url=f"http://127.0.0.1:{self.port}/v1", api_key="unused", max_retries=0, timeout=60)

    def ask(self, model: str, text: str = "Write a function.", **settings: Any) -> Any:
        messages: Any = [{"role": "user", "content": text}]
        return self.openai.chat.completions.create(model=model, messages=messages, **settings)

    def text(self, model: str, text: str = "Write a function.", **settings: Any) -> str:
        """Return the text of an answer, streamed or not."""
        answer = self.ask(model, text, **settings)
        if settings.get("stream"):
            return "".join(chunk.choices[0].delta.content or "" for chunk in answer if chunk.choices)
        return str(answer.choices[0].message.content)

    def send(self, data: bytes) -> socket.socket:
        """Send raw bytes on a new connection."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=60)
        connection.sendall(data)
        return connection

    def post(self, body: bytes, path: str = "/v1/chat/completions", **headers: str) -> tuple[int, dict[str, Any]]:
        """Return the status and the JSON of the response; `headers` replace the usual ones."""
        usual = {"Host": "127.0.0.1", "Content-Type": "application/json", "Connection": "close"}
        lines = "".join(f"{name}: {value}\r\n" for name, value in {**usual, **headers}.items())
        length = "" if "Content-Length" in headers else f"Content-Length: {len(body)}\r\n"
        with self.send(f"POST {path} HTTP/1.1\r\n{lines}{length}\r\n".encode("latin-1") + body) as connection:
            response = b"".join(iter(lambda: connection.recv(65536), b""))
        head, _, content = response.partition(b"\r\n\r\n")
        return int(head.split()[1]), json.loads(content) if content.startswith(b"{") else {}

    def post_json(self, **changes: Any) -> tuple[int, dict[str, Any]]:
        """Post a valid request with some fields changed."""
        body = {"model": "base", "messages": [{"role": "user", "content": "Hi"}], **changes}
        return self.post(json.dumps(body).encode())
