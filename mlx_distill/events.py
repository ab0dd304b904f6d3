"""What the library tells whoever called it while it works. The command line draws these; nothing here prints."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Note:
    """One line worth reading once: a decision taken, something dropped, a file written."""

    text: str


@dataclass(frozen=True)
class Warning:
    """One line about something that works but may surprise; shown to stand out."""

    text: str


@dataclass(frozen=True)
class Progress:
    """How far a long job is. `total` is None where the end is not known; `note` holds the figures of the moment.

    Events of one job share its `job` name; the last one has `done == total`.
    """

    job: str
    done: float
    total: float | None
    unit: str = ""
    note: str = ""


Event = Note | Warning | Progress
Report = Callable[[Event], None]


def ignore(_event: Event) -> None:
    """The report of a caller who does not want to hear."""
