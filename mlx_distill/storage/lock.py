"""Locks: one writer for an output file or folder at a time."""

from __future__ import annotations

import fcntl
import os
import stat
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
        take_lock(descriptor, path, _holder(descriptor))
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
    next_step = "Remove it, or choose a folder that you can write to."
    try:  # a link could lead to a file of the user, which the lock would empty
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    except OSError as error:
        raise MachineError(f"{lock}: cannot be written ({error.strerror}).", next_step) from error
    info = os.fstat(descriptor)
    if not stat.S_ISREG(info.st_mode) or info.st_nlink > 1:
        os.close(descriptor)
        raise MachineError(f"{lock}: not a lock, but a pipe, a device or another name of a file.", next_step)
    return descriptor


def _holder(descriptor: int) -> str:
    process = os.pread(descriptor, 20, 0).decode("ascii", "replace")
    return f"another mlx-distill (process {process})" if process.isdigit() else "another mlx-distill"
