"""Training in a child process: its events arrive, its errors keep their words, its death is explained, Ctrl-C saves."""

from __future__ import annotations

import json
import os
import signal
import sys
import textwrap
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mlx_distill.errors import DistillError, Interrupted, MachineError
from mlx_distill.events import Event, Note, Progress, Warning, ignore
from mlx_distill.train import TrainConfig, TrainResult
from mlx_distill.train.child_process import (
    RELAX_WATCHDOG,
    Failed,
    Finished,
    Started,
    child_environment,
    encode,
    train_in_child,
)
from tests.support.rows import make_rows

FIGURES = {**dict.fromkeys(TrainResult.__struct_fields__, 1), "adapter": "adapters/mine", "stopped": "finished"}
RESULT = msgspec.convert(FIGURES, TrainResult, dec_hook=lambda kind, value: kind(value))
FINISH = f"print({encode(Finished(RESULT)).decode()!r}, flush=True)"


def config(tmp_path: Path) -> TrainConfig:
    return TrainConfig(tmp_path / "model", tmp_path / "data", tmp_path / "adapter")


def child(tmp_path: Path, code: str) -> Sequence[str]:
    """Return the command of a child that runs `code`."""
    file = tmp_path / "child.py"
    file.write_text("import os, signal, sys, time\n" + textwrap.dedent(code))
    return [sys.executable, str(file)]


def say(event: Event | Failed | Started) -> str:
    """Return the code that sends a message."""
    return f"print({encode(event).decode()!r}, flush=True)"


def train(tmp_path: Path, code: str, events: list[Event] | None = None) -> TrainResult:
    report = ignore if events is None else events.append
    return train_in_child(config(tmp_path), report, child(tmp_path, code))


def test_the_worker_trains_by_the_settings_it_gets(tiny_student: Path, tmp_path: Path) -> None:
    rows = make_rows(tmp_path / "rows")
    chosen = TrainConfig(tiny_student, rows, tmp_path / "adapter", epochs=1, batch_size=4, learning_rate=5e-3)
    events: list[Event] = []
    result = train_in_child(chosen, events.append)
    assert (result.adapter, result.steps) == (tmp_path / "adapter", 3)
    assert result.valid_loss < result.valid_loss_before
    assert any(isinstance(event, Progress) and event.job == "train" for event in events)
    with pytest.raises(DistillError, match="already exists") as error:
        train_in_child(chosen, ignore)
    assert "--force" in error.value.next_step


def test_modules_of_the_working_folder_are_not_imported(
    tiny_student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = make_rows(tmp_path / "rows")
    project = tmp_path / "project"
    project.mkdir()
    (project / "msgspec.py").write_text("open('ran', 'w').close()")
    monkeypatch.chdir(project)
    train_in_child(TrainConfig(tiny_student, rows, tmp_path / "adapter", epochs=1), ignore)
    assert not (project / "ran").exists()


def test_events_arrive_in_order(tmp_path: Path) -> None:
    sent: list[Event] = [Note("begins"), Warning("careful"), Progress("train", 1, 2, "steps", "loss 1")]
    events: list[Event] = []
    code = [say(sent[0]), "print('a library prints this')", "print('[1, 2]')", say(sent[1]), say(sent[2]), FINISH]
    assert train(tmp_path, "\n".join(code), events) == RESULT
    assert events == [sent[0], Note("a library prints this"), Note("[1, 2]"), *sent[1:]]


def test_an_error_keeps_its_words(tmp_path: Path) -> None:
    failed = Failed("train.jsonl: 1 problem.", "Fix it.", ("row 3",), 1)
    with pytest.raises(DistillError) as error:
        train(tmp_path, f"{say(failed)}; sys.exit(1)")
    raised = error.value
    assert (raised.message, raised.next_step, raised.problems) == ("train.jsonl: 1 problem.", "Fix it.", ("row 3",))


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ("kIOGPUCommandBufferCallbackErrorImpactingInteractivity", "because the display needed the GPU"),
        ("kIOGPUCommandBufferCallbackErrorTimeout", "one piece of it took too long"),
        ("kIOGPUCommandBufferCallbackErrorOutOfMemory", "The GPU ran out of memory"),
        (
            "[metal::malloc] Attempting to allocate 9 bytes which is greater than the maximum allowed buffer size",
            "larger",
        ),
        ("terminate called after throwing an instance of 'std::bad_alloc'", "not enough memory"),
        (
            "libc++abi: terminating due to uncaught exception of type std::bad_alloc: std::bad_alloc",
            "not enough memory",
        ),
    ],
)
def test_an_abort_is_explained(tmp_path: Path, output: str, reason: str) -> None:
    with pytest.raises(MachineError, match=reason) as error:
        train(tmp_path, f"print({output!r}, file=sys.stderr, flush=True); os.abort()")
    assert "train.micro_batch_tokens=512" in error.value.next_step


OUT_OF_MEMORY = "RuntimeError: [METAL] Insufficient Memory (00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory)"


def runs_out_of_memory(tmp_path: Path, times: int, error: str = OUT_OF_MEMORY) -> str:
    """Return the code of a child that writes down its config, and ends with an error for the first `times` times."""
    return f"""
        import json, pathlib
        seen = pathlib.Path({str(tmp_path / "configs")!r})
        text = pathlib.Path(sys.argv[1]).read_text()
        seen.write_text((seen.read_text() if seen.exists() else "") + json.dumps(json.loads(text)) + chr(10))
        config = json.loads(text)
        {say(Started(1001))}
        adapter = pathlib.Path(config["adapter"])
        adapter.mkdir(exist_ok=True)
        (adapter / "checkpoint.safetensors").touch()
        if len(seen.read_text().splitlines()) <= {times}:
            sys.exit({error!r})
        {FINISH}
    """


def configs(tmp_path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (tmp_path / "configs").read_text().splitlines()]


def test_training_continues_with_half_the_micro_batch(tmp_path: Path) -> None:
    events: list[Event] = []
    assert train(tmp_path, runs_out_of_memory(tmp_path, 1), events) == RESULT
    assert [(c["micro_batch_tokens"], c["resume"]) for c in configs(tmp_path)] == [(0, False), (500, True)]
    assert [event.text for event in events if isinstance(event, Warning)] == [
        "train: the memory ran out. Continuing from the last checkpoint with 500 tokens at a time."
    ]


def test_out_of_memory_is_retried_twice(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="ran out of memory"):
        train(tmp_path, runs_out_of_memory(tmp_path, 9))
    assert len(configs(tmp_path)) == 3


def test_other_gpu_errors_are_not_retried(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="took too long"):
        train(tmp_path, runs_out_of_memory(tmp_path, 9, "[METAL] kIOGPUCommandBufferCallbackErrorTimeout"))
    assert len(configs(tmp_path)) == 1


def test_out_of_memory_before_a_checkpoint_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="ran out of memory"):
        train(tmp_path, f"{say(Started(1000))}; sys.exit({OUT_OF_MEMORY!r})")


def test_the_watchdog_is_relaxed_on_macos_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(RELAX_WATCHDOG, raising=False)
    assert child_environment("darwin")[RELAX_WATCHDOG] == "1"
    assert child_environment("linux") == dict(os.environ)
    monkeypatch.setenv(RELAX_WATCHDOG, "0")
    assert child_environment("darwin")[RELAX_WATCHDOG] == "0"


def test_a_kill_by_the_system_is_explained_as_lack_of_memory(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="the system killed the training"):
        train(tmp_path, "os.kill(os.getpid(), signal.SIGKILL)")


def test_a_bug_in_the_child_shows_its_traceback(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="exit code 1") as error:
        train(tmp_path, "1 / 0")
    assert "ZeroDivisionError" in str(error.value)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 143)])
def test_a_signal_reaches_the_child_which_saves(tmp_path: Path, number: int, code: int) -> None:
    saves = f"""
        def save(number, frame):
            {say(Failed("after step 5 of 9.", "x", (), code))}
            sys.exit({code})
        signal.signal(signal.SIGINT, save); signal.signal(signal.SIGTERM, save)
        {say(Note("ready"))}
        time.sleep(60)
    """

    def report(event: Event) -> None:
        if event == Note("ready"):
            os.kill(os.getpid(), number)

    with pytest.raises(Interrupted) as error:
        train_in_child(config(tmp_path), report, child(tmp_path, saves))
    assert (error.value.exit_code, error.value.message) == (code, "after step 5 of 9.")
    assert "mlx-distill run` again" in error.value.next_step
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_third_ctrl_c_kills_a_child_that_does_not_listen(tmp_path: Path) -> None:
    def report(event: Event) -> None:
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGINT)

    deaf = f"signal.signal(signal.SIGINT, signal.SIG_IGN); {say(Note('ready'))}; time.sleep(60)"
    with pytest.raises(Interrupted, match="stopped before it could save"):
        train_in_child(config(tmp_path), report, child(tmp_path, deaf))


def test_an_error_in_report_does_not_leave_the_child_behind(tmp_path: Path) -> None:
    def report(event: Event) -> None:
        raise RuntimeError("a bug in the progress bar")

    code = f"""
        signal.signal(signal.SIGTERM, lambda *_: (open("ended", "w").close(), sys.exit(1)))
        os.chdir(os.path.dirname(__file__))
        {say(Note("ready"))}
        time.sleep(60)
    """
    with pytest.raises(RuntimeError, match="a bug in the progress bar"):
        train_in_child(config(tmp_path), report, child(tmp_path, code))
    assert (tmp_path / "ended").exists()


def test_it_works_outside_the_main_thread(tmp_path: Path) -> None:
    results: list[TrainResult] = []
    thread = threading.Thread(target=lambda: results.append(train(tmp_path, FINISH)))
    thread.start()
    thread.join(30)
    assert results == [RESULT]
