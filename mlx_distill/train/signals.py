"""Ctrl-C and SIGTERM as a request to finish the step and save, instead of an exception in the middle of it."""

from __future__ import annotations

import shlex
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from mlx_distill.config import fields_of
from mlx_distill.train.config import TrainConfig


@dataclass
class StopRequest:
    """The signal that asked the run to stop."""

    signal: int = 0
    """0: none so far."""


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Turn SIGINT and SIGTERM into a StopRequest within the block; a second signal acts as usual.

    Only the main thread receives signals. In another thread, such as a notebook's worker, this does nothing.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def remember(number: int, _frame: FrameType | None) -> None:
        request.signal = number
        restore()

    for number in before:
        signal.signal(number, remember)
    try:
        yield request
    finally:
        restore()


def command_to_resume(config: TrainConfig) -> str:
    """Return the command that continues the run: the settings that differ from their defaults."""
    flags = ["--resume"]
    for field in fields_of(TrainConfig):
        value = getattr(config, field.name)
        if value == field.default or field.name in ("resume", "force"):
            continue
        for item in value if isinstance(value, tuple) else (value,):
            flag = f"--{field.name.replace('_', '-')}"
            flags += [flag] if item is True else [flag, str(item)]
    return shlex.join(["mlx-distill", "train", *flags])
