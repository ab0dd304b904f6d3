"""Ctrl-C, SIGTERM and a closed terminal as a request to finish the step and save, instead of an exception."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@contextmanager
def handle_signals(handler: Callable[[int], None]) -> Iterator[None]:
    """Call `handler` for SIGINT and SIGTERM within the block. SIGHUP (the terminal was closed) counts as SIGTERM.

    Other threads than the main one receive no signals. `nohup` ignores SIGHUP, which stays so.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)

    def handle(number: int, _frame: object) -> None:
        handler(signal.SIGTERM if number == signal.SIGHUP else number)

    before = {number: signal.signal(number, handle) for number in numbers}
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
