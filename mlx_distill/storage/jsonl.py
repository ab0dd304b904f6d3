"""Reading JSON lines: every fault of a file with its line number, together."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from mlx_distill.errors import InputError, MissingError, raise_problems

Record = TypeVar("Record")


def read_text(path: Path, missing_step: str = "") -> str:
    """The file's text (a byte order mark dropped); MissingError or InputError where it cannot be read as UTF-8."""
    with _faults_of(path, missing_step, at_once=True):
        return path.read_bytes().decode("utf-8-sig")


def lines_of(text: str) -> Iterator[tuple[int, str]]:
    """(line number from 1, line) of the lines that are not blank. Only \\n ends a line, as in JSON lines."""
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, line.strip()


def read_jsonl(path: Path, parse: Callable[[object], Record], missing_step: str = "") -> list[Record]:
    """Parse every line of a JSON lines file.

    `parse` turns one decoded value into a record and raises ValueError (or TypeError) with a sentence about it. All
    faults are raised together, each as `file:line: what`. Blank lines are passed over.
    """
    return list(_parsed(path, lines_of(read_text(path, missing_step)), parse))


def each_jsonl(path: Path, parse: Callable[[object], Record], *, torn_end: bool = False) -> Iterator[Record]:
    """`read_jsonl` for a long journal of this program, with one line in memory at a time: faults come after the last.

    `torn_end` passes over a last line without its end, which another process is writing at this moment.
    """
    return _parsed(path, _lines_on_disk(path, torn_end), parse)


def _lines_on_disk(path: Path, torn_end: bool) -> Iterator[tuple[int, str]]:
    with _faults_of(path), path.open(encoding="utf-8-sig", newline="\n") as file:
        for number, line in enumerate(file, start=1):
            if line.strip() and not (torn_end and not line.endswith("\n")):
                yield number, line.strip()


@contextmanager
def _faults_of(path: Path, missing_step: str = "", *, at_once: bool = False) -> Iterator[None]:
    """What may go wrong with reading a file, in words; only where it is read `at_once` is it known at which byte."""
    try:
        yield
    except FileNotFoundError as error:
        raise MissingError(f"{path}: there is no such file.", missing_step or "Check the path.") from error
    except IsADirectoryError as error:
        raise InputError(f"{path} is a folder, a file was expected.", "Name the file inside it.") from error
    except UnicodeDecodeError as error:
        what = f"byte {error.start} is not UTF-8 text" if at_once else f"not UTF-8 text ({error.reason})"
        raise InputError(f"{path}: {what}.", "Save the file as UTF-8 and try again.") from error
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror or error}).", "Check the path and its permissions."
        ) from error


def _parsed(path: Path, lines: Iterable[tuple[int, str]], parse: Callable[[object], Record]) -> Iterator[Record]:
    problems: list[str] = []
    for number, line in lines:
        try:
            record = parse(json.loads(line))
        except json.JSONDecodeError as error:
            problems.append(f"{path.name}:{number}: not valid JSON ({error.msg} at column {error.colno})")
        except RecursionError:
            problems.append(f"{path.name}:{number}: nested too deeply")
        except (ValueError, TypeError) as error:
            problems.append(f"{path.name}:{number}: {error}")
        else:
            yield record
    raise_problems(path, problems, "Mend or remove these lines and run the command again.")
