"""Reading JSON lines: every fault of a file with its line number, together."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from mlx_distill.errors import InputError, MissingError, raise_problems

Record = TypeVar("Record")


def read_text(path: Path, missing_step: str = "") -> str:
    """The file's text (a byte order mark dropped); MissingError or InputError where it cannot be read as UTF-8."""
    with _faults_of(path, missing_step):
        return _decoded(path, 0, path.read_bytes())


@contextmanager
def _faults_of(path: Path, missing_step: str = "") -> Iterator[None]:
    """What may go wrong with reading a file, in words."""
    try:
        yield
    except FileNotFoundError as error:
        raise MissingError(f"{path}: there is no such file.", missing_step or "Check the path.") from error
    except IsADirectoryError as error:
        raise InputError(f"{path} is a folder, a file was expected.", "Name the file inside it.") from error
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror or error}).", "Check the path and its permissions."
        ) from error


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a file that is not blank, without what is blank around it."""

    number: int
    """From 1."""
    at: int
    """The byte that it begins at."""
    text: str


def each_line(path: Path, missing_step: str = "", *, torn_end: bool = False) -> Iterator[Line]:
    """The lines of a file that are not blank, one in memory at a time. Only \\n ends a line, as in JSON lines.

    `torn_end` passes over a last line without its end. Raises what `read_text` raises.
    """
    at = 0
    with _faults_of(path, missing_step), path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            text = _decoded(path, at, line).strip()
            if text and not (torn_end and not line.endswith(b"\n")):
                yield Line(number, at, text)
            at += len(line)


def _decoded(path: Path, at: int, text: bytes) -> str:
    """What stands in the file from this byte on, without its byte order mark."""
    try:
        return text.decode("utf-8-sig" if at == 0 else "utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: byte {at + error.start} is not UTF-8 text.", "Save the file as UTF-8 and try again."
        ) from error


def read_jsonl(path: Path, parse: Callable[[object], Record], missing_step: str = "") -> list[Record]:
    """Parse every line of a JSON lines file.

    `parse` turns one decoded value into a record and raises ValueError (or TypeError) with a sentence about it. All
    faults are raised together, each as `file:line: what`. Blank lines are passed over.
    """
    return [record for _, record in _parsed(path, each_line(path, missing_step), parse)]


def each_jsonl(
    path: Path, parse: Callable[[object], Record], *, torn_end: bool = False
) -> Iterator[tuple[int, Record]]:
    """`read_jsonl` for a long journal, with one line in memory at a time: faults come after the last.

    Each record comes with the byte that its line begins at, by which `read_at` finds it again. `torn_end` passes over
    a last line without its end, which another process is writing at this moment.
    """
    return _parsed(path, each_line(path, torn_end=torn_end), parse)


def read_at(path: Path, places: Iterable[int], parse: Callable[[object], Record]) -> Iterator[Record]:
    """The records whose lines begin at these bytes of a file; InputError where there is none at one of them."""
    with _faults_of(path), path.open("rb") as file:
        for at in places:
            file.seek(at)
            try:
                record = parse(json.loads(_decoded(path, at, file.readline())))
            except (ValueError, TypeError) as error:
                raise InputError(
                    f"{path}: it was changed while it was read: byte {at} begins no record ({error}).",
                    "Run the same command again.",
                ) from error
            yield record


def _parsed(path: Path, lines: Iterable[Line], parse: Callable[[object], Record]) -> Iterator[tuple[int, Record]]:
    problems: list[str] = []
    for line in lines:
        try:
            record = parse(json.loads(line.text))
        except json.JSONDecodeError as error:
            problems.append(f"{path.name}:{line.number}: not valid JSON ({error.msg} at column {error.colno})")
        except RecursionError:
            problems.append(f"{path.name}:{line.number}: nested too deeply")
        except (ValueError, TypeError) as error:
            problems.append(f"{path.name}:{line.number}: {error}")
        else:
            yield line.at, record
    raise_problems(path, problems, "Mend or remove these lines and run the command again.")
