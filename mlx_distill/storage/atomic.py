"""Writes that are either whole or not there: sync to the disk, write aside and rename, for files and folders."""

from __future__ import annotations

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

from mlx_distill.errors import InputError, MachineError


def sync(descriptor: int) -> None:
    """Force what was written to the disk. On macOS only F_FULLFSYNC does that; fsync stops at the drive's cache."""
    if sys.platform == "darwin":
        try:
            fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
        except OSError:  # some network and FUSE volumes know only fsync
            os.fsync(descriptor)
    else:
        os.fsync(descriptor)


def sync_folder(folder: Path) -> None:
    """Force the folder's entries (a rename, a new file) to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        sync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Make a folder and its parents, or say why not."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise InputError(
            f"{folder}: a file is in the way of this folder.", "Move it, or choose another path."
        ) from error
    except OSError as error:
        raise _cannot_write(folder, error) from error


def missing_parents(path: Path) -> list[Path]:
    """The folders that have to be made for `path`, the innermost first."""
    return [parent for parent in path.parents if not parent.exists()]


def remove_empty(folders: Sequence[Path]) -> None:
    """Remove folders, the innermost first, as far as nothing lies in them."""
    with suppress(OSError):
        for folder in folders:
            folder.rmdir()


def write_text(path: Path, text: str) -> None:
    """Replace a text file in one step."""
    write_texts({path: text})


def write_texts(texts: Mapping[Path, str]) -> None:
    """Replace several text files together: all are on the disk before the first takes its place, in the order given."""
    written: dict[Path, str] = {}
    path = next(iter(texts))
    try:
        for path, text in texts.items():
            make_folder(path.parent)
            descriptor, written[path] = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
            with os.fdopen(descriptor, "w", encoding="utf-8", newline="\n") as file:
                file.write(text)
                file.flush()
                sync(file.fileno())
            os.chmod(written[path], 0o666 & ~_umask())
        for path, name in written.items():
            os.replace(name, path)
        for folder in {path.parent for path in texts}:
            sync_folder(folder)
    except OSError as error:
        raise _cannot_write(path, error) from error
    finally:
        for name in written.values():
            Path(name).unlink(missing_ok=True)


def write_json(path: Path, data: Any) -> None:
    """Replace a JSON file in one step; readable by people, non-ASCII kept."""
    write_text(path, json_text(data))


def write_json_lists(path: Path, lists: Mapping[str, Iterable[Any]]) -> None:
    """`write_json` for an object of long lists, with one item in memory at a time."""
    with new_file(path, replace=True) as scratch, scratch.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(_pieces(lists))


def _pieces(lists: Mapping[str, Iterable[Any]]) -> Iterator[str]:
    """What `json_text` makes of it, item by item; a \\n stands between the lines of JSON only, never in its texts."""
    opening = "{"
    for name, items in lists.items():
        yield f"{opening}\n  {json.dumps(name, ensure_ascii=False)}: ["
        end = "]"
        for item in items:
            before = "," if end != "]" else ""
            end = "\n  ]"
            yield f"{before}\n    " + json.dumps(item, indent=2, ensure_ascii=False).replace("\n", "\n    ")
        yield end
        opening = ","
    yield "\n}\n"


def write_jsonl(path: Path, rows: Iterable[Any]) -> None:
    """Replace a JSON lines file in one step."""
    write_text(path, jsonl_text(rows))


def json_text(data: Any) -> str:
    """JSON for people: indented, non-ASCII kept."""
    return json.dumps(data, indent=2, ensure_ascii=False) + "\n"


def jsonl_text(rows: Iterable[Any]) -> str:
    """JSON lines, non-ASCII kept."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


@contextmanager
def new_file(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """A temporary file beside `path`, for large data, that takes its place when the block ends without an error.

    Raises InputError at once where `path` exists, unless `replace`. On an error nothing is left.
    """
    if path.is_dir() or (path.exists() and not replace):
        raise InputError(f"{path} exists already.", "Choose another path, or pass --force to replace the file.")
    with _parents_of(path):
        try:
            descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
            os.close(descriptor)
        except OSError as error:
            raise _cannot_write(path, error) from error
        scratch = Path(name)
        try:
            yield scratch
            with scratch.open("rb") as file:
                sync(file.fileno())
            scratch.chmod(0o666 & ~_umask())
            os.replace(scratch, path)
            sync_folder(path.parent)
        except OSError as error:
            raise _cannot_write(path, error) from error
        finally:
            scratch.unlink(missing_ok=True)


@contextmanager
def new_folder(folder: Path, *, replace: bool = False) -> Iterator[Path]:
    """A temporary folder beside `folder` that takes its place when the block ends without an error.

    Raises InputError at once where `folder` exists and is not empty, unless `replace`. On an error nothing is left.
    """
    if not replace and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} exists already.", "Choose another path, or pass --force to replace it.")
    with _parents_of(folder):
        try:
            scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        except OSError as error:
            raise _cannot_write(folder, error) from error
        try:
            yield scratch
            for item in sorted(scratch.rglob("*")):
                if item.is_file():
                    with item.open("rb") as file:
                        sync(file.fileno())
            scratch.chmod(0o777 & ~_umask())
            _swap(scratch, folder)
        except OSError as error:
            raise _cannot_write(folder, error) from error
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def _parents_of(path: Path) -> Iterator[None]:
    """The folder that `path` lies in. What had to be made of it is gone again where the block fails."""
    made = missing_parents(path)
    make_folder(path.parent)
    try:
        yield
    except BaseException:
        remove_empty(made)
        raise


def _swap(scratch: Path, folder: Path) -> None:
    """Rename `scratch` to `folder`; what was there is moved aside first and removed last."""
    old = None
    if folder.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.old.", dir=folder.parent))
        os.replace(folder, old / "was")
    os.replace(scratch, folder)
    sync_folder(folder.parent)
    if old:
        shutil.rmtree(old, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _cannot_write(path: Path, error: OSError) -> MachineError:
    return MachineError(
        f"{path}: cannot write ({error.strerror or error}).",
        "Free disk space or choose a folder that you may write to, then run the same command again.",
    )


def is_inside(path: Path, folder: Path) -> bool:
    """Return True if `path` is `folder` or lies in it. Compares folders, not spellings: a disk may ignore case."""
    path, folder = path.resolve(), folder.resolve()
    for parent in (path, *path.parents):
        with suppress(OSError):  # one of them does not exist
            if parent.samefile(folder):
                return True
    return folder in (path, *path.parents)
