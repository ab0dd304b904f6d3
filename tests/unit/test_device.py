"""The device: compute type, fallback to the CPU, streams of each thread."""

from __future__ import annotations

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
    assert device.prepare().kind == kind
    assert defaults == ([mx.cpu] if kind == "cpu" else [])


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
