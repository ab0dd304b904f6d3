"""Train in a child process: start it, pass on its events and our signals, and retry or explain if it dies.

macOS may kill a process that takes too much memory. `run` survives that of a child, and starts it again with smaller
micro-batches if the memory ran out. The child runs this module: `python -m
mlx_distill.train.child_process CONFIG.json` prints one message a line.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import msgspec

from mlx_distill import device
from mlx_distill.config import parse, to_plain
from mlx_distill.errors import DistillError, Interrupted, MachineError
from mlx_distill.events import Event, Note, Report, Warning
from mlx_distill.gpu_errors import CLOSE_PROGRAMS, CONTINUE, explain, is_out_of_memory
from mlx_distill.storage import files
from mlx_distill.train.config import TrainConfig, TrainResult
from mlx_distill.train.signals import handle_signals

COMMAND = (sys.executable, "-P", "-m", "mlx_distill.train.child_process")
SIGNALS_TO_KILL = 3
"""Ctrl-C asks the child to save and stop, which takes time. This many end it at once."""

MAX_RETRIES = 2
"""Retries after the memory ran out, each with half the micro-batch."""
RELAX_WATCHDOG = "AGX_RELAX_CDM_CTXSTORE_TIMEOUT"
"""Makes macOS tolerate GPU work that delays the display; without it, it ended LoRA trainings (ml-explore/mlx#3267)."""


class Started(msgspec.Struct, frozen=True, tag="started"):
    """A training is about to compute its first forward pass."""

    largest_micro_batch: int
    """Its tokens."""


class Finished(msgspec.Struct, frozen=True, tag="finished"):
    """The last message of a training that succeeded."""

    result: TrainResult


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """The last message of a training that raised a DistillError."""

    message: str
    next_step: str
    problems: tuple[str, ...]
    exit_code: int


Message = Event | Started | Finished | Failed
encode = msgspec.json.Encoder(enc_hook=str).encode  # of a message; paths become text
_decoder: msgspec.json.Decoder[Message] = msgspec.json.Decoder(Message, dec_hook=lambda kind, value: kind(value))


def train_in_child(config: TrainConfig, report: Report, command: Sequence[str] = COMMAND) -> TrainResult:
    """Train in a child process. If the memory runs out, continue from the checkpoint with half the micro-batch.

    SIGINT, SIGTERM and SIGHUP go to the child, which saves and stops; then Interrupted is raised. Raises the child's
    own DistillError, and MachineError if the memory or the GPU ended it.
    """
    device.prepare()  # warns here if the GPU is not visible; the child does not warn again
    end = _run_child(config, report, command)
    for _ in range(MAX_RETRIES):
        half = end.largest_micro_batch // 2
        if not (end.out_of_memory and half and (config.adapter / files.CHECKPOINT).exists()):
            break
        report(Warning(f"train: the memory ran out. Continuing from the last checkpoint with {half} tokens at a time."))
        config = config.replace(micro_batch_tokens=half, resume=True, force=False)
        end = _run_child(config, report, command)
    if isinstance(end.last, Finished):
        return end.last.result
    failed = end.last
    if failed and failed.exit_code > 128:
        raise Interrupted(failed.message, CONTINUE, failed.exit_code)
    if failed:
        raise DistillError(failed.message, failed.next_step, failed.problems)
    if end.signals:
        raise Interrupted("train: stopped before it could save.", CONTINUE, 128 + end.signals[-1])
    raise _explain_death(end.exit_code, end.errors)


@dataclass
class _End:
    """The end of a child."""

    exit_code: int = 0
    """Negative: the number of the signal that ended it."""
    errors: str = ""
    """Its error output."""
    signals: list[int] = field(default_factory=list)
    """Signals that were passed on."""
    largest_micro_batch: int = 0
    """0: it ended before training."""
    last: Finished | Failed | None = None
    """None: it died."""

    @property
    def out_of_memory(self) -> bool:
        return self.last is None and not self.signals and is_out_of_memory(self.errors)


def _run_child(config: TrainConfig, report: Report, command: Sequence[str]) -> _End:
    """Start a child, pass on its events and our signals, and wait for its end."""
    end = _End()

    def pass_on(number: int) -> None:
        end.signals.append(number)
        if child.poll() is None:
            child.send_signal(number if len(end.signals) < SIGNALS_TO_KILL else signal.SIGKILL)

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
            env=child_environment(),
        ) as child:
            assert child.stdout is not None
            try:
                with handle_signals(pass_on):
                    _follow(child.stdout, report, end)
                    end.exit_code = child.wait()
            finally:
                if child.poll() is None:  # an error on our side: do not leave the child behind
                    child.terminate()
        error_output.seek(0)
        end.errors = error_output.read().decode("utf-8", "replace")
    return end


def child_environment(system: str = sys.platform) -> dict[str, str]:
    """Return the environment of the child. The user's own value of a variable is kept."""
    return {**({RELAX_WATCHDOG: "1"} if system == "darwin" else {}), **os.environ}


def _follow(lines: IO[str], report: Report, end: _End) -> None:
    """Report the child's events until it closes its output; note the other messages in `end`."""
    for line in lines:
        try:
            message = _decoder.decode(line)
        except msgspec.DecodeError:  # a library printed something
            if line.strip():
                report(Note(line.strip()))
            continue
        if isinstance(message, Started):
            end.largest_micro_batch = message.largest_micro_batch
        elif isinstance(message, (Finished, Failed)):
            end.last = message
        else:
            report(message)


def _explain_death(code: int, errors: str) -> Exception:
    """Return the error for a child that ended without a last message. An unknown reason is a bug."""
    machine_error = explain(errors, training=True)
    if machine_error:
        return MachineError(f"train: {machine_error.message}", machine_error.next_step)
    if code == -signal.SIGKILL:
        return MachineError(
            "train: the system killed the training, probably for lack of memory.", f"{CLOSE_PROGRAMS} {CONTINUE}"
        )
    how = f"by signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"with exit code {code}"
    tail = "\n".join(errors.strip().splitlines()[-40:])
    return RuntimeError(f"The training process ended {how} and gave no result. Its error output:\n{tail}")


def main(path: Path) -> int:
    """Train by the config in a JSON file: the work of the child. Return the exit code of the command."""
    config = parse(TrainConfig, json.loads(path.read_text(encoding="utf-8")), str(path))
    device.configure_process()
    from mlx_distill.train.run import run  # imports MLX, so after the line above

    try:
        result = run(config, _send, on_start=lambda tokens: _send(Started(tokens)))
    except DistillError as error:
        _send(Failed(error.message, error.next_step, error.problems, error.exit_code))
        return error.exit_code
    _send(Finished(result))
    return 0


def _send(message: Message) -> None:
    print(encode(message).decode(), flush=True)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
