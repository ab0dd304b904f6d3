"""Run a coroutine so that Ctrl-C and SIGTERM call a function, also in a notebook."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any

POLL_SECONDS = 0.2
"""Python delivers a signal to the main thread only when that thread wakes up."""
Handler = Callable[[signal.Signals], None]
LoopFactory = Callable[[], asyncio.AbstractEventLoop]


def run(main: Coroutine[Any, Any, None], on_signal: Handler, loop_factory: LoopFactory) -> None:
    """Run `main` on its own event loop; in another thread if this thread has a running loop, as in a notebook.

    `main` must end soon after the first call of `on_signal`, and at once after the second.
    """
    loop = loop_factory()

    async def with_signals() -> None:
        with _handle_signals(on_signal):
            await main

    def run_loop() -> None:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(with_signals())

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        run_loop()
        return
    with ThreadPoolExecutor(max_workers=1) as pool:
        ended = pool.submit(run_loop)
        while not ended.done():
            try:
                wait({ended}, timeout=POLL_SECONDS)
            except KeyboardInterrupt:
                loop.call_soon_threadsafe(on_signal, signal.SIGINT)
        ended.result()


@contextmanager
def _handle_signals(on_signal: Handler) -> Iterator[None]:
    """Call `on_signal` for SIGINT and SIGTERM. Only the main thread can catch signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    before = {which: signal.getsignal(which) for which in (signal.SIGINT, signal.SIGTERM)}
    for which in before:
        loop.add_signal_handler(which, on_signal, which)
    try:
        yield
    finally:
        for which, handler in before.items():
            loop.remove_signal_handler(which)
            signal.signal(which, handler)
