"""Python out of answers, run: in a process of its own, with limits on time, memory and files. This is no sandbox.

What is run can read and write what its user can and reach the network; it gets an empty folder to work in, no key from
the environment, and an end. Off unless it is asked for.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mlx_distill.sanitize import printable

LONGEST_REASON = 200


@dataclass(frozen=True)
class Limits:
    """For all blocks of one answer together."""

    seconds: float = 10.0
    memory_bytes: int = 1 << 30
    """Of address space. macOS takes this limit and does not hold it."""
    file_bytes: int = 1 << 20
    """Of any one file."""
    n_open_files: int = 64

    def in_words(self) -> str:
        memory = f"{self.memory_bytes >> 20} MiB of memory"
        unheld = " (which macOS does not hold)" if sys.platform == "darwin" else ""
        return f"{self.seconds:g} s, {memory}{unheld} and {self.file_bytes >> 20} MiB a file"


LIMITS = Limits()


def run_blocks(blocks: Sequence[str], limits: Limits = LIMITS) -> list[str]:
    """Run blocks one after another in one namespace, as an answer builds on what it showed before.

    Returns of each block why it did not run to its end, "" where it did. One that fails does not keep the next from
    being run; one that takes the process down does.
    """
    with tempfile.TemporaryDirectory(prefix="mlx-distill-run-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        work, outcomes = folder / "work", folder / "outcomes.jsonl"
        work.mkdir()
        (folder / "blocks.json").write_text(json.dumps({"blocks": list(blocks), "limits": vars(limits)}))
        process = subprocess.Popen(
            [sys.executable, "-I", "-B", str(Path(__file__).with_name("runner.py")), str(folder)],
            cwd=work,
            env={"PATH": os.defpath, "HOME": str(work), "TMPDIR": str(work), "OPENBLAS_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            code = process.wait(timeout=limits.seconds)
            ended = f"ended the process by {_by_signal(-code)}" if code < 0 else f"ended the process with code {code}"
        except subprocess.TimeoutExpired:
            ended = f"still running after {limits.seconds:g} s"
        finally:
            _end(process)
        said = _outcomes(outcomes)[: len(blocks)]
    if len(said) < len(blocks):
        said += [ended, *["not run: the process had ended"] * len(blocks)]
    return said[: len(blocks)]


def _by_signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _end(process: subprocess.Popen[bytes]) -> None:
    """The process and all that it started and that stayed in its session."""
    with contextlib.suppress(ProcessLookupError, PermissionError):  # nothing is left, or zombies alone (on macOS)
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _outcomes(file: Path) -> list[str]:
    """What the runner wrote down, as far as it came; the code that was run may have written anything there."""
    try:
        with file.open("rb") as opened:
            lines = opened.read(LIMITS.file_bytes).decode("utf-8", "replace").split("\n")[:-1]
        said = [json.loads(line) for line in lines]
    except (OSError, ValueError, RecursionError):
        return []
    return [" ".join(printable(each).split())[:LONGEST_REASON] for each in said if isinstance(each, str)]
