"""What the commands print: results to standard output; progress, notes and errors to standard error."""

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

PLAIN_EVERY_SECONDS = 10.0
"""How often a job that is still going says so where there is no terminal."""


def print_error(error: DistillError) -> None:
    """The message, the problems and the next step, on standard error."""
    label = "Stopped" if error.exit_code in (130, 143) else "Error"
    click.echo(click.style(f"{label}: ", fg="red", bold=True) + error.message, err=True)
    for problem in error.problems:
        click.echo(f"  {problem}", err=True)
    if error.next_step:
        click.echo(error.next_step, err=True)


def print_json(result: Any) -> None:
    """Print a result as one JSON object on standard output."""
    click.echo(json.dumps(to_plain(result), indent=2, ensure_ascii=False))


def print_facts(title: str, facts: Sequence[tuple[str, str]]) -> None:
    """The closing lines of a command: a title, then aligned `name  value` lines."""
    click.echo(click.style(title, bold=True))
    width = max((len(name) for name, _ in facts), default=0)
    for name, value in facts:
        click.echo(f"  {name.ljust(width)}  {value}")


def duration(seconds: float) -> str:
    """`4.2 s`, `2 min 55 s`, `1 h 04 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def size(count: float) -> str:
    """Bytes for people: `988.1 MB`, `1.9 GB` (powers of ten)."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


@contextmanager
def reporting() -> Iterator[Report]:
    """A report that draws events: bars on a terminal, plain lines elsewhere."""
    if sys.stderr.isatty():
        with _bars() as report:
            yield report
    else:
        yield _PlainLines()


class _PlainLines:
    """Notes as lines; a job says how far it is every few seconds and at its end."""

    def __init__(self) -> None:
        self._told: dict[str, float] = {}

    def __call__(self, event: Event) -> None:
        if isinstance(event, Note):
            click.echo(event.text, err=True)
        elif isinstance(event, Warning):
            click.echo(f"Note: {event.text}", err=True)
        else:
            self._progress(event)

    def _progress(self, event: Progress) -> None:
        now = time.monotonic()
        finished = event.total is not None and event.done >= event.total
        if not finished and now - self._told.setdefault(event.job, now) < PLAIN_EVERY_SECONDS:
            return
        self._told[event.job] = now
        total = f"/{event.total:g}" if event.total is not None else ""
        parts = [f"{event.job}: {event.done:g}{total} {event.unit}".rstrip(), event.note]
        click.echo("  ".join(part for part in parts if part), err=True)


@contextmanager
def _bars() -> Iterator[Report]:
    from rich.console import Console
    from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    console = Console(stderr=True, highlight=False)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[count]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Bars(*columns, console=console) as bars:
        tasks: dict[str, TaskID] = {}

        def report(event: Event) -> None:
            if isinstance(event, Note):
                console.print(event.text, markup=False)
            elif isinstance(event, Warning):
                console.print(f"Note: {event.text}", markup=False, style="yellow")
            else:
                total = f"/{event.total:g}" if event.total is not None else ""
                count = f"{event.done:g}{total} {event.unit}".rstrip()
                if event.job not in tasks:
                    tasks[event.job] = bars.add_task(event.job, total=event.total, count=count, note=event.note)
                bars.update(tasks[event.job], completed=event.done, total=event.total, count=count, note=event.note)

        yield report
