"""Blocks run in order, within limits, without the parent's environment; their outcomes are hard to forge."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mlx_distill.code_blocks.execution import Limits, run_blocks, runner_command
from mlx_distill.compare.answers import check_blocks
from mlx_distill.compare.metrics.code_parses import code_parses
from mlx_distill.compare.report import Execution
from tests.support.reports import make_answer, make_answered, make_comparison


def test_blocks_share_a_namespace() -> None:
    blocks = ["def double(x):\n    return 2 * x\n", "assert double(2) == 4\nprint(double(2))", "double(2) + missing"]
    assert run_blocks(blocks) == ["", "", "NameError: name 'missing' is not defined"]


def test_a_failed_block_does_not_stop_the_next() -> None:
    assert run_blocks(["1 / 0", "x = 1", "raise SystemExit(3)", "raise SystemExit", "input()"]) == [
        "ZeroDivisionError: division by zero",
        "",
        "exits with 3",
        "",
        "EOFError: EOF when reading a line",
    ]


def test_the_main_guard_runs() -> None:
    assert run_blocks(["if __name__ == '__main__':\n    raise KeyError('here')"]) == ["KeyError: 'here'"]


def test_an_endless_block_is_killed_with_its_children(tmp_path: Path) -> None:
    left = tmp_path / "left"
    child = f"import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', {_late(left)!r}])"
    found = run_blocks([child, "while True: pass", "x = 1"], Limits(seconds=2.0))
    assert found == ["", "still running after 2 s", "not run: the process had ended"]
    time.sleep(2.5)
    assert not left.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="macOS cannot adopt processes that leave the session")
@pytest.mark.parametrize("ending", ["", "while True: pass", "os._exit(1)"])
def test_a_process_that_leaves_the_session_is_killed(tmp_path: Path, ending: str) -> None:
    left, ready = tmp_path / "left", tmp_path / "ready"
    code = (
        "import os, pathlib, time\n"
        "if not os.fork():\n    os.setsid()\n    if not os.fork():\n"
        f"        pathlib.Path({str(ready)!r}).touch(); {_late(left)}\n    os._exit(0)\n"
        f"while not os.path.exists({str(ready)!r}): pass\n{ending}"
    )
    run_blocks([code], Limits(seconds=2.0))
    assert ready.exists()
    time.sleep(3.2)
    assert not left.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="macOS cannot adopt processes that leave the session")
@pytest.mark.parametrize("leave", ["os.setsid()", "os.setpgid(0, 0)"])
@pytest.mark.parametrize("which", ["SIGKILL", "SIGSTOP"])
def test_code_that_ends_its_runner_leaves_nothing(tmp_path: Path, which: str, leave: str) -> None:
    left, ready = tmp_path / "left", tmp_path / "ready"
    code = (
        "import os, pathlib, signal, time\n"
        f"if not os.fork():\n    {leave}\n    if not os.fork():\n"
        f"        pathlib.Path({str(ready)!r}).touch(); {_late(left)}\n    os._exit(0)\n"
        f"while not os.path.exists({str(ready)!r}): pass\nos.kill(os.getppid(), signal.{which})\nwhile True: pass"
    )
    with subprocess.Popen(["sleep", "600"]) as ours:
        run_blocks([code], Limits(1.0), grace_seconds=0.5)
        assert ours.poll() is None  # children of this process are spared
        ours.kill()
    assert ready.exists()
    time.sleep(3.2)
    assert not left.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_parent_holds_no_keys() -> None:
    block = (
        "import os\n"
        "text = open(f'/proc/{os.getppid()}/environ').read()\n"
        "raise ValueError('PATH=' in text, 'KEY' in text)"
    )
    code = f"from mlx_distill.code_blocks.execution import run_blocks\nprint(run_blocks([{block!r}])[0])"
    environment = {**os.environ, "ANTHROPIC_API_KEY": "a-key-for-tests"}  # /proc shows what a process started with
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    assert found == "ValueError: (True, False)\n"


def test_a_stopped_runner_does_not_hang_the_parent() -> None:
    stop = "import os, signal\nos.kill(os.getppid(), signal.SIGSTOP)"
    found = run_blocks([stop, "while True: pass"], Limits(1.0), grace_seconds=0.5)
    assert found == ["", "ended the process that runs the blocks"]


def test_macos_denies_network_and_foreign_files(tmp_path: Path) -> None:
    plain = runner_command(tmp_path, 3, has_sandbox=False)
    boxed = runner_command(tmp_path, 3, has_sandbox=True)
    assert boxed[-len(plain) :] == plain
    assert boxed[: -len(plain)][:4] == ["/usr/bin/sandbox-exec", "-D", f"WORK={tmp_path.resolve()}", "-p"]
    assert '(deny network*)(deny file-write*)(allow file-write* (subpath (param "WORK"))' in boxed[4]


def _late(file: Path) -> str:
    return f"import time, pathlib; time.sleep(3); pathlib.Path({str(file)!r}).touch()"


def test_a_running_thread_does_not_delay_the_end() -> None:
    assert run_blocks(["import threading\nthreading.Thread(target=threading.Event().wait).start()"]) == [""]


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS does not hold a limit on address space")
def test_memory_is_limited() -> None:
    assert run_blocks(["x = bytearray(2 << 30)", "x = bytearray(1 << 20)"]) == ["MemoryError:", ""]


def test_files_are_limited_and_removed() -> None:
    say = "import os, pathlib\nraise ValueError(os.getcwd())"
    folder = run_blocks([say])[0].removeprefix("ValueError: ")
    assert not Path(folder).exists()
    found = run_blocks(["open('a', 'wb').write(b'x' * (2 << 20))", "open('b', 'w').write('small')"])
    assert "File too large" in found[0]
    assert found[1] == ""


def test_the_environment_is_not_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "a-key-for-tests")
    found = run_blocks(["import os\nraise ValueError(sorted(os.environ))"])[0]
    assert "PATH" in found
    assert "KEY" not in found
    assert str(os.environ["HOME"]) not in run_blocks(["import os\nraise ValueError(os.environ['HOME'])"])[0]


def test_deeply_nested_folders_are_removed() -> None:
    nest = "import os\nhome = os.getcwd()\nfor _ in range(1500):\n    os.mkdir('d')\n    os.chdir('d')"
    _, says = run_blocks([nest, "raise ValueError(home)"])
    assert not Path(says.removeprefix("ValueError: ")).exists()


@pytest.mark.parametrize(
    ("block", "says"),
    [
        ("import os\nos._exit(7)", "ended the process with code 7"),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)", "ended the process by SIGSEGV"),
        ("raise ValueError('\\x1b[31mred\\n\\u202ered' + 'x' * 5000)", "ValueError: red red" + "x" * 181),
    ],
)
def test_a_crash_is_told_in_one_line(block: str, says: str) -> None:
    assert run_blocks([block])[0] == says


@pytest.mark.parametrize(
    "forgery",
    [
        "open(fd, 'w', closefd=False).write('\\n\"\"\\n' * 9)",  # outcomes without the token
        "os.ftruncate(fd, 0)",
        "os.lseek(fd, 0, 0)",
    ],
)
def test_writing_to_the_outcomes_does_not_forge_them(forgery: str) -> None:
    code = f"import os\nfor fd in range(3, 10):\n    try: {forgery}\n    except OSError: pass"
    found = run_blocks(["1 / 0", code, "1 / 0"])
    assert found[0] and found[2] == "ZeroDivisionError: division by zero"


def test_a_pipe_in_place_of_a_file_does_not_block_the_parent() -> None:
    code = (
        "import os, sys\n"
        "for name in ('outcomes.jsonl', '../outcomes.jsonl', *sys.argv[1:]):\n"
        "    os.path.exists(name) or os.mkfifo(name)\n"
        "os._exit(0)"
    )
    assert run_blocks([code, "x = 1"])[1] == "not run: the process had ended"


@pytest.mark.skipif(sys.platform != "linux", reason="macOS has its own limit of processes")
def test_the_number_of_processes_is_limited() -> None:
    code = "import resource\nraise ValueError(resource.getrlimit(resource.RLIMIT_NPROC)[1])"
    limit = int(run_blocks([code])[0].removeprefix("ValueError: "))
    assert 64 < limit < 64 + 100_000


def test_python_runs_on_request_and_failures_are_counted() -> None:
    runs = "```python\ndef f():\n    return 1\n```\nUse:\n```python\nprint(f())\n```\n```python\nx = \n```"
    a, b = (make_answer(text, execute=True) for text in (runs, "```python\nprint(tree)\n```"))
    assert [block.execution for block in a.blocks] == [Execution.FINISHED, Execution.FINISHED, Execution.NOT_RUN]
    assert [block.describe() for block in (*a.blocks[1:], *b.blocks)] == [
        "Python parses and runs",
        "Python does not parse: line 1: invalid syntax",
        "Python parses but fails: NameError: name 'tree' is not defined",
    ]
    table = code_parses(make_comparison(answers=[make_answered(a, b)]))
    assert table
    assert [cell.text for cell in table.rows["Python blocks that run to the end"]] == ["2 of 2", "0 of 1"]
    assert "10 s, 1024 MiB" in table.note


def test_nothing_runs_unless_asked(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    block = f"```python\nimport pathlib\npathlib.Path({str(mark)!r}).touch()\n```"
    check_blocks(block)
    assert not mark.exists()
    check_blocks(block, execute=True)
    assert mark.exists()
