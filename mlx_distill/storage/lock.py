"""Locks: one writer for an output file or folder at a time."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlx_distill.errors import InputError, MachineError


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold the lock of an output path, a hidden file in its parent folder, which must exist.

    Raises InputError with the id of the process that holds the lock. The lock ends with its process, even by a kill.
    """
    real = path.resolve()  # one lock for all names of a folder
    lock = real.parent / f".{real.name}.lock"
    descriptor = _open(lock)
    while True:
        take_lock(descriptor, path, _holder(lock))
        if os.fstat(descriptor).st_nlink:
            break
        os.close(descriptor)  # the previous holder of the lock removed the file
        descriptor = _open(lock)
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, str(os.getpid()).encode())
        yield
    finally:
        lock.unlink(missing_ok=True)
        os.close(descriptor)


def take_lock(descriptor: int, path: Path, holder: str = "another mlx-distill") -> None:
    """Lock an open file.

    Raises InputError if another process holds the lock, MachineError if the file system has no locks.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise InputError(
            f"{path} is being written by {holder}.", "Wait until it ends, or stop it, and try again."
        ) from error
    except OSError as error:
        raise MachineError(
            f"{path}: this file system cannot lock files ({error.strerror}).", "Move the project to a local disk."
        ) from error


def _open(lock: Path) -> int:
    try:  # a link could lead to a file of the user, which the lock would empty
        return os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    except OSError as error:
        raise MachineError(
            f"{lock}: cannot be written ({error.strerror}).", "Remove it, or choose a folder that you can write to."
        ) from error


def _holder(lock: Path) -> str:
    try:
        process = lock.read_text().strip()
    except OSError:
        process = ""
    return f"another mlx-distill (process {process})" if process.isdigit() else "another mlx-distill"
