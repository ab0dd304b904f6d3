"""Ctrl-C and SIGTERM as a request to finish the step and save, instead of an exception in the middle of it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


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
