"""Training in a process of its own, seen from `run`: start it, pass its events on, stop it gently, explain its death.

macOS ends a process that holds the GPU or the memory too long with an abort that no `except` can catch. In a child,
`run` survives it and can say what to do. The child is `python -m mlx_distill.train.worker CONFIG.json`; it prints one
JSON object a line: events while it works, then `{"result": ...}` or `{"error": ...}`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import IO, Any

from mlx_distill.config import to_plain
from mlx_distill.errors import DistillError, Interrupted, MachineError
from mlx_distill.events import Event, Note, Progress, Report, Warning

CHILD = (sys.executable, "-m", "mlx_distill.train.worker")
PATIENCE = 3
"""The signal that ends a child at once: the first asks it to save and stop, and it may be slow to."""

_GO_ON = "Run the same command again; it goes on from the last checkpoint."
_SMALLER = "If it happens again, train in smaller pieces: --set train.micro_tokens=512"
_DEATHS = {
    "kIOGPUCommandBufferCallbackErrorImpactingInteractivity": (
        "macOS stopped the training because the GPU was busy for too long while the display needed it",
        f"{_GO_ON} Let the display sleep, or close what draws much. {_SMALLER}",
    ),
    "kIOGPUCommandBufferCallbackErrorTimeout": (
        "macOS stopped the training because one piece of GPU work took too long",
        f"{_GO_ON} {_SMALLER}",
    ),
    "kIOGPUCommandBufferCallbackErrorOutOfMemory": (
        "the GPU ran out of memory during training",
        f"{_GO_ON} Close other programs first. {_SMALLER}",
    ),
    "greater than the maximum allowed buffer size": ("one training step needs too large a buffer", _SMALLER),
    "std::bad_alloc": ("the memory ran out during training", f"{_GO_ON} Close other programs first. {_SMALLER}"),
}
"""What the last words of an aborted process mean, and what helps."""


def train_in_child(config: Any, report: Report, command: Sequence[str] = CHILD) -> dict[str, Any]:
    """Train by `config` (a TrainConfig) and return the result as JSON data.

    Ctrl-C and SIGTERM are passed to the child, which saves and ends: then Interrupted is raised. Raises the child's own
    DistillError, and MachineError where the system ended it.
    """
    with tempfile.TemporaryDirectory(prefix="mlx-distill-") as scratch, tempfile.TemporaryFile() as last_words:
        settings = Path(scratch, "train.json")
        settings.write_text(json.dumps(to_plain(config)), encoding="utf-8")
        # A group of its own: the terminal's Ctrl-C reaches it through us, once.
        with subprocess.Popen(
            [*command, str(settings)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=last_words,
            process_group=0,
            text=True,
            encoding="utf-8",
        ) as child:
            assert child.stdout is not None
            with _signals_passed_to(child) as received:
                ending = _follow(child.stdout, report)
                child.wait()
        last_words.seek(0)
        said = last_words.read().decode("utf-8", "replace")
    if "result" in ending:
        result: dict[str, Any] = ending["result"]
        return result
    if "error" in ending:
        raise _error(ending["error"])
    if received:
        raise Interrupted(
            "train: stopped before it could save.",
            _GO_ON,
            128 + received[-1],
        )
    raise _death(child.returncode, said)


def _follow(lines: IO[str], report: Report) -> Mapping[str, Any]:
    """Report the child's events until it closes its output; returns its last object that was none."""
    ending: Mapping[str, Any] = {}
    for line in lines:
        try:
            data = json.loads(line)
        except ValueError:  # a library that prints to standard output: worth seeing, not worth failing for
            if line.strip():
                report(Note(line.strip()))
            continue
        event = _event(data)
        if event:
            report(event)
        elif isinstance(data, Mapping):
            ending = data
    return ending


def _event(data: Any) -> Event | None:
    if not isinstance(data, Mapping) or "event" not in data:
        return None
    fields = {name: value for name, value in data.items() if name != "event"}
    kinds: dict[str, type[Event]] = {"note": Note, "caution": Warning, "progress": Progress}
    return kinds[data["event"]](**fields)


@contextmanager
def _signals_passed_to(child: subprocess.Popen[str]) -> Iterator[list[int]]:
    """Within the block SIGINT and SIGTERM go to the child; yields the list of those that came."""
    received: list[int] = []

    def pass_on(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        if child.poll() is None:
            child.send_signal(number if len(received) < PATIENCE else signal.SIGKILL)

    try:
        before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread, which alone gets signals
        before = {}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if child.poll() is None:  # an error on our side: nobody listens to the child any more
            child.terminate()


def _error(data: Mapping[str, Any]) -> DistillError:
    """The child's error as it was raised there, as far as its exit code tells."""
    message, code = data["message"], data.get("exit_code", 1)
    if code in (130, 143):
        return Interrupted(message, _GO_ON, code)
    return DistillError(message, data.get("next_step", ""), data.get("problems", ()))


def _death(code: int, said: str) -> Exception:
    """Why a child ended without a result; what is not known is a bug and shows the child's last words."""
    for sign, (what, advice) in _DEATHS.items():
        if sign in said:
            return MachineError(f"train: {what}.", advice)
    if code == -signal.SIGKILL:
        return MachineError(
            "train: the system killed the training, most likely for lack of memory.",
            f"{_GO_ON} Close other programs first. {_SMALLER}",
        )
    how = f"by signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"with exit code {code}"
    tail = os.linesep.join(said.strip().splitlines()[-40:])
    return RuntimeError(f"The training process ended {how} and gave no result. Its error output:\n{tail}")
