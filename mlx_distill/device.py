"""Everything that depends on where it runs: the device, its compute type and memory, and a fast BLAS on Linux.

Call `prepare()` before the first `import mlx.core` of a process: a BLAS that is loaded afterwards is not used.
"""

from __future__ import annotations

import ctypes
import gc
import importlib.metadata
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from mlx_distill import __version__
from mlx_distill.errors import InputError, MachineError

if TYPE_CHECKING:
    import mlx.core as mx

MOST_STREAMS = 8
BREADTH = 2000
"""How wide a graph may be and still be evaluated breadth first. MLX's 20 makes it finish one stream's part before it
begins the next one's, so that nothing runs at the same time."""
DTYPE_VARIABLE = "MLX_DISTILL_DTYPE"
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8
"""Numbers of mallopt(3)'s settings, as glibc's malloc.h has them."""


@dataclass(frozen=True)
class Blas:
    """The matrix library that MLX's CPU back end calls."""

    name: str
    path: str
    fast: bool

    def set_threads(self, count: int) -> None:
        """How many threads one matrix product may use."""
        setters = {"OpenBLAS": "openblas_set_num_threads", "oneMKL": "MKL_Set_Num_Threads"}
        if self.name in setters:
            getattr(ctypes.CDLL(self.path), setters[self.name])(ctypes.c_int(count))


@dataclass(frozen=True)
class Device:
    """What MLX computes on."""

    kind: str
    """`metal` or `cpu`."""
    name: str
    usable_bytes: int
    """Memory that a job may use: what Metal recommends on a Mac, what the system has on a CPU."""
    blas: Blas | None
    """None on a Mac, whose BLAS (Accelerate) is part of the system."""

    @property
    def dtype(self) -> mx.Dtype:
        """float32 on a CPU, where 16-bit matmuls are 10-20 times slower; bfloat16 on Metal.

        The environment variable MLX_DISTILL_DTYPE says otherwise: to rule rounding out on a Mac, or to see it on a
        CPU.
        """
        import mlx.core as mx

        types = {"float32": mx.float32, "bfloat16": mx.bfloat16}
        wanted = os.environ.get(DTYPE_VARIABLE) or ("bfloat16" if self.kind == "metal" else "float32")
        if wanted not in types:
            raise InputError(f"{DTYPE_VARIABLE} is {wanted!r}.", f"Set it to one of {', '.join(types)}, or unset it.")
        return types[wanted]


@cache
def load_fast_blas() -> Blas | None:
    """Find a fast BLAS on Linux and put it before the reference one in MLX's wheel; None on a Mac.

    Loading it with RTLD_GLOBAL before `mlx.core` makes the dynamic linker resolve MLX's calls to it.
    """
    if sys.platform != "linux":
        return None
    if "mlx.core" in sys.modules:
        return Blas("reference", "", fast=False)
    mkl = sorted(Path(sys.prefix, "lib").glob("libmkl_rt.so.*"))
    for name, path in [("OpenBLAS", "libopenblas.so.0"), *(("oneMKL", str(path)) for path in mkl)]:
        try:
            ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
        except OSError:
            continue
        return Blas(name, path, fast=True)
    return Blas("reference", "", fast=False)


@cache
def prepare() -> Device:
    """Make MLX ready in this process and say what it runs on.

    Raises MachineError where MLX cannot be imported, with the reason that people meet most.
    """
    blas = load_fast_blas()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if sys.platform == "linux":
        os.environ.setdefault("MLX_BFS_MAX_WIDTH", str(BREADTH))
        _keep_freed_memory()
    try:
        import mlx.core as mx
    except ImportError as error:
        raise MachineError(f"MLX cannot be loaded: {error}.", _why_no_mlx()) from error
    if mx.metal.is_available():
        info = mx.device_info()
        usable = int(info.get("max_recommended_working_set_size", info["memory_size"]))
        return Device("metal", str(info.get("device_name", "Apple GPU")), usable, None)
    return Device("cpu", cpu_name(), system_memory_bytes(), blas)


def _glibc() -> ctypes.CDLL | None:
    """The C library, where it is the one with these settings."""
    library = ctypes.CDLL(None)
    return library if hasattr(library, "mallopt") and hasattr(library, "gnu_get_libc_version") else None


def _keep_freed_memory() -> None:
    """Have the C library reuse what is freed. By default it maps every large buffer anew and unmaps it when it is
    freed, so that the kernel clears gigabytes a step, and threads keep what they freed to themselves. A larger cache
    of MLX's own (mx.set_cache_limit) is as fast but holds three times the memory, since it keeps buffers by size."""
    libc = _glibc()
    if libc:
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)
        libc.mallopt(M_ARENA_MAX, 1)


def release_memory() -> None:
    """Give the memory that nothing uses back to the system, for what follows or for another process."""
    gc.collect()
    mx = sys.modules.get("mlx.core")
    if mx:
        mx.clear_cache()
    libc = _glibc() if sys.platform == "linux" else None
    if libc:
        libc.malloc_trim(0)


def cores() -> int:
    """Processors that this process may run on."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


@cache
def streams() -> tuple[mx.Stream, ...]:
    """Streams whose work runs at the same time: one a core on a CPU, where MLX computes all but matrix products on
    one thread; the default one alone on Metal, which is parallel in itself."""
    import mlx.core as mx

    if prepare().kind == "metal":
        return (mx.default_stream(mx.gpu),)
    return tuple(mx.new_stream(mx.cpu) for _ in range(min(cores(), MOST_STREAMS)))


@contextmanager
def shared_cores(n_streams: int) -> Iterator[None]:
    """Within the block, matrix products of `n_streams` streams share the cores instead of each taking all of them."""
    blas = prepare().blas
    if not blas:
        yield
        return
    before = _blas_threads[-1]
    _blas_threads.append(max(cores() // n_streams, 1))
    blas.set_threads(_blas_threads[-1])
    try:
        yield
    finally:
        _blas_threads.pop()
        blas.set_threads(before)


_blas_threads = [cores()]
"""What was asked for, innermost last."""


def _why_no_mlx() -> str:
    if sys.platform == "darwin" and platform.machine() == "x86_64":
        return "This Python is built for Intel. Install an arm64 Python >= 3.11 on an Apple-silicon Mac."
    if sys.platform == "darwin":
        return "MLX needs macOS 14 or later. Then install again: pip install -U mlx"
    return "Install it again: pip install -U 'mlx[cpu]'"


def cpu_name() -> str:
    """The processor as the system calls it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def system_memory_bytes() -> int:
    """Physical memory, or the container's limit where that is smaller."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        return total
    return min(total, int(limit)) if limit.isdigit() else total


def versions() -> dict[str, str]:
    """What results depend on besides files and settings."""
    packages = ("mlx", "mlx-lm", "transformers", "tokenizers")
    found = {name: importlib.metadata.version(name) for name in packages}
    return {"mlx-distill": __version__, "python": platform.python_version(), **found}
