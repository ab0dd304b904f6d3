"""Responses of the Chat Completions API, for `MessagesServer` under another path."""

from __future__ import annotations

from typing import Any

from tests.support.messages_server import Reply

PATH = "/v1/chat/completions"


def completion(text: str | None = "An answer.", *, finish: str = "stop", **message: Any) -> Reply:
    """A completion as the API sends it: 100 tokens in, 50 out."""
    choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text, **message}}
    usage = {"prompt_tokens": 100, "completion_tokens": 50, "total_tokens": 150}
    body = {"id": "c1", "object": "chat.completion", "created": 1, "model": "tiny", "choices": [choice], "usage": usage}
    return Reply(body=body)


def failure(status: int, words: str, code: str = "", **headers: str) -> Reply:
    body = {"error": {"message": words, "type": "error", "param": None, "code": code or None}}
    return Reply(status, body, {name.replace("_", "-"): value for name, value in headers.items()})
