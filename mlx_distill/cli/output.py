"""Output of the commands: results to standard output; progress, notes and errors to standard error."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click

from mlx_distill.config import to_plain
from mlx_distill.errors import DistillError
from mlx_distill.events import Event, Note, Progress, Report, Warning
from mlx_distill.sanitize import json_safe, printable

PLAIN_EVERY_SECONDS = 10.0
"""Interval of progress lines if the output is not a terminal."""
MAX_CHARACTERS = 2000
"""Maximum length of one message. Text from files and servers can have any length."""


def print_error(error: DistillError) -> None:
    """Print the message, the problems and the next step to standard error."""
    label = "Stopped" if error.exit_code in (130, 143) else "Error"
    click.echo(click.style(f"{label}: ", fg="red", bold=True) + safe(error.message), err=True)
    for problem in error.problems:
        click.echo(f"  {safe(problem)}", err=True)
    if error.next_step:
        click.echo(safe(error.next_step), err=True)


def print_json(result: Any) -> None:
    """Print a result as one JSON object to standard output. Control characters are escaped."""
    click.echo(json_safe(json.dumps(to_plain(result), indent=2, ensure_ascii=False)))


def print_facts(title: str, facts: Sequence[tuple[str, str]]) -> None:
    """Print the result of a command: a title, then aligned `name  value` lines."""
    click.echo(click.style(safe(title), bold=True))
    width = max((len(name) for name, _ in facts), default=0)
    for name, value in facts:
        click.echo(f"  {name.ljust(width)}  {safe(value)}")


@contextmanager
def reporting() -> Iterator[Report]:
    """Yield a report that draws events: progress bars on a terminal, plain lines elsewhere."""
    if sys.stderr.isatty():
        with _bars() as report:
            yield report
    else:
        yield _PlainLines()


def print_notes(event: Event) -> None:
    """Print notes and warnings as lines, without progress: bars would disturb a line editor."""
    if isinstance(event, Note):
        click.secho(safe(event.text), dim=True, err=True)
    elif isinstance(event, Warning):
        click.secho(f"Warning: {safe(event.text)}", dim=True, err=True)


class _PlainLines:
    """Print notes as lines, and the progress of a job every few seconds and at its end."""

    def __init__(self) -> None:
        self._printed_at: dict[str, float] = {}

    def __call__(self, event: Event) -> None:
        if not isinstance(event, Progress):
            print_notes(event)
            return
        now = time.monotonic()
        finished = event.total is not None and event.done >= event.total
        if not finished and now - self._printed_at.setdefault(event.job, now) < PLAIN_EVERY_SECONDS:
            return
        self._printed_at[event.job] = now
        parts = [f"{event.job}: {_count(event)}", event.note]
        click.echo("  ".join(safe(part) for part in parts if part), err=True)


@contextmanager
def _bars() -> Iterator[Report]:
    from rich.console import Console
    from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    console = Console(stderr=True, highlight=False)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[count]}", markup=False),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with Bars(*columns, console=console) as bars:
        tasks: dict[str, TaskID] = {}

        def report(event: Event) -> None:
            if isinstance(event, Note):
                console.print(safe(event.text), markup=False)
            elif isinstance(event, Warning):
                console.print(f"Warning: {safe(event.text)}", markup=False, style="yellow")
            else:
                count, note = _count(event), safe(event.note)
                if event.job not in tasks:
                    tasks[event.job] = bars.add_task(safe(event.job), total=event.total, count=count, note=note)
                bars.update(tasks[event.job], completed=event.done, total=event.total, count=count, note=note)

        yield report


def _count(event: Progress) -> str:
    total = f"/{event.total:g}" if event.total is not None else ""
    return f"{event.done:g}{total} {event.unit}".rstrip()


def safe(text: str) -> str:
    """Remove control sequences and cut long text."""
    return printable(text, limit=MAX_CHARACTERS)
