"""Blocks run in order, each told how it ended, within limits, and with nothing of the parent's environment."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from mlx_distill.code_blocks.execution import Limits, run_blocks


def test_a_block_goes_on_where_the_one_before_it_ended() -> None:
    blocks = ["def double(x):\n    return 2 * x\n", "assert double(2) == 4\nprint(double(2))", "double(2) + missing"]
    assert run_blocks(blocks) == ["", "", "NameError: name 'missing' is not defined"]


def test_a_block_that_fails_does_not_keep_the_next_from_running() -> None:
    assert run_blocks(["1 / 0", "x = 1", "raise SystemExit(3)", "raise SystemExit", "input()"]) == [
        "ZeroDivisionError: division by zero",
        "",
        "exits with 3",
        "",
        "EOFError: EOF when reading a line",
    ]


def test_the_main_guard_is_met() -> None:
    assert run_blocks(["if __name__ == '__main__':\n    raise KeyError('here')"]) == ["KeyError: 'here'"]


def test_a_block_without_an_end_is_stopped_with_all_that_it_started(tmp_path: Path) -> None:
    left = tmp_path / "left"
    child = f"import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', {_late(left)!r}])"
    started = time.monotonic()
    found = run_blocks([child, "while True: pass", "x = 1"], Limits(seconds=2.0))
    assert time.monotonic() - started < 10
    assert found == ["", "still running after 2 s", "not run: the process had ended"]
    time.sleep(2.5)
    assert not left.exists()


def _late(file: Path) -> str:
    return f"import time, pathlib; time.sleep(3); pathlib.Path({str(file)!r}).touch()"


def test_a_thread_that_never_ends_is_not_waited_for() -> None:
    started = time.monotonic()
    assert run_blocks(["import threading\nthreading.Thread(target=threading.Event().wait).start()"]) == [""]
    assert time.monotonic() - started < 5


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS does not hold a limit on address space")
def test_memory_is_limited() -> None:
    assert run_blocks(["x = bytearray(2 << 30)", "x = bytearray(1 << 20)"]) == ["MemoryError:", ""]


def test_files_are_limited_and_gone_afterwards() -> None:
    say = "import os, pathlib\nraise ValueError(os.getcwd())"
    folder = run_blocks([say])[0].removeprefix("ValueError: ")
    assert not Path(folder).exists()
    found = run_blocks(["open('a', 'wb').write(b'x' * (2 << 20))", "open('b', 'w').write('small')"])
    assert "File too large" in found[0]
    assert found[1] == ""


def test_nothing_of_the_environment_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "a-key-for-tests")
    found = run_blocks(["import os\nraise ValueError(sorted(os.environ))"])[0]
    assert "PATH" in found
    assert "KEY" not in found
    assert str(os.environ["HOME"]) not in run_blocks(["import os\nraise ValueError(os.environ['HOME'])"])[0]


@pytest.mark.parametrize(
    ("block", "says"),
    [
        ("import os\nos._exit(7)", "ended the process with code 7"),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)", "ended the process by SIGSEGV"),
        ("raise ValueError('\\x1b[31mred\\n\\u202ered' + 'x' * 5000)", "ValueError: red red" + "x" * 181),
    ],
)
def test_a_violent_end_is_told_in_a_line(block: str, says: str) -> None:
    assert run_blocks([block])[0] == says


def test_outcomes_that_the_code_wrote_itself_break_nothing() -> None:
    forge = (
        "import pathlib\npathlib.Path('../outcomes.jsonl').write_text('{}\\n[1]\\nnonsense')\nimport os\nos._exit(0)"
    )
    assert run_blocks([forge, "x = 1"])[1] == "not run: the process had ended"
