"""Training in a child: its events arrive, its errors keep their words, its death is explained, Ctrl-C lets it save."""

from __future__ import annotations

import os
import signal
import sys
import textwrap
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mlx_distill.errors import DistillError, Interrupted, MachineError
from mlx_distill.events import Event, Note, Progress, Warning, ignore
from mlx_distill.train.child_process import train_in_child


@dataclass(frozen=True)
class Config:
    adapter: Path
    epochs: int = 3


def child(tmp_path: Path, code: str) -> Sequence[str]:
    """The command of a child that runs `code`, with `say(object)` to speak as the real one does."""
    opening = "import json, os, signal, sys, time\ndef say(data): print(json.dumps(data), flush=True)\n"
    file = tmp_path / "child.py"
    file.write_text(opening + textwrap.dedent(code))
    return [sys.executable, str(file)]


def train(tmp_path: Path, code: str, events: list[Event] | None = None) -> dict[str, Any]:
    report = ignore if events is None else events.append
    return train_in_child(Config(tmp_path / "adapter"), report, child(tmp_path, code))


def test_the_settings_arrive_and_the_result_comes_back(tmp_path: Path) -> None:
    result = train(tmp_path, 'say({"result": json.load(open(sys.argv[1]))})')

    assert result == {"adapter": str(tmp_path / "adapter"), "epochs": 3}


def test_every_kind_of_event_is_passed_on_in_order(tmp_path: Path) -> None:
    events: list[Event] = []
    train(
        tmp_path,
        """
        say({"event": "note", "text": "begins"})
        print("a library prints this")
        say({"event": "caution", "text": "careful"})
        say({"event": "progress", "job": "train", "done": 1, "total": 2, "unit": "steps", "note": "loss 1"})
        say({"result": {}})
        """,
        events,
    )

    assert events == [
        Note("begins"),
        Note("a library prints this"),
        Warning("careful"),
        Progress("train", 1, 2, "steps", "loss 1"),
    ]


def test_an_error_keeps_its_words(tmp_path: Path) -> None:
    error = {"message": "train.jsonl: 1 problem.", "next_step": "Mend it.", "problems": ["row 3"], "exit_code": 1}
    with pytest.raises(DistillError) as caught:
        train(tmp_path, f"say({{'error': {error!r}}}); sys.exit(1)")

    assert (caught.value.message, caught.value.next_step, caught.value.problems) == (
        "train.jsonl: 1 problem.",
        "Mend it.",
        ("row 3",),
    )


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        ("kIOGPUCommandBufferCallbackErrorImpactingInteractivity", "display sleep"),
        ("kIOGPUCommandBufferCallbackErrorTimeout", "train.micro_tokens"),
        ("kIOGPUCommandBufferCallbackErrorOutOfMemory", "Close other programs"),
        (
            "[metal::malloc] Attempting to allocate 9 bytes which is greater than the maximum allowed buffer size",
            "--set",
        ),
        ("terminate called after throwing an instance of 'std::bad_alloc'", "Close other programs"),
    ],
)
def test_an_abort_that_nobody_can_catch_becomes_advice(tmp_path: Path, words: str, advice: str) -> None:
    with pytest.raises(MachineError) as caught:
        train(tmp_path, f"print({words!r}, file=sys.stderr, flush=True); os.abort()")

    assert caught.value.message.startswith("train: ") and advice in caught.value.next_step


def test_a_kill_by_the_system_is_told_as_lack_of_memory(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="the system killed the training"):
        train(tmp_path, "os.kill(os.getpid(), signal.SIGKILL)")


def test_a_bug_in_the_child_shows_its_traceback(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="exit code 1") as caught:
        train(tmp_path, "1 / 0")

    assert "ZeroDivisionError" in str(caught.value)


SAVES = """
    def save(number, frame):
        say({"error": {"message": "Stopped after step 5.", "next_step": "x", "exit_code": 128 + number}})
        sys.exit(128 + number)
    signal.signal(signal.SIGINT, save); signal.signal(signal.SIGTERM, save)
    say({"event": "note", "text": "ready"})
    time.sleep(60)
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_reaches_the_child_and_its_saving_is_waited_for(tmp_path: Path, number: int, code: int) -> None:
    def report(event: Event) -> None:
        if event == Note("ready"):
            os.kill(os.getpid(), number)

    with pytest.raises(Interrupted) as caught:
        train_in_child(Config(tmp_path), report, child(tmp_path, SAVES))

    assert caught.value.exit_code == code
    assert caught.value.message == "Stopped after step 5." and "Run the same command again" in caught.value.next_step
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_child_that_does_not_listen_is_ended_by_the_third_ctrl_c(tmp_path: Path) -> None:
    def report(event: Event) -> None:
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGINT)

    deaf = 'signal.signal(signal.SIGINT, signal.SIG_IGN); say({"event": "note", "text": "ready"}); time.sleep(60)'
    with pytest.raises(Interrupted, match="stopped before it could save"):
        train_in_child(Config(tmp_path), report, child(tmp_path, deaf))


def test_an_error_on_our_side_does_not_leave_the_child_behind(tmp_path: Path) -> None:
    def report(event: Event) -> None:
        raise RuntimeError("a bug in the drawing")

    code = """
        signal.signal(signal.SIGTERM, lambda *_: (open("ended", "w").close(), sys.exit(1)))
        os.chdir(os.path.dirname(__file__))
        say({"event": "note", "text": "ready"})
        time.sleep(60)
    """
    with pytest.raises(RuntimeError, match="a bug in the drawing"):
        train_in_child(Config(tmp_path), report, child(tmp_path, code))

    assert (tmp_path / "ended").exists()


def test_it_works_outside_the_main_thread(tmp_path: Path) -> None:
    results: list[dict[str, Any]] = []
    thread = threading.Thread(target=lambda: results.append(train(tmp_path, 'say({"result": {"n": 1}})')))
    thread.start()
    thread.join(30)

    assert results == [{"n": 1}]
