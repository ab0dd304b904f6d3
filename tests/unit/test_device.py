"""The device: compute type, fallback to the CPU, streams of each thread."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator

import mlx.core as mx
import pytest

from mlx_distill import device
from mlx_distill.errors import InputError

HARDWARE = {"cpu": device.Device("cpu", "a CPU", 1, None), "metal": device.Device("metal", "a GPU", 1, None)}


@pytest.mark.parametrize(
    ("kind", "wanted", "expected"),
    [
        ("cpu", "", mx.float32),
        ("metal", "", mx.bfloat16),
        ("cpu", "bfloat16", mx.bfloat16),
        ("metal", "float32", mx.float32),
        ("metal", "float16", mx.float16),
    ],
)
def test_compute_type(kind: str, wanted: str, expected: mx.Dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLX_DISTILL_DTYPE", wanted)
    assert HARDWARE[kind].dtype == expected


def test_an_unknown_compute_type_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLX_DISTILL_DTYPE", "float8")
    with pytest.raises(InputError, match="float8") as error:
        _ = HARDWARE["cpu"].dtype
    assert "float32, bfloat16, float16" in error.value.next_step


@pytest.fixture
def fresh_prepare() -> Iterator[None]:
    device.prepare.cache_clear()
    yield
    device.prepare.cache_clear()


@pytest.mark.usefixtures("fresh_prepare")
@pytest.mark.parametrize(("n_gpus", "kind"), [(0, "cpu"), (1, "metal")])
def test_a_mac_without_a_visible_gpu_computes_on_the_cpu(
    n_gpus: int, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    defaults: list[mx.DeviceType] = []
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    monkeypatch.setattr(mx, "device_count", lambda _kind: n_gpus)
    monkeypatch.setattr(mx, "device_info", lambda: {"device_name": "Apple M9", "memory_size": 8})
    monkeypatch.setattr(mx, "set_default_device", defaults.append)
    monkeypatch.setattr(mx, "set_cache_limit", lambda _limit: None)
    prepared = device.prepare()
    assert prepared.kind == kind
    assert ("No GPU is visible" in prepared.warning) == (kind == "cpu")
    assert defaults == ([mx.cpu] if kind == "cpu" else [])


@pytest.mark.usefixtures("fresh_prepare")
@pytest.mark.parametrize(
    ("gigabytes", "is_own", "limits"), [(4, True, [1 << 30]), (64, True, [2 << 30]), (4, False, [])]
)
def test_metal_has_a_cache_limit_in_our_own_process(
    gigabytes: int, is_own: bool, limits: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    set_limits: list[int] = []
    monkeypatch.setattr(device._process, "is_own", is_own)
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    monkeypatch.setattr(mx, "device_count", lambda _kind: 1)
    monkeypatch.setattr(mx, "device_info", lambda: {"memory_size": gigabytes << 30})
    monkeypatch.setattr(mx, "set_cache_limit", set_limits.append)
    device.prepare()
    assert set_limits == limits


@pytest.mark.parametrize(
    ("kind", "file_dtype", "wanted", "expected"),
    [
        ("metal", "float16", "", mx.float16),
        ("metal", "bfloat16", "", mx.bfloat16),
        ("metal", "float32", "", mx.bfloat16),
        ("metal", "float16", "float32", mx.float32),
        ("cpu", "float16", "", mx.float32),
    ],
)
def test_inference_keeps_float16_files_on_metal(
    kind: str, file_dtype: str, wanted: str, expected: mx.Dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLX_DISTILL_DTYPE", wanted)
    assert HARDWARE[kind].dtype_for(file_dtype) == expected


def test_the_open_file_limit_is_raised() -> None:
    code = "import resource as r; r.setrlimit(r.RLIMIT_NOFILE, (256, r.getrlimit(r.RLIMIT_NOFILE)[1]));"
    code += "from mlx_distill.device import configure_process as c; c(); print(*r.getrlimit(r.RLIMIT_NOFILE))"
    soft, hard = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert int(soft) == (4096 if int(hard) < 0 else min(4096, int(hard)))


def test_streams_work_in_every_thread() -> None:
    sums: list[object] = []

    def add() -> None:
        for stream in device.streams():
            with mx.stream(stream):
                sums.append((mx.ones(3) + 1).sum().item())

    for _ in range(2):
        thread = threading.Thread(target=add)
        thread.start()
        thread.join()
    add()
    assert sums == [6.0] * 3 * len(device.streams())
