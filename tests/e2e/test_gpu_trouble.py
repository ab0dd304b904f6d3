"""Errors of the GPU in every command that computes, raised by a stand-in for MLX's evaluation; a Mac without a GPU."""

from __future__ import annotations

import http.client
import io
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import mlx.core as mx
import pytest

from mlx_distill import device
from mlx_distill.cli import main
from mlx_distill.events import Event, Warning
from mlx_distill.models.adapter import open_student
from mlx_distill.models.chat_model import ChatModel
from mlx_distill.serve import ServeConfig
from mlx_distill.serve.run import Server, listen
from tests.conftest import Finished
from tests.support.adapters import make_adapter
from tests.support.rows import make_rows

OUT_OF_MEMORY = (
    "[METAL] Command buffer execution failed: Insufficient Memory "
    "(00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory)"
)
RAISING_SITE = f"""
import os, pathlib, sys
raised = pathlib.Path(os.environ["RAISED"])
if "mlx_distill.train.child_process" in sys.orig_argv and not raised.exists():
    from mlx_distill import device
    device.configure_process()
    import mlx.core as mx
    evaluate, n_evaluations = mx.eval, 0
    def eval_until_the_third_step(*values):
        global n_evaluations
        n_evaluations += any(isinstance(value, dict) and "learning_rate" in value for value in values)  # the optimizer
        if n_evaluations == 3:
            raised.touch()
            raise RuntimeError({OUT_OF_MEMORY!r})
        evaluate(*values)
    mx.eval = eval_until_the_third_step
"""


@pytest.fixture
def files(tiny_student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Options that name a student, an adapter and rows, in a working folder of their own."""
    monkeypatch.chdir(tmp_path)
    rows = make_rows(tmp_path / "rows")
    (rows / "test.jsonl").write_text((rows / "valid.jsonl").read_text())
    adapter = make_adapter(tiny_student, tmp_path / "adapter")
    Path("prompts.jsonl").write_text('{"prompt": "What is a queue?"}\n')
    return {"model": str(tiny_student), "data": str(rows), "adapter": str(adapter)}


def arguments(command: str, files: dict[str, str]) -> list[str]:
    options = {
        "chat": ["model", "adapter"],
        "compare": ["model", "adapter", "data"],
        "fuse": ["model", "adapter", "data"],
        "train": ["model", "data"],
    }[command]
    more = {
        "chat": ["--max-tokens", "4"],
        "compare": ["--out", "report", "--teacher", "", "--test-prompts", "prompts.jsonl", "--max-tokens", "4"],
        "fuse": ["--out", "fused"],
        "train": ["--adapter", "trained", "--epochs", "2", "--batch-size", "4", "--checkpoint-every", "1"],
    }[command]
    return [command, *(word for name in options for word in (f"--{name}", files[name])), *more]


def run_out_of_memory(*_values: Any) -> NoReturn:
    raise RuntimeError(OUT_OF_MEMORY)


@pytest.mark.parametrize("function", ["eval", "async_eval"])  # of loading and scoring, and of generating
@pytest.mark.parametrize("command", ["chat", "compare", "fuse"])
def test_a_gpu_error_is_one_message_with_advice(
    command: str,
    function: str,
    files: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"What is a queue?\n")))
    monkeypatch.setattr(mx, function, run_out_of_memory)
    with pytest.raises(SystemExit) as exit_:
        main(arguments(command, files))
    out, err = capsys.readouterr()
    assert exit_.value.code == 1 and not out.strip()
    assert "Error: The GPU ran out of memory.\nClose other programs. Run the same command again." in err
    assert "micro" not in err and "Traceback" not in err
    assert not Path("report").exists() and not Path("fused").exists()


def test_training_goes_on_from_the_checkpoint(
    files: dict[str, str], tmp_path: Path, cli: Callable[..., Finished], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(RAISING_SITE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"), prepend=":")
    monkeypatch.setenv("RAISED", str(tmp_path / "raised"))
    finished = cli(*arguments("train", files), "--json")
    assert finished.code == 0, finished.err
    assert (tmp_path / "raised").exists()
    assert "the memory ran out. Continuing from the last checkpoint with" in finished.err
    assert "Continuing after step 2 of 6" in finished.err
    assert json.loads(finished.out)["steps"] == 6


def test_the_server_answers_after_a_gpu_error(
    files: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    events: list[Event] = []
    student, adapter = open_student(Path(files["model"]), Path(files["adapter"]))
    answers: list[tuple[int, str]] = []
    with listen(0) as listener:
        server = Server(ChatModel(student, adapter), ServeConfig(Path(files["model"])), listener, events.append)
        port = listener.getsockname()[1]

        def talk() -> None:
            for function in (run_out_of_memory, mx.async_eval):
                monkeypatch.setattr(mx, "async_eval", function)
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
                body = {"model": "base", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
                connection.request("POST", "/v1/chat/completions", json.dumps(body))
                response = connection.getresponse()
                answers.append((response.status, response.read().decode()))
                connection.close()
            server.stop()

        client = threading.Thread(target=talk)
        client.start()
        server.serve()
        client.join()
    assert [status for status, _ in answers] == [500, 200]
    (warning,) = [event.text for event in events if isinstance(event, Warning)]
    assert warning.startswith("The GPU ran out of memory.\nClose other programs.")
    assert "Traceback" not in capsys.readouterr().err


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A Mac whose GPU is not visible."""
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    monkeypatch.setattr(mx, "device_count", lambda _kind: 0)
    device.prepare.cache_clear()
    yield
    device.configure_process()
    device.prepare.cache_clear()


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("command", ["chat", "compare", "fuse", "train"])
def test_every_command_warns_once_without_a_gpu(
    command: str, files: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"What is a queue?\n")))
    with pytest.raises(SystemExit):
        main(arguments(command, files))
    err = capsys.readouterr().err
    assert err.count("Warning: No GPU is visible") == 1
