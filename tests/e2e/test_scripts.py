"""The scripts: which Python they take and what they say without one, and the demo's three steps by their old names."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.support.small_project import write_project
from tests.support.tiny import make_tiny_qwen2

SCRIPTS = REPOSITORY / "scripts"


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A PATH of its own, with the few tools that scripts/lib.sh needs and no Python."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in ("bash", "dirname", "cat", "mktemp", "rm"):
        (folder / tool).symlink_to(shutil.which(tool) or "")
    return folder


def program(folder: Path, name: str, does: str) -> None:
    (folder / name).write_text(f"#!{shutil.which('sh')}\n{does}\n")
    (folder / name).chmod(0o755)


def shell(folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Run code in bash after scripts/lib.sh, with only the programs in `folder`."""
    return subprocess.run(
        ["bash", "-c", f". '{SCRIPTS}/lib.sh'\n{code}"],
        env={"PATH": str(folder), "HOME": str(folder), "TMPDIR": str(folder)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_first_python_that_will_do_is_taken(programs: Path) -> None:
    program(programs, "python3.13", "exit 127")  # a version manager's shim for a version that is not installed
    program(programs, "python3.12", "echo old")
    program(programs, "python3.11", "echo ok")
    program(programs, "python3", "echo ok")

    assert shell(programs, 'find_python; echo "$PYTHON"').stdout == "python3.11\n"
    assert shell(programs, 'MLX_DISTILL_PYTHON=python3; find_python; echo "$PYTHON"').stdout == "python3\n"


@pytest.mark.parametrize(
    ("system", "verdict", "apple_silicon", "words"),
    [
        ("Linux", "old", "", "apt-get install python3 python3-venv"),
        ("Linux", "no-venv", "", "apt-get install python3-venv"),
        ("Darwin", "old", "1", "brew install python@3.12"),
        ("Darwin", "intel", "1", "runs under Rosetta"),
        ("Darwin", "intel", "0", "this one is an Intel Mac"),
    ],
)
def test_without_a_python_that_will_do_it_says_what_to_install(
    programs: Path, system: str, verdict: str, apple_silicon: str, words: str
) -> None:
    program(programs, "python3", f"echo {verdict}")
    program(programs, "uname", f"echo {system}")
    program(programs, "sysctl", f"echo {apple_silicon}")

    finished = shell(programs, "find_python; echo not reached")

    assert finished.returncode == 1 and finished.stdout == ""
    assert words in finished.stderr


def test_this_python_will_do(programs: Path) -> None:
    (programs / "python3").symlink_to(sys.executable)

    assert shell(programs, "judge_python python3").stdout == "ok\n"


def test_a_step_is_one_line_and_shows_the_output_only_of_a_failure(programs: Path) -> None:
    program(programs, "works", "echo noise")
    program(programs, "fails", "echo the reason; exit 3")

    assert shell(programs, "step Working works").stdout == "Working ... 0 s\n"
    failed = shell(programs, "step Failing fails; echo not reached")
    assert failed.returncode == 1 and failed.stdout == "Failing ... failed\n"
    assert failed.stderr.startswith("the reason\n") and "exit code 3" in failed.stderr
    assert not list(programs.glob("mlx-distill.*"))  # no log is left behind


def test_quickstart_refuses_what_it_does_not_know() -> None:
    finished = subprocess.run([SCRIPTS / "quickstart", "--fast"], capture_output=True, text=True, check=False)

    assert finished.returncode == 2 and "usage: scripts/quickstart [--full]" in finished.stderr


def step(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run one of the numbered scripts in the working folder."""
    return subprocess.run(
        [sys.executable, SCRIPTS / name, *arguments], capture_output=True, text=True, timeout=300, check=False
    )


def test_the_demo_in_three_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    student = make_tiny_qwen2(tmp_path / "student", dtype="float32")
    write_project(tmp_path / "inputs", student)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")

    early = step("02_finetune_student.py", "--student", str(student))
    assert early.returncode == 1 and "01_collect_teacher_data.py" in early.stderr

    teacher = ["--teacher", f"recorded:{tmp_path / 'inputs' / 'recorded.jsonl'}"]
    collected = step("01_collect_teacher_data.py", "--prompts", str(tmp_path / "inputs" / "prompts.jsonl"), *teacher)
    assert collected.returncode == 0, collected.stderr
    assert len(Path("teacher_data.jsonl").read_text().splitlines()) == 8

    tuned = step("02_finetune_student.py", "--student", str(student))
    assert tuned.returncode == 0, tuned.stderr
    assert Path("distilled-student/adapter/adapters.safetensors").exists()
    assert Path("distilled-student/model/model.safetensors").exists()
    again = step("02_finetune_student.py", "--student", str(student))
    assert again.returncode == 0 and again.stdout.count("up to date") == 4

    compared = step("03_compare_models.py", "--no-teacher")
    assert compared.returncode == 0, compared.stderr
    report = json.loads(Path("distilled-student/report.json").read_text())
    assert "of 1 test row in" in report["tables"]["held_out"]["note"]
    assert sorted(item.name for item in Path().iterdir()) == ["collect.json", "distilled-student", "teacher_data.jsonl"]
