"""Which batches are under way: written down before one is made, so that none is lost or made twice.

Beside the journal, `batches/log.jsonl` has a line for each thing that happens to a batch, and `batches/N.jsonl` the
requests of batch N until its results are in the journal: they are needed to read the results, whatever has become of
the prompts file meanwhile.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from mlx_distill.errors import InputError
from mlx_distill.records import Message, Prompt, Request
from mlx_distill.storage.atomic import remove_empty, write_jsonl
from mlx_distill.storage.journal import Journal
from mlx_distill.storage.jsonl import each_jsonl, read_jsonl
from mlx_distill.teachers.asking.plan import Ask

FOLDER = "batches"
LOG = "log.jsonl"
KEY_LENGTH = 48
"""Hexadecimal digits of a request's key in its custom_id, of which 64 characters are allowed."""


@dataclass
class OpenBatch:
    """A batch that was announced and whose results are not all in the journal yet."""

    name: str
    """A number that no other batch of the log has."""
    teacher: str
    n_requests: int
    reservation: str
    """In the ledger; empty where costs are not counted."""
    announced_at: datetime
    id: str = ""
    """The provider's; empty while it is not known whether the batch exists."""


class BatchLog:
    """The log in a folder; as a context manager its one writer."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        """Of the log and the requests."""
        self._journal = Journal(folder / LOG)
        self._n_announced = 0
        self.open: dict[str, OpenBatch] = {}
        self.known_ids: set[str] = set()
        """The provider's names of all batches there ever were, those that proved to be somebody else's included."""

    def __enter__(self) -> BatchLog:
        self._journal.__enter__()
        try:
            self.read()
            for file in self.folder.glob("[0-9]*.jsonl"):
                if file.stem not in self.open:  # left by a kill, before its batch was announced or after it was closed
                    file.unlink()
        except BaseException:
            self._journal.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if (self.folder / LOG).stat().st_size == 0:  # no batch was made: leave no folder that looks like some
            (self.folder / LOG).unlink()  # while it is locked, as the ledger does
            remove_empty([self.folder])
        self._journal.close()

    def read(self) -> BatchLog:
        """Go through what happened, where there is a log; alone, without entering, it only looks."""
        if (self.folder / LOG).exists():
            for _ in each_jsonl(self.folder / LOG, lambda data: self._fold(_line(data)), torn_end=True):
                """What a line says is done as it is read, so that its faults have its number."""
        return self

    def open_of(self, teacher: str) -> list[OpenBatch]:
        """The open batches of a teacher."""
        return [batch for batch in self.open.values() if batch.teacher == teacher]

    def questions_under_way(self) -> set[str]:
        """The questions (`Request.question`) that open batches will answer."""
        return {ask.request.prompt_key for batch in self.open.values() for ask in self.asks(batch).values()}

    def announce(self, teacher: str, asks: Mapping[str, Ask], reservation: str) -> OpenBatch:
        """Say that a batch of these requests, by custom_id, is about to be made; all is on the disk when it returns."""
        name = str(self._n_announced + 1)
        write_jsonl(self._file(name), (_to_json(custom_id, ask) for custom_id, ask in asks.items()))
        self._append({"do": "announce", "name": name, "teacher": teacher, "n": len(asks), "reservation": reservation})
        return self.open[name]

    def created(self, batch: OpenBatch, batch_id: str) -> None:
        """The batch exists and is called this."""
        self._append({"do": "created", "name": batch.name, "id": batch_id})

    def disowned(self, batch: OpenBatch) -> None:
        """What was taken for this batch is another one."""
        self._append({"do": "disowned", "name": batch.name, "id": batch.id})

    def close(self, batch: OpenBatch, how: str) -> None:
        """The batch needs nothing more: `fetched`, or why there is nothing to fetch."""
        self._append({"do": "close", "name": batch.name, "how": how})
        self._file(batch.name).unlink(missing_ok=True)

    def asks(self, batch: OpenBatch) -> dict[str, Ask]:
        """The requests of an open batch by custom_id."""
        step = (
            f"It holds the requests of a batch that is under way: bring it back from a copy. To forget all batches and "
            f"what they answer, remove {self.folder}; the ledger counts them in full."
        )
        asks = dict(read_jsonl(self._file(batch.name), _from_json, step))
        if len(asks) != batch.n_requests:
            raise InputError(f"{self._file(batch.name)} holds {len(asks)} requests of {batch.n_requests}.", step)
        return asks

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.jsonl"

    def _append(self, line: dict[str, Any]) -> None:
        line = {**line, "at": datetime.now(UTC).isoformat()}
        self._journal.append(line)
        self._fold(line)

    def _fold(self, line: Mapping[str, Any]) -> None:
        name = line["name"]
        if line["do"] in ("created", "disowned") and name not in self.open:
            raise ValueError(f"batch {name} is not announced before this line, or closed")
        if line["do"] == "announce":
            self._n_announced += 1
            if name in self.open:
                raise ValueError(f"batch {name} is announced twice")
            at = datetime.fromisoformat(line["at"])
            self.open[name] = OpenBatch(name, line["teacher"], line["n"], line["reservation"], at)
        elif line["do"] == "created":
            self.open[name].id = line["id"]
            self.known_ids.add(line["id"])
        elif line["do"] == "disowned":
            self.open[name].id = ""
        else:
            self.open.pop(name, None)


def custom_ids(asks: Iterable[Ask]) -> dict[str, Ask]:
    """The requests by a name for each that no other batch uses, so that results say whose they are.

    Of equal requests only the first is named.
    """
    nonce = secrets.token_hex(4)
    named: dict[str, Ask] = {}
    for ask in asks:
        named.setdefault(f"{nonce}-{ask.request.key[:KEY_LENGTH]}", ask)
    return named


def _to_json(custom_id: str, ask: Ask) -> dict[str, Any]:
    return {
        "custom_id": custom_id,
        "key": ask.key,
        "again": ask.again,
        "prompt": ask.prompt.to_json(),
        "teacher": ask.request.teacher,
        "max_tokens": ask.request.max_tokens,
        "messages": [message.to_json() for message in ask.request.messages],
    }


def _from_json(data: object) -> tuple[str, Ask]:
    if not isinstance(data, Mapping):
        raise ValueError("must be an object")
    try:
        request = Request(data["teacher"], tuple(map(Message.from_json, data["messages"])), data["max_tokens"])
        return data["custom_id"], Ask(data["key"], Prompt.from_json(data["prompt"]), request, data["again"])
    except KeyError as error:
        raise ValueError(f"the field {error} is missing") from error


FIELDS = {"announce": ("teacher", "n", "reservation", "at"), "created": ("id",), "disowned": ("id",), "close": ("how",)}
"""What each kind of line says beside its batch's name."""


def _line(data: object) -> Mapping[str, Any]:
    if isinstance(data, Mapping):
        fields = FIELDS.get(str(data.get("do")))
        if fields and all(name in data for name in ("name", *fields)):
            return data
    raise ValueError("this is no line of a log of batches")
