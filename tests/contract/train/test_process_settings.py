"""Process-wide settings: a library call changes none, and the command line switches them on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mlx_distill.config import to_plain
from mlx_distill.train import TrainConfig
from tests.support.rows import make_rows

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="these settings are for Linux")

LIBRARY = """
import json, os, signal, sys
calls = []
sys.addaudithook(lambda name, args: calls.append(args[1]) if name == "ctypes.dlsym" else None)
from mlx_lm.models import qwen2
state = lambda: (dict(vars(qwen2)), qwen2.TransformerBlock.__call__, dict(os.environ), signal.getsignal(signal.SIGINT))
before = state()
from mlx_distill.config import parse
from mlx_distill.train import TrainConfig
from mlx_distill.train.run import run
seen = []
run(parse(TrainConfig, json.loads(sys.argv[1]), "test"), lambda event: seen.append(vars(qwen2)["swiglu"]))
from mlx_distill import cpu, device
print(json.dumps({
    "unchanged": state() == before,
    "patched meanwhile": any(function is not before[0]["swiglu"] for function in seen),
    "mallopt": "mallopt" in calls,
    "streams": len(device.streams()),
    "blas": cpu.active_blas() is not None,
}))
"""

COMMAND_LINE = """
import json, os
from mlx_distill import cpu, device
device.configure_process()
device.prepare()
print(json.dumps({name: os.environ.get(name) for name in ("MLX_BFS_MAX_WIDTH", "MLX_ENABLE_TF32")}
    | {"streams": len(device.streams()), "blas": cpu.active_blas() is not None}))
"""


def output(code: str, *arguments: str, **environment: str) -> dict[str, Any]:
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **environment})
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove what the tests' own process has set."""
    for name in ("MLX_BFS_MAX_WIDTH", "MLX_DISTILL_DTYPE", "MLX_ENABLE_TF32", "TOKENIZERS_PARALLELISM"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("change", [{}, {"grad_checkpoint": True}])
def test_a_library_call_leaves_the_process_as_it_was(
    tiny_student: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    config = TrainConfig(tiny_student, make_rows(tmp_path / "rows"), tmp_path / "adapter", epochs=1)
    assert output(LIBRARY, json.dumps(to_plain(config.replace(**change)))) == {
        "unchanged": True,
        "patched meanwhile": False,
        "mallopt": False,
        "streams": 1,
        "blas": False,
    }


@linux_only
def test_the_command_line_switches_the_settings_on() -> None:
    settings = output(COMMAND_LINE, MLX_DISTILL_DTYPE="float32")
    assert settings == {
        "MLX_BFS_MAX_WIDTH": "2000",
        "MLX_ENABLE_TF32": "0",
        "streams": min(len(os.sched_getaffinity(0)), 8),
        "blas": True,
    }


def test_an_environment_variable_keeps_them_off() -> None:
    off = {"MLX_BFS_MAX_WIDTH": None, "MLX_ENABLE_TF32": None, "streams": 1, "blas": False}
    assert output(COMMAND_LINE, MLX_DISTILL_CPU_KERNELS="0") == off


TOUCH = """
import json, os, resource, sys
from mlx_distill import cpu, device
if sys.argv[1] == "on":
    cpu.activate()
import mlx.core as mx

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

mx.set_cache_limit(0)  # MLX frees every buffer at once, so only the C library can keep one
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    mx.eval(mx.zeros((16, 1024, 1024)) + 1)  # 64 MB
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
held = resident()
device.release_memory()
print(json.dumps({"faults": faults, "released": held - resident()}))
"""


@linux_only
def test_freed_memory_is_reused_and_returned_on_request() -> None:
    off, on = output(TOUCH, "off"), output(TOUCH, "on")
    assert on["faults"] < off["faults"] / 4
    assert on["released"] > 50e6
