"""The compiled step, as on Metal, does what the eager step does. Here MLX compiles for the CPU, which takes seconds."""

from __future__ import annotations

import os
import platform
import signal
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_distill.device import Device
from mlx_distill.errors import Interrupted
from mlx_distill.events import Event, Progress
from mlx_distill.models.score import Batch
from mlx_distill.train import TrainConfig
from mlx_distill.train.execution import Execution
from mlx_distill.train.run import run
from mlx_distill.train.step import pad_targets
from tests.support.tiny import make_tiny_qwen2
from tests.support.training import read_metrics, same_weights

TOLERANCE = 0.0 if platform.machine() == "x86_64" else 1e-5
"""Bit-equal, unless the compiler fuses multiplications and additions (ARM). Such a difference in the last digit of the
first update, 3e-7 of the largest value, grows to 3e-6 in three: AdamW divides small gradients by their size."""
STREAM = (mx.default_stream(mx.cpu),)
EAGER, COMPILED = Execution(STREAM, length_multiple=32), Execution(STREAM, compiled=True, length_multiple=32)


@pytest.fixture
def short(config: TrainConfig, tmp_path: Path) -> TrainConfig:
    """Return a run over three batches of up to four rows, with one layer: few kernels to compile."""
    return config.replace(model=make_tiny_qwen2(tmp_path / "model", layers=1), epochs=1, checkpoint_every=1)


def trained_state(folder: Path) -> dict[str, Any]:
    """Return the adapter and the optimizer's state in a checkpoint."""
    loaded: Any = mx.load(str(folder / "checkpoint.safetensors"))
    return {name: np.array(value) for name, value in loaded.items()}


@pytest.mark.parametrize(
    "change", [{"micro_batch_tokens": 200}, {"grad_checkpoint": True}, {"method": "full", "learning_rate": 1e-3}]
)
def test_compiled_training_equals_eager_training(short: TrainConfig, tmp_path: Path, change: dict[str, Any]) -> None:
    eager, compiled = (short.replace(adapter=tmp_path / name, **change) for name in ("eager", "compiled"))
    run(eager, execution=EAGER)
    run(compiled, execution=COMPILED)
    for one, other in zip(read_metrics(eager.adapter)[1:], read_metrics(compiled.adapter)[1:], strict=True):
        assert one["train_loss"] == pytest.approx(other["train_loss"], rel=TOLERANCE)
        assert one["gradient_norm"] == pytest.approx(other["gradient_norm"], rel=TOLERANCE)
        assert one["train_accuracy"] == other["train_accuracy"]
        assert one["supervised_tokens"] == other["supervised_tokens"]
    before, after = trained_state(eager.adapter), trained_state(compiled.adapter)
    assert before.keys() == after.keys()
    for name, value in before.items():
        np.testing.assert_allclose(value, after[name], rtol=0, atol=TOLERANCE * np.abs(value).max(), err_msg=name)


def test_the_step_of_a_mac_is_near_the_float32_step(short: TrainConfig, tmp_path: Path) -> None:
    """Compiled, in bfloat16, with cast adapters: what a Mac computes."""
    exact, mac = short.replace(adapter=tmp_path / "exact"), short.replace(adapter=tmp_path / "mac")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLX_DISTILL_DTYPE", "float32")
        run(exact, execution=EAGER)
        patch.setenv("MLX_DISTILL_DTYPE", "bfloat16")
        run(mac, execution=Execution(STREAM, compiled=True, cast_adapters=True, length_multiple=32))
    for one, other in zip(read_metrics(exact.adapter)[1:], read_metrics(mac.adapter)[1:], strict=True):
        assert one["train_loss"] == pytest.approx(other["train_loss"], rel=2**-7)
        assert one["gradient_norm"] == pytest.approx(other["gradient_norm"], rel=2**-5)
    before, after = trained_state(exact.adapter), trained_state(mac.adapter)
    assert all(value.dtype == after[name].dtype for name, value in before.items())


@pytest.mark.parametrize("execution", [EAGER, COMPILED])
def test_resume_is_exact_in_both_forms(short: TrainConfig, tmp_path: Path, execution: Execution) -> None:
    short = short.replace(dropout=0.1, epochs=2)
    whole = short.replace(adapter=tmp_path / "whole")
    run(whole, execution=execution)

    def interrupt(event: Event) -> None:
        if isinstance(event, Progress) and event.job == "train" and event.done == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        run(short, interrupt, execution=execution)
    run(short.replace(resume=True), execution=execution)
    assert same_weights(short.adapter / "last", whole.adapter / "last")
    ours, theirs = trained_state(short.adapter), trained_state(whole.adapter)
    assert all(np.array_equal(ours[name], value) for name, value in theirs.items())


def test_targets_are_padded_to_four_sizes() -> None:
    for n_targets in range(1, 65):
        batch = Batch(mx.zeros((2, 32)), mx.arange(n_targets), mx.ones(n_targets, mx.int32), (n_targets,))
        padded = pad_targets(batch)
        assert padded.targets.size in (16, 32, 48, 64)
        assert padded.positions.size == padded.targets.size
        assert (padded.targets >= 0).sum().item() == n_targets
        assert padded.n_supervised == n_targets


@pytest.mark.parametrize(("kind", "multiple"), [("metal", 32), ("cpu", 8)])
def test_only_metal_compiles(kind: str, multiple: int) -> None:
    execution = Execution.on(Device(kind, "a device", 1, None))
    assert execution.compiled == execution.cast_adapters == (kind == "metal")
    assert execution.length_multiple == multiple
