"""The process that execution.py starts. It sets its own limits, then runs the blocks. It imports nothing of ours.

python -I runner.py DESCRIPTOR    reads the job (JSON) from stdin; writes TOKEN [NUMBER, REASON] after each block
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import sys
from pathlib import Path
from typing import Any


def main(descriptor: int) -> None:
    """Run every block in one namespace."""
    job = json.loads(sys.stdin.read())
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # the code cannot read the job again
    set_limits(job["limits"])
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for number, code in enumerate(job["blocks"]):
        reason = run(code, f"<block {number + 1}>", namespace)
        os.write(descriptor, f"\n{job['token']}{json.dumps([number, reason])}\n".encode())
    os._exit(0)  # do not wait for threads that a block left running


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
