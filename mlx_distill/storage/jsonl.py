"""Read JSON lines and text. All problems of a file are reported together, with line numbers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from mlx_distill.errors import InputError, MissingError, raise_problems
from mlx_distill.formatting import first_line

T = TypeVar("T")

MAX_TEXT_BYTES = 64 << 20
"""Maximum size of a file that is read at once. A file with a hole can have any size."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line that is not blank, without the white space around it."""

    number: int
    """Starts at 1."""
    offset: int
    """Byte offset of the line's start."""
    text: str


def read_text(path: Path, missing_step: str = "") -> str:
    """Return a file's text without its byte order mark.

    Raises MissingError with `missing_step` as the next step if there is no file, and InputError if it is not UTF-8 or
    too large.
    """
    with _read_errors(path, missing_step):
        size = path.stat().st_size
        if size > MAX_TEXT_BYTES:
            raise InputError(f"{path}: {size:,} bytes; at most {MAX_TEXT_BYTES:,} are read.", "Name another file.")
        return _decode(path, 0, path.read_bytes())


def read_json(path: Path, next_step: str) -> Any:
    """Return a file's decoded JSON. Raises what `read_text` raises, and InputError if it is not JSON."""
    try:
        return json.loads(read_text(path, next_step))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON: {first_line(error)}", next_step) from error


def refuse_pipes(folder: Path, next_step: str) -> None:
    """Raise InputError if a folder of files holds a pipe or a device. Libraries would read it without end."""
    for file in sorted(folder.glob("*")):  # none if there is no folder
        if file.exists() and not file.is_file() and not file.is_dir():
            raise InputError(f"{file} is a pipe or a device, but a file is expected.", next_step)


def each_line(path: Path, missing_step: str = "", *, skip_partial_line: bool = False) -> Iterator[Line]:
    """Yield the lines of a file that are not blank. Only a newline ends a line, as in JSON lines.

    `skip_partial_line` skips a last line without a newline. Raises the same errors as `read_text`.
    """
    offset = 0
    with _read_errors(path, missing_step), path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            text = _decode(path, offset, line).strip()
            is_complete = line.endswith(b"\n") or not skip_partial_line
            if text and is_complete:
                yield Line(number, offset, text)
            offset += len(line)


def read_jsonl(path: Path, parse: Callable[[object], T], missing_step: str = "") -> list[T]:
    """Parse every line of a JSON lines file. Blank lines are skipped.

    `parse` turns one decoded value into a record and raises ValueError with one sentence. InputError lists all
    problems, each as `file:line: problem`.
    """
    return [record for _, record in _parse_lines(path, each_line(path, missing_step), parse)]


def each_jsonl(path: Path, parse: Callable[[object], T], *, skip_partial_line: bool = False) -> Iterator[tuple[int, T]]:
    """Yield (byte offset, record) for each line of a long journal. Problems are raised after the last line.

    `skip_partial_line` skips a last line without a newline, which another process may be writing now.
    """
    return _parse_lines(path, each_line(path, skip_partial_line=skip_partial_line), parse)


@contextmanager
def _read_errors(path: Path, missing_step: str = "") -> Iterator[None]:
    """Turn errors of reading a file into MissingError and InputError. Refuse pipes and devices, which may not end."""
    if path.exists() and not path.is_file() and not path.is_dir():
        raise InputError(f"{path} is a pipe or a device, but a file is expected.", "Save its text in a file first.")
    try:
        yield
    except FileNotFoundError as error:
        raise MissingError(f"{path}: no such file.", missing_step or "Check the path.") from error
    except IsADirectoryError as error:
        raise InputError(f"{path} is a folder, but a file is expected.", "Name the file inside it.") from error
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror or error}).", "Check the path and its permissions."
        ) from error


def _decode(path: Path, offset: int, text: bytes) -> str:
    """Decode bytes that start at `offset` of the file, without a byte order mark."""
    try:
        return text.decode("utf-8-sig" if offset == 0 else "utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: byte {offset + error.start} is not UTF-8 text.", "Save the file as UTF-8 and try again."
        ) from error


def _parse_lines(path: Path, lines: Iterable[Line], parse: Callable[[object], T]) -> Iterator[tuple[int, T]]:
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
            yield line.offset, record
    raise_problems(path, problems, "Fix or remove these lines and run the command again.")
