"""Run a coroutine so that Ctrl-C and SIGTERM call a function, also in a notebook."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from typing import Any

POLL_SECONDS = 0.2
"""Python handles a signal in the main thread when that thread wakes up; on macOS waiting for a lock does not end."""
LoopFactory = Callable[[], asyncio.AbstractEventLoop]


def run(
    main: Coroutine[Any, Any, None], on_signal: Callable[[signal.Signals], None], loop_factory: LoopFactory
) -> None:
    """Run `main` on its own event loop; in another thread if this one has a running loop, as in a notebook.

    SIGINT and SIGTERM call `on_signal` on that loop, if this is the main thread: no other thread can catch signals.
    """
    loop = loop_factory()

    def run_loop() -> None:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(main)

    def handle(number: int, _frame: object) -> None:
        with suppress(RuntimeError):  # the loop has just ended
            loop.call_soon_threadsafe(on_signal, signal.Signals(number))

    is_main = threading.current_thread() is threading.main_thread()
    before = {which: signal.signal(which, handle) for which in (signal.SIGINT, signal.SIGTERM) if is_main}
    try:
        if not _has_running_loop():
            run_loop()
            return
        with ThreadPoolExecutor(max_workers=1) as pool:
            ended = pool.submit(run_loop)
            while not ended.done():
                wait({ended}, timeout=POLL_SECONDS)
        ended.result()
    finally:
        for which, handler in before.items():
            signal.signal(which, handler)


def _has_running_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
