"""Ctrl-C and SIGTERM as a request to finish the step and save, instead of an exception in the middle of it; and what to
type to go on."""

from __future__ import annotations

import dataclasses
import shlex
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from mlx_distill.train.config import TrainConfig


@dataclass
class StopRequest:
    """The signal that asked to stop; 0 while none has."""

    signal: int = 0


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Turn SIGINT and SIGTERM into a StopRequest within the block; a second one acts as usual.

    Outside the main thread (a notebook's worker) signals cannot be taken, and none will be.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def remember(number: int, _frame: FrameType | None) -> None:
        request.signal = number
        for each, handler in before.items():
            signal.signal(each, handler)

    for number in before:
        signal.signal(number, remember)
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def command_to_resume(config: TrainConfig) -> str:
    """What to type to go on: the settings that differ from their defaults, wherever they came from."""
    flags = ["--resume"]
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if value == field.default or field.name in ("resume", "force"):
            continue
        for each in value if isinstance(value, tuple) else (value,):
            flag = f"--{field.name.replace('_', '-')}"
            flags += [flag] if each is True else [flag, str(each)]
    return shlex.join(["mlx-distill", "train", *flags])
