"""Ctrl-C and SIGTERM as a request to finish the step and save, instead of an exception in the middle of it."""

from __future__ import annotations

import shlex
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from mlx_distill.config import fields_of
from mlx_distill.train.config import TrainConfig


@contextmanager
def handle_signals(handler: Callable[[int], None]) -> Iterator[None]:
    """Call `handler` for SIGINT and SIGTERM within the block. Other threads than the main one receive no signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda number, _frame: handler(number)) for number in numbers}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


@dataclass
class StopRequest:
    """The signal that asked the run to stop."""

    signal: int = 0
    """0: none so far."""

    def set(self, number: int) -> None:
        """Remember the first signal. The second one stops the run at once."""
        if self.signal:
            raise KeyboardInterrupt
        self.signal = number


def command_to_resume(config: TrainConfig) -> str:
    """Return the command that continues the run: the settings that differ from their defaults."""
    flags = ["--resume"]
    for field in fields_of(TrainConfig):
        value = getattr(config, field.name)
        if value != field.default and field.name not in ("resume", "force"):
            for item in value if isinstance(value, tuple) else (value,):
                flag = f"--{field.name.replace('_', '-')}"
                flags += [flag] if item is True else [flag, str(item)]
    return shlex.join(["mlx-distill", "train", *flags])
