"""Settings that make MLX fast on Linux CPUs. They change the whole process, so only the command line switches them on.

Call `activate()` before the first `import mlx.core`: a BLAS that is loaded later is not used. A program that uses the
library calls it only if it wants the speed. MLX_DISTILL_CPU_KERNELS=0 keeps everything off.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

SWITCH = "MLX_DISTILL_CPU_KERNELS"
BFS_MAX_WIDTH = 2000
"""MLX evaluates a graph breadth first up to this width. Its own 20 makes it finish one stream before the next one."""
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8
"""Parameters of mallopt(3), from glibc's malloc.h."""


@dataclass(frozen=True)
class Blas:
    """The matrix library that MLX's CPU back end calls."""

    name: str
    path: str
    fast: bool

    def set_threads(self, count: int) -> None:
        """Set how many threads one matrix product may use."""
        setters = {"OpenBLAS": "openblas_set_num_threads", "oneMKL": "MKL_Set_Num_Threads"}
        if self.name in setters:
            getattr(ctypes.CDLL(self.path), setters[self.name])(ctypes.c_int(count))


@dataclass
class _State:
    blas: Blas | None = None
    threads: int = 0
    """Threads for a matrix product."""
    libc: ctypes.CDLL | None = None
    """The C library, if it keeps freed memory."""


_state = _State()


def activate() -> None:
    """Switch the settings on for the rest of this process. Only Linux needs them; a second call changes nothing."""
    if sys.platform == "linux" and os.environ.get(SWITCH) != "0" and not _state.blas:
        _state.blas, _state.threads, _state.libc = load_fast_blas(), cores(), _keep_freed_memory()
        os.environ.setdefault("MLX_BFS_MAX_WIDTH", str(BFS_MAX_WIDTH))


def active_blas() -> Blas | None:
    """Return the BLAS that `activate()` chose; None if the settings are off."""
    return _state.blas


def has_slow_exp() -> bool:
    """Return True if the kernels of `train/cpu_kernels.py` pay: on x86, MLX computes one exponential at a time."""
    return _state.blas is not None and platform.machine().lower() in ("x86_64", "amd64")


def cores() -> int:
    """Return the number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


@contextmanager
def shared_cores(n_streams: int) -> Iterator[None]:
    """Share the cores among the matrix products of `n_streams` streams, instead of all cores for each product."""
    if not _state.blas:
        yield
        return
    before, _state.threads = _state.threads, max(cores() // n_streams, 1)
    _state.blas.set_threads(_state.threads)
    try:
        yield
    finally:
        _state.threads = before
        _state.blas.set_threads(before)


def load_fast_blas() -> Blas:
    """Load a fast BLAS so that it takes precedence over the reference one in MLX's wheel.

    After RTLD_GLOBAL, the dynamic linker resolves the calls of `mlx.core` to it.
    """
    if "mlx.core" not in sys.modules:
        mkl = sorted(Path(sys.prefix, "lib").glob("libmkl_rt.so.*"))
        for name, path in [("OpenBLAS", "libopenblas.so.0"), *(("oneMKL", str(path)) for path in mkl)]:
            try:
                ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
            except OSError:
                continue
            return Blas(name, path, fast=True)
    return Blas("reference", "", fast=False)


def trim_memory() -> None:
    """Return freed memory to the system, if `activate()` made the C library keep it."""
    if _state.libc:
        _state.libc.malloc_trim(0)


def _keep_freed_memory() -> ctypes.CDLL | None:
    """Make glibc reuse freed memory: one arena, no mmap for large buffers, no trimming. None: another C library.

    By default the kernel clears gigabytes in each training step. A larger cache in MLX (mx.set_cache_limit) is as
    fast, but takes three times the memory because it keeps buffers by size.
    """
    libc = ctypes.CDLL(None)
    if not (hasattr(libc, "mallopt") and hasattr(libc, "gnu_get_libc_version")):
        return None
    for parameter, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1), (M_ARENA_MAX, 1)):
        libc.mallopt(parameter, value)
    return libc
