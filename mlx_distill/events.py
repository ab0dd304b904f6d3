"""Events that the library reports while it works. The command line draws them; the library never prints."""

from __future__ import annotations

from collections.abc import Callable

import msgspec


class Note(msgspec.Struct, frozen=True, tag="note"):
    """One line for the user: a decision, a dropped item, a written file."""

    text: str


class Warning(msgspec.Struct, frozen=True, tag="warning"):
    """One line about something that works but may surprise."""

    text: str


class Progress(msgspec.Struct, frozen=True, tag="progress"):
    """Progress of a long job. Events of one job share its name; the last one has `done == total`."""

    job: str
    done: float
    total: float | None
    """None if the end is unknown."""
    unit: str = ""
    note: str = ""
    """The current figures, such as the loss."""


Event = Note | Warning | Progress
Report = Callable[[Event], None]


def ignore(_event: Event) -> None:
    """Drop every event: the default report."""
