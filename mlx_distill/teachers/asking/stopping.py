"""Runs a coroutine so that Ctrl-C and SIGTERM reach it as a call, on whatever thread it was started."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any

LOOK_SECONDS = 0.2
"""The system may give a signal to any thread, and Python tells the main one no sooner than it wakes."""
Caught = Callable[[signal.Signals], None]


def run(main: Coroutine[Any, Any, None], caught: Caught) -> None:
    """Run `main` on an event loop of its own, in a thread where this thread's loop is busy (as in a notebook).

    `main` is expected to use `signals_call(caught)`, to end soon after `caught` was called, and at once when it is
    called again.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(main)
        return
    with ThreadPoolExecutor(max_workers=1) as pool:
        loop = asyncio.new_event_loop()
        ended = pool.submit(_run_on, loop, main)
        while not ended.done():
            try:
                wait({ended}, timeout=LOOK_SECONDS)
            except KeyboardInterrupt:
                loop.call_soon_threadsafe(caught, signal.SIGINT)
        ended.result()


def _run_on(loop: asyncio.AbstractEventLoop, main: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(main)


@contextmanager
def signals_call(caught: Caught) -> Iterator[None]:
    """Inside a running loop: SIGINT and SIGTERM call `caught`. Only the main thread can catch signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    before = {which: signal.getsignal(which) for which in (signal.SIGINT, signal.SIGTERM)}
    for which in before:
        loop.add_signal_handler(which, caught, which)
    try:
        yield
    finally:
        for which, handler in before.items():
            loop.remove_signal_handler(which)
            signal.signal(which, handler)
