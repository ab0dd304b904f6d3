"""The processes that execution.py starts: a supervisor, and its child, which runs the blocks.

This file imports nothing of ours.

python -I runner.py DESCRIPTOR    reads the job (JSON) from stdin; writes TOKEN [NUMBER, REASON] after each block

The supervisor is the parent that the blocks see, so that parent's environment holds no keys. On Linux it also ends the
processes that left the group of the blocks: they become its children.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

PR_SET_CHILD_SUBREAPER = 36
"""Linux, prctl(2): orphaned descendants become children of this process."""
END = -1
"""The number of the last outcome: why the child ended."""


def main(descriptor: int) -> None:
    """Run the blocks in a child, end what is left of it, and write why it ended."""
    job = json.loads(sys.stdin.read())
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # the code cannot read the job again
    adopt_orphans(True)
    child = os.fork()
    if not child:
        run_all(job, descriptor)
    reason = wait(child, job["limits"]["seconds"])
    end_children()
    write(descriptor, job["token"], END, reason)


def run_all(job: dict[str, Any], descriptor: int) -> NoReturn:
    """Run every block in one namespace."""
    set_limits(job["limits"])
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for number, code in enumerate(job["blocks"]):
        write(descriptor, job["token"], number, run(code, f"<block {number + 1}>", namespace))
    os._exit(0)  # do not wait for threads that a block left running


def write(descriptor: int, token: str, number: int, reason: str) -> None:
    """Write one outcome."""
    os.write(descriptor, f"\n{token}{json.dumps([number, reason])}\n".encode())


def wait(child: int, seconds: float) -> str:
    """Wait for the end of a child, kill it if it takes longer, and return why it ended."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
            return f"ended the process {f'by {signal_name(-code)}' if code < 0 else f'with code {code}'}"
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    return f"still running after {seconds:g} s"


def signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def adopt_orphans(wanted: bool) -> None:
    """Let descendants become children of this process when their parents end (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, int(wanted), 0, 0, 0)


def children() -> set[int]:
    """Return the processes whose parent is this process; empty if the system has no /proc."""
    found: set[int] = set()
    for tasks in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):  # the thread ended meanwhile
            found |= set(map(int, tasks.read_text().split()))
    return found


def end_children(find: Callable[[], set[int]] = children, seconds: float = 60.0) -> None:
    """Kill the processes that `find` returns, until it finds none or the time is over.

    Killed processes leave their own children to this process, so all descendants end (Linux only).
    """
    deadline = time.monotonic() + seconds
    while (found := find()) and time.monotonic() < deadline:
        for process in found:
            with contextlib.suppress(OSError):  # it changed its user, or another thread waited for it
                os.kill(process, signal.SIGKILL)
                os.waitpid(process, os.WNOHANG)
        time.sleep(0.001)


def set_limits(limits: dict[str, Any]) -> None:
    """Set limits that the process cannot raise again. A limit that the system lacks is skipped."""
    wanted = [
        (resource.RLIMIT_CPU, int(limits["seconds"]) + 1),
        (resource.RLIMIT_AS, limits["memory_bytes"]),
        (resource.RLIMIT_FSIZE, limits["max_file_bytes"]),
        (resource.RLIMIT_NOFILE, limits["max_open_files"]),
        (resource.RLIMIT_CORE, 0),
    ]
    running = count_tasks()
    if running:  # the system counts all processes and threads of the user
        wanted.append((resource.RLIMIT_NPROC, running + limits["max_new_processes"]))
    for kind, value in wanted:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(kind, (value, value))


def count_tasks() -> int:
    """Return how many processes and threads this user runs; 0 if the system has no /proc (macOS has its own limit)."""
    count = 0
    for tasks in Path("/proc").glob("[0-9]*/task"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            count += len(list(tasks.iterdir())) if tasks.stat().st_uid == os.getuid() else 0
    return count


def run(code: str, name: str, namespace: dict[str, Any]) -> str:
    """Run one block; return why it failed, or an empty string."""
    try:
        exec(compile(code, name, "exec", dont_inherit=True), namespace)
    except SystemExit as error:
        return "" if error.code in (None, 0) else f"exits with {error.code}"
    except BaseException as error:
        return f"{type(error).__name__}: {error}"[:1000]
    return ""


if __name__ == "__main__":
    main(int(sys.argv[1]))
