"""A stand-in for the Hugging Face Hub: one model repository on a local port, with network failures."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from tests.support.local_http import serving

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHER_COMMIT = "fedcba9876543210fedcba9876543210fedcba98"
NAME = "tiny/tiny-qwen2"


@dataclass
class Hub:
    """The content and behaviour of the server, and the requests it received."""

    folder: Path
    url: str = ""
    refs: dict[str, str] = field(default_factory=lambda: {"main": COMMIT, "v1": OTHER_COMMIT})
    refuse: tuple[int, str] | None = None
    """The status and X-Error-Code of every answer."""
    cut_at: int | None = None
    """Drop the connection after this many bytes of the weights, `cuts` times."""
    cuts: int = 0
    down_after_cut: bool = False
    """After a dropped connection, answer 503."""
    requests: list[str] = field(default_factory=list)
    """METHOD, path, and the Range."""
    sent: Counter[str] = field(default_factory=Counter)
    """Bytes of content sent, by file name."""

    @property
    def environment(self) -> dict[str, str]:
        """The variables that make huggingface_hub use this server."""
        return {"HF_ENDPOINT": self.url, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}


@contextmanager
def serve(folder: Path) -> Iterator[Hub]:
    """Serve `folder` as the repository `tiny/tiny-qwen2`."""
    hub = Hub(folder)

    class Handler(_Handler):
        state = hub

    with serving(Handler) as hub.url:
        yield hub


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: Hub

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def log_message(self, *_arguments: Any) -> None:
        """Print nothing: the tests read `requests`."""

    def _answer(self, *, with_body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        span = self.headers.get("Range", "")
        self.state.requests.append(f"{self.command} {path} {span}".strip())
        if self.state.refuse:
            self._error(*self.state.refuse)
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/(revision|tree)/(.+)", path):
            self._listing(*match.groups())
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._file(*match.groups(), span=span, with_body=with_body)
        else:
            self._error(404, "EntryNotFound")

    def _listing(self, name: str, what: str, revision: str) -> None:
        commit = self._commit(name, revision)
        if commit is None:
            return
        files = sorted(file for file in self.state.folder.iterdir() if file.is_file())
        if what == "revision":
            self._json({"id": name, "sha": commit, "siblings": [{"rfilename": file.name} for file in files]})
        else:
            self._json(
                [
                    {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": digest(file)[:40]}
                    for file in files
                ]
            )

    def _file(self, name: str, revision: str, file_name: str, *, span: str, with_body: bool) -> None:
        commit = self._commit(name, revision)
        if commit is None:
            return
        file = self.state.folder / file_name
        if not file.is_file():
            self._error(404, "EntryNotFound")
            return
        content = file.read_bytes()
        start = int(span.removeprefix("bytes=").split("-")[0]) if span else 0
        self.send_response(206 if span else 200)
        self.send_header("ETag", f'"{digest(file)}"')
        self.send_header("X-Repo-Commit", commit)
        self.send_header("Accept-Ranges", "bytes")
        if span:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        if with_body:
            self._send(file_name, content[start:])

    def _send(self, file_name: str, content: bytes) -> None:
        state = self.state
        if file_name.endswith(".safetensors") and state.cut_at is not None and state.cuts > 0:
            state.cuts -= 1
            content = content[: state.cut_at]
            self.close_connection = True
            if state.down_after_cut:
                state.refuse = (503, "")
        self.wfile.write(content)
        state.sent[file_name] += len(content)

    def _commit(self, name: str, revision: str) -> str | None:
        """Return the commit of a revision, or None after sending an error."""
        if name != NAME:
            self._error(404, "RepoNotFound")
            return None
        if revision in self.state.refs:
            return self.state.refs[revision]
        if revision in self.state.refs.values():
            return revision
        self._error(404, "RevisionNotFound")
        return None

    def _json(self, data: Any) -> None:
        body = json.dumps(data).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _error(self, status: int, code: str) -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()


def digest(file: Path) -> str:
    """Return the SHA-256 of a file, as in the Hub's ETag."""
    return hashlib.sha256(file.read_bytes()).hexdigest()
