"""Helpers for tests of batches: costs, written files, and Ctrl-C at the right moment."""

from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from mlx_distill.errors import Interrupted
from tests.support.batches_server import BatchesServer
from tests.support.collecting import REAL_USD, journal_of

HALF_USD = REAL_USD / 2
"""Cost of one answer in a batch."""


def pending_batches(out: Path) -> list[dict[str, Any]]:
    batches: list[dict[str, Any]] = json.loads((out / "spending.json").read_text())["batches"]
    return batches


def answers(out: Path) -> dict[str, str]:
    return {record["messages"][-1]["content"]: record["answer"] for record in journal_of(out)}


def press_ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def interrupted(server: BatchesServer, collect: Any, *prompts: str, **settings: Any) -> Interrupted:
    """Collect until Ctrl-C is pressed, which is while the first batch is waited for."""
    ended = threading.Event()

    def press_once_it_was_looked_at() -> None:
        while not any(batch.n_looks for batch in list(server.batches.values())):
            if ended.wait(0.01):
                return
        press_ctrl_c()

    press = threading.Thread(target=press_once_it_was_looked_at)
    press.start()
    try:
        with pytest.raises(Interrupted) as raised:
            collect(*prompts, **settings)
    finally:
        ended.set()
        press.join()
    return raised.value
