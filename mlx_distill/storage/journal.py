"""Append-only JSON lines files with one writer. By default, a line is on the disk before `append` returns."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any

from mlx_distill.errors import MachineError
from mlx_distill.storage.atomic import make_folder, sync, sync_folder
from mlx_distill.storage.lock import take_lock


class Journal:
    """The only writer of a journal, as a context manager.

    Opening takes a lock (InputError if another process holds it) and removes an incomplete last line, which a crash
    during a write leaves: `removed` then holds its bytes.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.removed = b""
        self._descriptor = -1

    def __enter__(self) -> Journal:
        make_folder(self.path.parent)
        is_new = not self.path.exists()
        try:
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        except OSError as error:
            raise MachineError(
                f"{self.path}: cannot be opened for writing ({error.strerror}).", "Check its permissions."
            ) from error
        try:
            take_lock(self._descriptor, self.path)
            if os.fstat(self._descriptor).st_nlink == 0:  # the previous holder of the lock removed the file
                self.close()
                return self.__enter__()
            if is_new:
                sync_folder(self.path.parent)
            self._repair()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def append(self, data: Any, *, durable: bool = True) -> int:
        """Write one line and return the byte offset at which it starts. A failed write changes nothing.

        A line that is not `durable` survives the end of this process, but not a power cut.
        """
        line = (json.dumps(data, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")
        start = os.fstat(self._descriptor).st_size
        try:
            written = 0
            while written < len(line):
                written += os.write(self._descriptor, line[written:])
            if durable:
                sync(self._descriptor)
        except OSError as error:
            os.ftruncate(self._descriptor, start)
            raise self._cannot_write(error) from error
        return start

    def flush(self) -> None:
        """Force lines that were appended without `durable` to the disk."""
        try:
            sync(self._descriptor)
        except OSError as error:
            raise self._cannot_write(error) from error

    def close(self) -> None:
        """Release the lock and the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _cannot_write(self, error: OSError) -> MachineError:
        return MachineError(
            f"{self.path}: cannot write ({error.strerror}).",
            "Everything before this is saved. Free disk space and run the same command again.",
        )

    def _repair(self) -> None:
        """Remove an incomplete last line. Add the newline to a complete one."""
        size = os.fstat(self._descriptor).st_size
        end, tail = size, b""
        while end > 0 and b"\n" not in tail:
            step = min(end, 1 << 16)
            end -= step
            tail = os.pread(self._descriptor, step, end) + tail
        self.removed = tail[tail.rfind(b"\n") + 1 :]
        if not self.removed:
            return
        try:
            json.loads(self.removed)
        except ValueError:
            os.ftruncate(self._descriptor, size - len(self.removed))
        else:  # a complete record that an editor saved without its newline
            os.write(self._descriptor, b"\n")
            self.removed = b""
        sync(self._descriptor)
