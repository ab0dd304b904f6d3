"""Events that the library reports while it works. The command line draws them; the library prints nothing."""

from __future__ import annotations

from collections.abc import Callable

import msgspec


class Note(msgspec.Struct, frozen=True, tag=True):
    """A decision, something dropped, or a file written: one line."""

    text: str


class Warning(msgspec.Struct, frozen=True, tag=True):
    """Something that works, but may surprise: one line."""

    text: str


class Progress(msgspec.Struct, frozen=True, tag=True):
    """Progress of a long job. Events of one job share its `job` name; the last one has `done == total`."""

    job: str
    done: float
    total: float | None
    """None if the end is not known."""
    unit: str = ""
    note: str = ""
    """Figures of the moment."""


Event = Note | Warning | Progress
Report = Callable[[Event], None]


def ignore(_event: Event) -> None:
    """Ignore an event: the report of a caller who does not need it."""
