"""What a process gains by `device.prepare()`."""

from __future__ import annotations

import subprocess
import sys

import pytest

TOUCH = """
import os, resource
from mlx_distill import device
{prepare}
import mlx.core as mx

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

mx.set_cache_limit(0)  # MLX frees every buffer at once: what is kept is kept by the C library
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    mx.eval(mx.zeros((16, 1024, 1024)) + 1)  # 64 MB
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults)
held = resident()
device.release_memory()
print(held - resident())
"""

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator is Linux's")


def faults_and_released(prepare: str) -> tuple[int, int]:
    done = subprocess.run(
        [sys.executable, "-c", TOUCH.format(prepare=prepare)], capture_output=True, text=True, check=True
    )
    faults, released = map(int, done.stdout.split())
    return faults, released


@linux_only
def test_freed_memory_is_reused_and_given_back_on_request() -> None:
    without, _ = faults_and_released("device.load_fast_blas()")
    faults, released = faults_and_released("device.prepare()")

    assert faults < without / 4
    assert released > 50e6
