"""A server with the Message Batches API and the Messages API; a test sets when batches end, and their results."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.support.messages_server import DROPPED, MessagesServer, Reply, Script, answer, error, message, text

PATH = "/v1/messages/batches"
Result = Mapping[str, Any]
Outcome = Callable[[str, int], Result]
"""Maps (prompt, number of its batches so far) to a result."""


def succeeded(value: str, **more: Any) -> Result:
    return {"type": "succeeded", "message": message(text(value), **more)}


def errored(kind: str = "api_error", words: str = "Internal error") -> Result:
    return {"type": "errored", "error": {"type": "error", "error": {"type": kind, "message": words}}}


EXPIRED: Result = {"type": "expired"}
CANCELED: Result = {"type": "canceled"}


@dataclass
class Batch:
    """A batch as the server keeps it."""

    id: str
    requests: list[Mapping[str, Any]]
    created_at: datetime
    n_bytes: int = 0
    """Headers of the request that created it."""
    n_looks: int = 0
    ended: bool = False

    @property
    def prompts(self) -> list[str]:
        return [prompt_of(request) for request in self.requests]


def prompt_of(request: Mapping[str, Any]) -> str:
    prompt: str = request["params"]["messages"][-1]["content"]
    return prompt


class BatchesServer(MessagesServer):
    """A batch ends with the look at it of number `looks_until_ended`; 0 leaves all batches open."""

    def __init__(self, script: Script | None = None, port: int = 0) -> None:
        super().__init__(script or (lambda call: answer(f"Answer to {call.prompt}")), port)
        self.batches: dict[str, Batch] = {}
        self.looks_until_ended = 1
        self.outcome: Outcome = lambda prompt, nth: succeeded(f"Batched answer to {prompt}")
        self.refusals: list[Reply] = []
        """Sent, one after the other, in the place of making a batch."""
        self.lost_replies: list[Reply] = []
        """Sent, one after the other, in the place of the name of a batch that was made."""
        self.on_create: Callable[[], object] = lambda: None
        """Called before a batch is made."""
        self.broken_results: list[str] = []
        """Faults of the results, one for each reading: `cut`, `short` or `garbage`."""
        self.unreachable = False
        self._batches_lock = threading.Lock()

    @property
    def batched(self) -> list[str]:
        """Every prompt in a batch, in order of arrival."""
        return [prompt for batch in self.batches.values() for prompt in batch.prompts]

    def add(self, requests: list[Mapping[str, Any]], age: timedelta = timedelta(), n_bytes: int = 0) -> Batch:
        """A batch, ours or another program's."""
        with self._batches_lock:
            name = f"msgbatch_{len(self.batches) + 1:02d}"
            self.batches[name] = Batch(name, requests, datetime.now(UTC) - age, n_bytes)
            return self.batches[name]

    def posted(self, path: str, body: Mapping[str, Any], headers: Mapping[str, str]) -> Reply:
        if self.unreachable:
            return DROPPED
        if path != PATH:
            return super().posted(path, body, headers)
        if self.refusals:
            return self.refusals.pop(0)
        names = [request["custom_id"] for request in body["requests"]]
        if len(set(names)) < len(names) or not all(0 < len(name) <= 64 for name in names):
            return error(400, "invalid_request_error", "custom_id must be unique and of at most 64 characters")
        self.on_create()
        batch = self.add(body["requests"], n_bytes=int(headers["content-length"]))
        return self.lost_replies.pop(0) if self.lost_replies else Reply(body=self._state(batch))

    def got(self, path: str) -> Reply:
        if self.unreachable:
            return DROPPED
        parts = urlsplit(path)
        if parts.path == PATH:
            return self._list(parse_qs(parts.query))
        name, _, rest = parts.path.removeprefix(f"{PATH}/").partition("/")
        batch = self.batches.get(name)
        if not parts.path.startswith(PATH) or batch is None:
            return super().got(path)
        if rest == "results":
            return self._results(batch, self.broken_results.pop(0) if self.broken_results else "")
        batch.n_looks += 1
        batch.ended = batch.ended or 0 < self.looks_until_ended <= batch.n_looks
        return Reply(body=self._state(batch))

    def _list(self, query: Mapping[str, list[str]]) -> Reply:
        newest_first = sorted(self.batches.values(), key=lambda batch: batch.created_at, reverse=True)
        after = query.get("after_id", [""])[0]
        names = [batch.id for batch in newest_first]
        rest = newest_first[names.index(after) + 1 :] if after else newest_first
        page = rest[:2]  # small pages, so that the SDK has to turn them
        ids = {"first_id": page[0].id, "last_id": page[-1].id} if page else {"first_id": None, "last_id": None}
        body = {"data": [self._state(batch) for batch in page], "has_more": len(rest) > len(page) > 0, **ids}
        return Reply(body=body)

    def _state(self, batch: Batch) -> dict[str, Any]:
        counts = {"processing": 0, "succeeded": 0, "errored": 0, "canceled": 0, "expired": 0}
        if batch.ended:
            for request in batch.requests:
                counts[self._outcome(batch, request)["type"]] += 1
        else:
            counts["processing"] = len(batch.requests)
        return {
            "id": batch.id,
            "type": "message_batch",
            "processing_status": "ended" if batch.ended else "in_progress",
            "request_counts": counts,
            "created_at": batch.created_at.isoformat(),
            "expires_at": (batch.created_at + timedelta(hours=24)).isoformat(),
            "ended_at": batch.created_at.isoformat() if batch.ended else None,
            "archived_at": None,
            "cancel_initiated_at": None,
            "results_url": f"{self.url}{PATH}/{batch.id}/results" if batch.ended else None,
        }

    def _results(self, batch: Batch, broken: str) -> Reply:
        """The results, in another order than the requests."""
        lines = [
            json.dumps({"custom_id": request["custom_id"], "result": self._outcome(batch, request)})
            for request in reversed(batch.requests)
        ]
        if broken == "short":
            lines = lines[:-2]
        if broken == "garbage":
            lines[-1] = '{"custom_id": "x", "resu'
        return Reply(body="".join(line + "\n" for line in lines), cut=broken == "cut")

    def _outcome(self, batch: Batch, request: Mapping[str, Any]) -> Result:
        earlier = [each for each in self.batches.values() if each.created_at <= batch.created_at]
        nth = sum(each.prompts.count(prompt_of(request)) for each in earlier)
        return self.outcome(prompt_of(request), nth)
