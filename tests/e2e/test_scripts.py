"""The scripts: which Python they choose, their messages, and the demo in three steps."""

from __future__ import annotations

import json
import re
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
    """A folder for PATH with the few tools that scripts/lib.sh needs, on Linux, without Python."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in ("bash", "dirname", "cat", "mktemp", "rm", "sh"):
        (folder / tool).symlink_to(shutil.which(tool) or "")
    program(folder, "uname", "echo Linux")
    return folder


def program(folder: Path, name: str, does: str) -> None:
    """Write a stand-in for a program: a shell script."""
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


def test_the_first_python_that_works_is_taken(programs: Path) -> None:
    program(programs, "python3.13", "exit 127")  # a version manager's shim for a version that is not installed
    program(programs, "python3.12", "echo old")
    program(programs, "python3.14", "echo ok")
    assert shell(programs, 'find_python; echo "$PYTHON"').stdout == "python3.14\n"
    program(programs, "python3.11", "echo ok")
    program(programs, "python3", "echo ok")
    program(programs, "my python", "echo ok")
    assert shell(programs, 'find_python; echo "$PYTHON"').stdout == "python3.11\n"
    named = shell(programs, 'MLX_DISTILL_PYTHON="my python"; find_python; echo "$PYTHON"')
    assert named.stdout == "my python\n"


@pytest.mark.parametrize(
    ("system", "code", "words"),
    [
        ("Linux", "VERDICT=old", "apt-get install python3 python3-venv"),
        ("Linux", "VERDICT=no-venv", "apt-get install python3-venv"),
        ("Linux", "VERDICT=ok MLX_DISTILL_PYTHON='no such'", "MLX_DISTILL_PYTHON is 'no such', which is not a program"),
        ("Linux", "VERDICT=old MLX_DISTILL_PYTHON=python3", "MLX_DISTILL_PYTHON is 'python3', which is not a Python"),
        ("Darwin", "VERDICT=old", "brew install python@3.12"),
        ("Darwin", "VERDICT=intel ARM64=1", "runs under Rosetta"),
        ("Darwin", "VERDICT=intel ARM64=0", "This Mac has an Intel processor"),
        ("Darwin", "VERDICT=ok MACOS=13.7.1", "MLX needs macOS 14 or later. This Mac has macOS 13.7.1."),
    ],
)
def test_without_a_usable_python_the_fix_is_printed(programs: Path, system: str, code: str, words: str) -> None:
    program(programs, "uname", f"echo {system}")
    program(programs, "python3", 'echo "$VERDICT"')
    program(programs, "sysctl", 'echo "$ARM64"')
    program(programs, "sw_vers", 'echo "${MACOS:-14.0}"')
    finished = shell(programs, f"export {code}; find_python; echo not reached")
    assert finished.returncode == 1 and finished.stdout == ""
    assert words in finished.stderr


@pytest.mark.parametrize(("tools", "taken"), [("exit 1", "python3.14"), ("exit 0", "python3")])
def test_the_stub_of_macos_is_not_started(programs: Path, tools: str, taken: str) -> None:
    program(programs, "uname", "echo Darwin")
    program(programs, "xcode-select", tools)
    program(programs, "python3", "echo started >&2; echo ok")
    program(programs, "python3.14", "echo ok")
    assert shell(programs, f'APPLE_PYTHON={programs}/python3; find_python; echo "$PYTHON"').stdout == f"{taken}\n"


def test_this_python_is_accepted(programs: Path) -> None:
    (programs / "python3").symlink_to(sys.executable)
    assert shell(programs, "check_python python3").stdout == "ok\n"


@pytest.mark.parametrize("system", ["Darwin", "Linux"])
def test_set_up_shows_hidden_files_and_checks_the_import(programs: Path, system: str) -> None:
    """A Python that imports the package only after its files were made visible, as on a Mac with iCloud."""
    program(programs, "uname", f"echo {system}")
    program(programs, "chflags", 'echo "$SYSTEM_VERSION_COMPAT $*" >"$HOME/visible"')
    program(programs, "cksum", "cat >/dev/null; echo 1")
    program(programs, "python", 'case "$*" in *"import mlx_distill"*) cat "$HOME/visible" ;; esac')
    finished = shell(programs, 'VENV="$HOME" PY="$HOME/python"; set_up dev')
    stamp = programs / ".installed-dev"
    if system == "Darwin":
        assert finished.returncode == 0, finished.stderr
        assert (programs / "visible").read_text() == f"0 -R nohidden {programs}\n" and stamp.exists()
    else:
        assert finished.returncode == 1 and not stamp.exists()
        assert "Python does not find it" in finished.stderr and "iCloud" in finished.stderr


def test_a_step_prints_one_line_and_the_output_of_a_failure(programs: Path) -> None:
    program(programs, "works", "echo noise")
    program(programs, "fails", "echo the reason; exit 3")
    worked = shell(programs, "step Working works")
    assert re.fullmatch(r"Working \.\.\. \d+ s\n", worked.stdout)
    failed = shell(programs, "step Failing fails; echo not reached")
    assert failed.returncode == 1 and failed.stdout == "Failing ... failed\n"
    assert failed.stderr.startswith("the reason\n") and "exit code 3" in failed.stderr
    assert not list(programs.glob("mlx-distill.*")), "the log of the step is deleted"


def test_quickstart_refuses_an_unknown_option() -> None:
    finished = subprocess.run([SCRIPTS / "quickstart", "--fast"], capture_output=True, text=True, check=False)
    assert finished.returncode == 2 and "usage: scripts/quickstart [--full]" in finished.stderr


NOT_ON_MACOS = [
    *("declare -A ages", "local -n name=$1", "readarray lines <file", "coproc cat", "mapfile -t lines <file"),
    *("echo ${name^^}", "echo ${name,,}", "echo ${name@Q}", "[[ -v name ]]", "wait -n", "make &>>log"),
    *("echo $EPOCHSECONDS", "printf '%(%F)T' -1", "echo ${names[-1]}", "make |& tee log"),
    *('run "${options[@]}"', "sed -i s/a/b/ file", "sed -r s/a/b/ file", "grep -P x file", "grep -oP x file"),
    *("readlink -f file", "date -d yesterday", "stat -c %s file", "xargs -r rm <list", "head -n -1 file"),
    *("base64 -w 0 file", "find . -printf %p", "cp -at folder file", "sort -V file", "n=$(nproc)"),
    *("timeout 5 sleep 9", "realpath file", "tac file", "md5sum file", "sha256sum file", "setsid sleep 1"),
    *("flock file true", "shuf file", "ls --all"),
]


def test_the_lint_refuses_what_macos_does_not_have(tmp_path: Path) -> None:
    def lint(lines: list[str]) -> tuple[int, str]:
        script.write_text("\n".join(lines))
        done = subprocess.run([SCRIPTS / "lint_shell", script], capture_output=True, text=True, check=False)
        return done.returncode, done.stdout

    script = tmp_path / "script"
    code, out = lint([line for one in NOT_ON_MACOS for line in (f"# {one}", one, f"{one} # linux only")])
    assert code == 1
    named = {f"{script}:{3 * number + 2}:{line}" for number, line in enumerate(NOT_ON_MACOS)}
    assert {line for line in out.splitlines() if line.startswith(str(script))} == named
    good = ["local -a list", 'run "$@" ${x[@]+"${x[@]}"}', "sed -nE 's/a/b/p' file | grep -q x", "git log --oneline"]
    assert lint(good) == (0, "")


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
