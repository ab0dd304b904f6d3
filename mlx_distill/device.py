"""The device that MLX computes on: its kind, compute type, memory and streams; versions of the installed packages."""

from __future__ import annotations

import gc
import os
import platform
import resource
import shlex
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from mlx_distill import __version__, cpu
from mlx_distill.errors import InputError, MachineError

if TYPE_CHECKING:
    import mlx.core as mx

MAX_STREAMS = 8
MAX_CACHE_BYTES = 2 << 30
"""Limit for the buffers that MLX keeps for reuse on Metal, where its own limit is nearly all memory.

Each padded length leaves buffers of other sizes, so that a training would take all memory whatever it needs. A quarter
of the usable memory is the limit on small Macs.
"""
OPEN_FILES = 4096
"""Terminal.app allows 256, fewer than the connections of a large `collect` or of `serve`."""
DTYPE_VARIABLE = "MLX_DISTILL_DTYPE"
DTYPES = ("float32", "bfloat16", "float16")
PIP = f"{shlex.quote(sys.executable)} -m pip install"
"""The pip that installs into the Python that runs now; plain `pip` may be another one, missing, or refuse (PEP 668)."""
ADVICE_TO_INSTALL = (
    "On a Mac, MLX needs Apple silicon, macOS 14 or later, and a Python for arm64. "
    f"Install it again: {PIP} -U mlx (on Linux: 'mlx[cpu]')"
)


@dataclass(frozen=True)
class Device:
    """The device that MLX computes on."""

    kind: str
    """`metal` or `cpu`."""
    name: str
    usable_bytes: int
    """Memory that a job may use: Metal's recommended working set, or the system's memory."""
    blas: cpu.Blas | None
    """The matrix library that `cpu.activate()` chose. None on a Mac, and in a program that uses the library."""
    warning: str = ""
    """One line if the device is not the one that the user expects."""

    @property
    def dtype(self) -> mx.Dtype:
        """The compute type: bfloat16 on Metal; float32 on a CPU, where 16-bit matrix products are 10-20 times slower.

        The environment variable MLX_DISTILL_DTYPE overrides it.
        """
        return self._dtype("bfloat16" if self.kind == "metal" else "float32")

    def dtype_for(self, file_dtype: str) -> mx.Dtype:
        """The compute type for inference: on Metal the type of float16 files, which M1 and M2 compute faster too.

        Training stays with bfloat16, whose range is that of float32.
        """
        return self._dtype("float16") if (self.kind, file_dtype) == ("metal", "float16") else self.dtype

    def _dtype(self, default: str) -> mx.Dtype:
        import mlx.core as mx

        wanted = os.environ.get(DTYPE_VARIABLE) or default
        if wanted not in DTYPES:
            raise InputError(f"{DTYPE_VARIABLE} is {wanted!r}.", f"Set it to one of {', '.join(DTYPES)}, or unset it.")
        found: mx.Dtype = getattr(mx, wanted)
        return found


@dataclass
class _Process:
    is_own: bool = False
    warn: Callable[[str], None] | None = None


_process = _Process()


def configure_process(warn: Callable[[str], None] | None = None) -> None:
    """Set what a process of our own needs, before MLX is imported. Library calls never do this.

    `warn` gets the warning of the device, once, when a command first needs MLX.
    """
    _process.is_own, _process.warn = True, warn
    raise_open_file_limit()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the tokenizers would warn about every child process
    if os.environ.get(DTYPE_VARIABLE) == "float32":
        os.environ.setdefault("MLX_ENABLE_TF32", "0")  # an M5 would compute float32 products in TF32
    cpu.activate()


@cache
def prepare() -> Device:
    """Import MLX and return its device. A Mac without a visible GPU, such as a sandbox, computes on the CPU.

    Raises MachineError with the most common reason if MLX cannot be imported.
    """
    try:
        import mlx.core as mx
    except ImportError as error:
        raise MachineError(f"MLX cannot be loaded: {error}.", ADVICE_TO_INSTALL) from error
    if mx.metal.is_available() and mx.device_count(mx.gpu):
        info = mx.device_info()
        usable = int(info.get("max_recommended_working_set_size", info["memory_size"]))
        if _process.is_own:
            mx.set_cache_limit(min(MAX_CACHE_BYTES, usable // 4))
        return Device("metal", str(info.get("device_name", "Apple GPU")), usable, None)
    warning = ""
    if mx.metal.is_available():
        mx.set_default_device(mx.cpu)  # otherwise every operation asks for the GPU
        warning = "No GPU is visible, as in a sandbox or a virtual machine: computing on the CPU, which is much slower."
        if _process.warn:
            _process.warn(warning)
    return Device("cpu", cpu_name(), system_memory_bytes(), cpu.active_blas(), warning)


def raise_open_file_limit() -> None:
    """Raise the soft limit for open files to OPEN_FILES, or as far as the hard limit allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(OSError, ValueError):  # the system may allow less than it says
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def release_memory() -> None:
    """Return unused memory to the system, for the next stage or another process."""
    gc.collect()
    mx = sys.modules.get("mlx.core")
    if mx:
        mx.clear_cache()
    cpu.trim_memory()


class _Thread(threading.local):
    streams: tuple[mx.Stream, ...] = ()


_thread = _Thread()


def streams() -> tuple[mx.Stream, ...]:
    """Return the streams of this thread whose work runs in parallel.

    After `cpu.activate()`, that is one a core: MLX computes all but matrix products on one thread a stream. Otherwise
    it is the default stream. MLX's streams belong to the thread that made them.
    """
    import mlx.core as mx

    if not _thread.streams:
        n_streams = min(cpu.cores(), MAX_STREAMS) if cpu.active_blas() else 0
        new = tuple(mx.new_stream(mx.cpu) for _ in range(n_streams))
        _thread.streams = new or (mx.default_stream(mx.default_device()),)
    return _thread.streams


def cpu_name() -> str:
    """Return the processor's name."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def system_memory_bytes() -> int:
    """Return the physical memory, or the container's limit if that is smaller."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        return total
    return min(total, int(limit)) if limit.isdigit() else total


def versions() -> dict[str, str]:
    """Return the versions that results depend on."""
    import importlib.metadata  # would slow down `--help`

    packages = ("mlx", "mlx-lm", "transformers", "tokenizers")
    found = {name: importlib.metadata.version(name) for name in packages}
    return {"mlx-distill": __version__, "python": platform.python_version(), **found}
