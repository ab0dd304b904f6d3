"""Atomic writes: a file or folder is complete on the disk, or it is not there."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec

from mlx_distill.config import path_to_text, to_plain
from mlx_distill.errors import InputError, MachineError
from mlx_distill.storage.lock import exclusive

_UMASK = os.umask(0o077)
os.umask(_UMASK)  # the mask can only be read by setting it: once, before there are threads

IGNORED = frozenset({".DS_Store"})
"""Files that the Finder leaves in a folder. A folder with nothing else is empty."""


def sync(descriptor: int) -> None:
    """Force written data to the disk. On macOS only F_FULLFSYNC does that; fsync stops at the drive's cache."""
    if sys.platform == "darwin":
        try:
            fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
        except OSError:  # some network and FUSE volumes support only fsync
            os.fsync(descriptor)
    else:
        os.fsync(descriptor)


def sync_folder(folder: Path) -> None:
    """Force a folder's entries (a rename, a new file) to the disk, if its file system supports that."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        sync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # SMB and exFAT refuse to sync folders
            raise
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Create a folder and its parents. Raises InputError or MachineError if that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise InputError(
            f"{folder}: a file is in the way of this folder.", "Move the file, or choose another path."
        ) from error
    except OSError as error:
        raise _cannot_write(folder, error) from error


def is_occupied(path: Path) -> bool:
    """Return whether there is a file at `path`, or a folder that is not empty."""
    if path.is_dir():
        return any(item.name not in IGNORED for item in path.iterdir())
    return path.exists()


def is_inside(path: Path, folder: Path) -> bool:
    """Return whether `path` is `folder` or inside it. Compares the folders on the disk, which may ignore case."""
    path, folder = path.resolve(), folder.resolve()
    for parent in (path, *path.parents):
        with suppress(OSError):  # one of them does not exist
            if parent.samefile(folder):
                return True
    return folder in (path, *path.parents)


def missing_parents(path: Path) -> list[Path]:
    """Return the parents of `path` that do not exist, innermost first."""
    return [parent for parent in path.parents if not parent.exists()]


def remove_empty(folders: Sequence[Path]) -> None:
    """Remove folders, innermost first, until one is not empty."""
    with suppress(OSError):
        for folder in folders:
            folder.rmdir()


def json_text(data: Any) -> str:
    """Return records or plain data as indented JSON. Non-ASCII text is kept."""
    return json.dumps(to_plain(data), indent=2, ensure_ascii=False) + "\n"


def jsonl_text(rows: Iterable[Any]) -> str:
    """Return records or plain data as JSON lines. Non-ASCII text is kept."""
    return "".join(jsonl_lines(rows))


def jsonl_lines(rows: Iterable[Any]) -> Iterator[str]:
    """Yield the lines of `jsonl_text`, with one row in memory at a time."""
    return (json.dumps(msgspec.to_builtins(row, enc_hook=path_to_text), ensure_ascii=False) + "\n" for row in rows)


def write_text(path: Path, text: str) -> None:
    """Replace a text file atomically."""
    write_texts({path: text})


def write_json(path: Path, data: Any) -> None:
    """Replace a JSON file atomically."""
    write_text(path, json_text(data))


def write_jsonl(path: Path, rows: Iterable[Any]) -> None:
    """Replace a JSON lines file atomically."""
    write_text(path, jsonl_text(rows))


def write_json_lists(path: Path, lists: Mapping[str, Iterable[Any]]) -> None:
    """Replace a JSON file that holds an object of long lists: one item a line, and one item in memory at a time."""

    def pieces() -> Iterator[str]:
        for number, (name, items) in enumerate(lists.items()):
            yield f"{',' if number else '{'}\n  {json.dumps(name)}: ["
            for position, item in enumerate(items):
                yield f"{',' if position else ''}\n    {json.dumps(msgspec.to_builtins(item), ensure_ascii=False)}"
            yield "\n  ]"
        yield "\n}\n"

    write_texts({path: pieces()})


def write_texts(texts: Mapping[Path, str | Iterable[str]]) -> None:
    """Replace several text files. All are on the disk before the first one is renamed to its place, in order.

    A text can come in pieces, so that a large file does not have to fit in memory.
    """
    temporary: dict[Path, str] = {}
    path = next(iter(texts))  # the file in work, for the error
    try:
        for path, text in texts.items():
            make_folder(path.parent)
            descriptor, temporary[path] = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
            with os.fdopen(descriptor, "w", encoding="utf-8", newline="\n") as file:
                file.writelines([text] if isinstance(text, str) else text)
                file.flush()
                sync(file.fileno())
            os.chmod(temporary[path], 0o666 & ~_UMASK)
        for path, name in temporary.items():
            os.replace(name, path)
        for folder in {path.parent for path in texts}:
            sync_folder(folder)
    except OSError as error:
        raise _cannot_write(path, error) from error
    finally:
        for name in temporary.values():
            Path(name).unlink(missing_ok=True)


@contextmanager
def only_writer(path: Path) -> Iterator[None]:
    """Be the only process that writes `path`, a file or folder. Raises what `exclusive` raises.

    Creates the parents of `path`, and removes those that it created if the block fails.
    """
    made = missing_parents(path.resolve())
    make_folder(path.resolve().parent)
    try:
        with exclusive(path):
            yield
    except BaseException:
        remove_empty(made)
        raise


@contextmanager
def new_file(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield a temporary file in the folder of `path`; rename it to `path` if the block succeeds.

    Raises InputError at once if `path` is a folder, or exists without `replace`. After an error nothing is left.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder, not a file.", "Choose another path.")
    if path.exists() and not replace:
        raise InputError(f"{path} already exists.", "Choose another path, or pass --force to replace the file.")
    with only_writer(path):
        try:
            descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
            os.close(descriptor)
        except OSError as error:
            raise _cannot_write(path, error) from error
        scratch = Path(name)
        try:
            yield scratch
            _sync_file(scratch)
            scratch.chmod(0o666 & ~_UMASK)
            os.replace(scratch, path)
            sync_folder(path.parent)
        except OSError as error:
            raise _cannot_write(path, error) from error
        finally:
            scratch.unlink(missing_ok=True)


@contextmanager
def new_folder(folder: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield a temporary folder in the parent of `folder`; rename it to `folder` if the block succeeds.

    Raises InputError at once if `folder` exists and is not empty, unless `replace`, or if another process writes it.
    After an error nothing is left.
    """
    if not replace and is_occupied(folder):
        raise InputError(f"{folder} already exists.", "Choose another path, or pass --force to replace it.")
    with only_writer(folder):
        try:
            scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        except OSError as error:
            raise _cannot_write(folder, error) from error
        try:
            yield scratch
            for item in sorted(scratch.rglob("*")):
                if item.is_file():
                    _sync_file(item)
            scratch.chmod(0o777 & ~_UMASK)
            _swap(scratch, folder)
        except OSError as error:
            raise _cannot_write(folder, error) from error
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def _swap(scratch: Path, folder: Path) -> None:
    """Rename `scratch` to `folder`. The old folder is moved away first and removed last."""
    old = None
    if folder.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.old.", dir=folder.parent))
        os.replace(folder, old / folder.name)
    os.replace(scratch, folder)
    sync_folder(folder.parent)
    if old:
        shutil.rmtree(old, ignore_errors=True)


def _sync_file(path: Path) -> None:
    with path.open("rb") as file:
        sync(file.fileno())


def _cannot_write(path: Path, error: OSError) -> MachineError:
    return MachineError(
        f"{path}: cannot write ({error.strerror or error}).",
        "Free disk space or choose a folder that you can write to, then run the same command again.",
    )
