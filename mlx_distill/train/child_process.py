"""Train in a child process: start it, pass on its events and our signals, and explain its death.

macOS ends a process that holds the GPU or the memory for too long with an abort that no `except` can catch. `run`
survives the abort of a child and can say what to do. The child runs this module: `python -m
mlx_distill.train.child_process CONFIG.json` prints one message a line.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import msgspec

from mlx_distill import device
from mlx_distill.config import parse, to_plain
from mlx_distill.errors import DistillError, Interrupted, MachineError
from mlx_distill.events import Event, Note, Report
from mlx_distill.train.config import TrainConfig, TrainResult
from mlx_distill.train.signals import handle_signals

COMMAND = (sys.executable, "-m", "mlx_distill.train.child_process")
SIGNALS_TO_KILL = 3
"""Ctrl-C asks the child to save and stop, which takes time. This many end it at once."""

_CONTINUE = "Run the same command again; it continues from the last checkpoint."
_DEATHS = {
    "kIOGPUCommandBufferCallbackErrorImpactingInteractivity": (
        "macOS stopped the training because the GPU was busy for too long while the display needed it"
    ),
    "kIOGPUCommandBufferCallbackErrorTimeout": "macOS stopped the training because one piece of GPU work took too long",
    "kIOGPUCommandBufferCallbackErrorOutOfMemory": "the GPU ran out of memory during training",
    "greater than the maximum allowed buffer size": "one training step needs too large a buffer",
    "std::bad_alloc": "the memory ran out during training",
}
"""Text in the error output of an aborted process, and its meaning."""
_ADVICE = (
    f"{_CONTINUE} Close other programs and let the display sleep. "
    "If it happens again, use smaller micro-batches: --set train.micro_batch_tokens=512"
)


class Finished(msgspec.Struct, frozen=True, tag="finished"):
    """The last message of a training that succeeded."""

    result: TrainResult


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """The last message of a training that raised a DistillError."""

    message: str
    next_step: str
    problems: tuple[str, ...]
    exit_code: int


Message = Event | Finished | Failed
encode = msgspec.json.Encoder(enc_hook=str).encode  # of a message; paths become text
_decoder: msgspec.json.Decoder[Message] = msgspec.json.Decoder(Message, dec_hook=lambda kind, value: kind(value))


def train_in_child(config: TrainConfig, report: Report, command: Sequence[str] = COMMAND) -> TrainResult:
    """Train in a child process.

    SIGINT and SIGTERM go to the child, which saves and stops; then Interrupted is raised. Raises the child's own
    DistillError, and MachineError if the system ended it.
    """
    received: list[int] = []

    def pass_on(number: int) -> None:
        received.append(number)
        if child.poll() is None:
            child.send_signal(number if len(received) < SIGNALS_TO_KILL else signal.SIGKILL)

    with tempfile.TemporaryDirectory(prefix="mlx-distill-") as scratch, tempfile.TemporaryFile() as error_output:
        settings = Path(scratch, "train.json")
        settings.write_text(json.dumps(to_plain(config)), encoding="utf-8")
        with subprocess.Popen(
            [*command, str(settings)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=error_output,
            process_group=0,  # so that the terminal's Ctrl-C reaches it once, through us
            text=True,
            encoding="utf-8",
        ) as child:
            assert child.stdout is not None
            try:
                with handle_signals(pass_on):
                    last = _follow(child.stdout, report)
                    child.wait()
            finally:
                if child.poll() is None:  # an error on our side: do not leave the child behind
                    child.terminate()
        error_output.seek(0)
        errors = error_output.read().decode("utf-8", "replace")
    if isinstance(last, Finished):
        return last.result
    if last and last.exit_code > 128:
        raise Interrupted(last.message, _CONTINUE, last.exit_code)
    if last:
        raise DistillError(last.message, last.next_step, last.problems)
    if received:
        raise Interrupted("train: stopped before it could save.", _CONTINUE, 128 + received[-1])
    raise _explain_death(child.returncode, errors)


def _follow(lines: IO[str], report: Report) -> Finished | Failed | None:
    """Report the child's events until it closes its output. Return its last message."""
    last: Finished | Failed | None = None
    for line in lines:
        try:
            message = _decoder.decode(line)
        except msgspec.DecodeError:  # a library printed something
            if line.strip():
                report(Note(line.strip()))
            continue
        if isinstance(message, (Finished, Failed)):
            last = message
        else:
            report(message)
    return last


def _explain_death(code: int, errors: str) -> Exception:
    """Return the error for a child that ended without a last message. An unknown reason is a bug."""
    for sign, reason in _DEATHS.items():
        if sign in errors:
            return MachineError(f"train: {reason}.", _ADVICE)
    if code == -signal.SIGKILL:
        return MachineError("train: the system killed the training, probably for lack of memory.", _ADVICE)
    how = f"by signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"with exit code {code}"
    tail = "\n".join(errors.strip().splitlines()[-40:])
    return RuntimeError(f"The training process ended {how} and gave no result. Its error output:\n{tail}")


def main(path: Path) -> int:
    """Train by the config in a JSON file: the work of the child. Return the exit code of the command."""
    config = parse(TrainConfig, json.loads(path.read_text(encoding="utf-8")), str(path))
    device.configure_process()
    from mlx_distill.train.run import run  # imports MLX, so after the line above

    try:
        result = run(config, _send)
    except DistillError as error:
        _send(Failed(error.message, error.next_step, error.problems, error.exit_code))
        return error.exit_code
    _send(Finished(result))
    return 0


def _send(message: Message) -> None:
    print(encode(message).decode(), flush=True)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
