"""Events that the library reports while it works. The command line draws them; the library prints nothing."""

from __future__ import annotations

from collections.abc import Callable

import msgspec


class Note(msgspec.Struct, frozen=True, tag=True):
    """One line about a decision, a dropped item or a written file."""

    text: str


class Warning(msgspec.Struct, frozen=True, tag=True):
    """One line about something that works, but that the user may not expect."""

    text: str


class Progress(msgspec.Struct, frozen=True, tag=True):
    """Progress of a long job. Events of one job share its `job` name; the last one has `done == total`."""

    job: str
    done: float
    total: float | None
    """None if unknown."""
    unit: str = ""
    note: str = ""
    """Current figures, such as the loss."""


Event = Note | Warning | Progress
Report = Callable[[Event], None]


def ignore(_event: Event) -> None:
    """Ignore an event. The default `report` of every stage."""
