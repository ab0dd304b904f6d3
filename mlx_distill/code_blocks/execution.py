"""Run Python from answers in a separate process with limits on time, memory, files and processes. Not a sandbox.

The code has the user's rights: it can read and write the user's files, use the network, and read what the system shows
of other processes. Its environment, and its parent's, hold no keys. On Linux all of its processes end with the run,
even if it kills the runner. macOS lacks limits on memory and on the number of processes per run, and a process that
leaves its group outlives the run; there, `sandbox-exec` denies the network and writes outside the work folder. Outcomes
carry a random token, which protects against stray writes but not against code that reads the runner's variables: a
block can only claim that the blocks of its own answer ran.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from mlx_distill.code_blocks.runner import END, adopt_orphans, children, end_children
from mlx_distill.sanitize import printable

MAX_REASON = 200
RUNNER = Path(__file__).with_name("runner.py")
GRACE_SECONDS = 5.0
"""Time for the runner to start, and to end its processes after the time limit."""
SANDBOX = Path("/usr/bin/sandbox-exec")
SANDBOX_PROFILE = (
    "(version 1)(allow default)(deny network*)(deny file-write*)"
    '(allow file-write* (subpath (param "WORK")) (literal "/dev/null"))'
)
"""The rules on macOS. Files that are open already, such as the one for the outcomes, stay writable."""


class Limits(msgspec.Struct, frozen=True):
    """Limits for all blocks of one answer together."""

    seconds: float = 10.0
    memory_bytes: int = 1 << 30
    """Address space. macOS accepts this limit but does not enforce it."""
    max_file_bytes: int = 1 << 20
    max_open_files: int = 64
    max_new_processes: int = 64

    def describe(self) -> str:
        unheld = " (not enforced by macOS)" if sys.platform == "darwin" else ""
        memory, file = self.memory_bytes >> 20, self.max_file_bytes >> 20
        return f"{self.seconds:g} s, {memory} MiB of memory{unheld} and {file} MiB per file"


def run_blocks(
    blocks: Sequence[str],
    limits: Limits = Limits(),  # noqa: B008 - frozen
    grace_seconds: float = GRACE_SECONDS,
) -> list[str]:
    """Run blocks one after another in one namespace; return why each one failed, or an empty string.

    A block that fails does not stop the next. A block that ends the process does.
    """
    token = secrets.token_hex(16)
    job = {"blocks": list(blocks), "limits": msgspec.to_builtins(limits), "token": token}
    with (
        _work_folder() as work,
        tempfile.TemporaryFile() as given,  # files without a name: the code cannot replace one with a pipe
        tempfile.TemporaryFile() as outcomes,
        _ending_strays(),
    ):
        given.write(json.dumps(job).encode())
        given.seek(0)
        process = subprocess.Popen(
            runner_command(work, outcomes.fileno(), has_sandbox=sys.platform == "darwin" and SANDBOX.exists()),
            cwd=work,
            env={"PATH": os.defpath, "HOME": str(work), "TMPDIR": str(work), "OPENBLAS_NUM_THREADS": "1"},
            stdin=given,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[outcomes.fileno()],
            start_new_session=True,
        )
        try:
            process.wait(timeout=limits.seconds + grace_seconds)
        except subprocess.TimeoutExpired:  # the code stopped the runner
            pass
        finally:
            _kill_session(process)
        found = _read_outcomes(os.pread(outcomes.fileno(), limits.max_file_bytes, 0), token)
    reason = found.pop(END, "ended the process that runs the blocks")
    ended = [reason, *["not run: the process had ended"] * len(blocks)]
    return [found[number] if number in found else ended.pop(0) for number in range(len(blocks))]


def runner_command(work: Path, descriptor: int, *, has_sandbox: bool) -> list[str]:
    """Return the command of the runner, in a sandbox if the system has one."""
    command = [sys.executable, "-I", "-B", str(RUNNER), str(descriptor)]
    if not has_sandbox:
        return command
    return [str(SANDBOX), "-D", f"WORK={work.resolve()}", "-p", SANDBOX_PROFILE, *command]


@contextlib.contextmanager
def _work_folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="mlx-distill-run-"))
    try:
        yield folder
    finally:  # not shutil.rmtree: the code may nest folders beyond Python's recursion limit
        subprocess.run(["rm", "-rf", folder], stderr=subprocess.DEVNULL, check=False)


@contextlib.contextmanager
def _ending_strays() -> Iterator[None]:
    """Kill what the runner leaves behind if the code killed it (Linux only).

    Orphans of the runner are in another session than this process and its own children.
    """
    before, session = children(), os.getsid(0)

    def strays() -> set[int]:
        return {process for process in children() - before if _session(process) not in (None, session)}

    adopt_orphans(True)
    try:
        yield
    finally:
        end_children(strays, seconds=GRACE_SECONDS)
        adopt_orphans(False)


def _session(process: int) -> int | None:
    with contextlib.suppress(OSError):  # it ended
        return os.getsid(process)
    return None


def _kill_session(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # nothing is left, or only zombies (macOS)
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _read_outcomes(written: bytes, token: str) -> dict[int, str]:
    """Return the runner's outcomes by block: lines that begin with the token. The code may have written other lines."""
    lines = written.decode("utf-8", "replace").split("\n")
    try:
        found = dict(json.loads(line.removeprefix(token)) for line in lines if line.startswith(token))
    except (ValueError, TypeError, RecursionError):  # the code found the token
        return {}
    return {number: " ".join(printable(str(reason)).split())[:MAX_REASON] for number, reason in found.items()}
