"""The memory plan: what it counts, what it chooses, when it refuses."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from mlx_distill.errors import MachineError
from mlx_distill.models.load import Student, load_student
from mlx_distill.models.tokenize import TokenizedChat
from mlx_distill.train import TrainConfig
from mlx_distill.train.execution import Execution
from mlx_distill.train.lora import make_trainable
from mlx_distill.train.memory_plan import MAX_TOKENS, USABLE_FRACTION, check_weights_fit, make_plan
from mlx_distill.train.objectives.sft import Sft
from tests.support.training import quantized

ROWS = tuple(TokenizedChat(tuple(range(500)), (False,) * 100 + (True,) * 400) for _ in range(8))
TWO_STREAMS = Execution((mx.new_stream(mx.cpu), mx.new_stream(mx.cpu)))


@pytest.fixture
def config(tiny_student: Path, tmp_path: Path) -> TrainConfig:
    return TrainConfig(model=tiny_student, data=tmp_path, adapter=tmp_path / "adapter", batch_size=8)


@pytest.fixture
def student(config: TrainConfig) -> Student:
    student = load_student(config.model, dtype=mx.float32)
    make_trainable(student, config)
    return student


@pytest.mark.parametrize(("method", "copies"), [("lora", 4), ("dora", 4), ("full", 7)])
def test_weights_and_optimiser_are_counted(config: TrainConfig, method: str, copies: int) -> None:
    student = load_student(config.model, dtype=mx.float32)
    chosen = config.replace(method=method)
    make_trainable(student, chosen)
    estimate = make_plan(Sft(chosen, student), ROWS, TWO_STREAMS, 1 << 40).estimate
    assert estimate
    trainable = sum(value.size for _, value in tree_flatten(student.model.trainable_parameters()))
    assert estimate.weights == 4 * (0 if method == "full" else student.n_parameters)
    assert estimate.trained == 4 * copies * trainable
    assert estimate.total == estimate.weights + estimate.trained + estimate.activations + estimate.loss


def test_less_memory_gives_smaller_micro_batches(student: Student, config: TrainConfig) -> None:
    roomy = make_plan(Sft(config, student), ROWS, TWO_STREAMS, 1 << 40)
    assert roomy.micro_batch_tokens == MAX_TOKENS
    assert roomy.estimate
    tight = make_plan(Sft(config, student), ROWS, TWO_STREAMS, int(0.6 * roomy.estimate.total / USABLE_FRACTION))
    assert tight.estimate
    assert tight.micro_batch_tokens < roomy.micro_batch_tokens
    assert tight.estimate.total <= 0.6 * roomy.estimate.total


def test_gradient_checkpointing_keeps_less(student: Student, config: TrainConfig) -> None:
    plain = make_plan(Sft(config, student), ROWS, TWO_STREAMS, 1 << 40).estimate
    less = make_plan(Sft(config.replace(grad_checkpoint=True), student), ROWS, TWO_STREAMS, 1 << 40).estimate
    assert plain and less and less.activations < plain.activations


def test_too_little_memory_is_refused_with_advice(student: Student, config: TrainConfig) -> None:
    with pytest.raises(MachineError, match="Training needs about") as error:
        make_plan(Sft(config.replace(method="full"), student), ROWS, TWO_STREAMS, 1 << 20)
    assert "--method lora" in error.value.next_step
    assert "--grad-checkpoint" in error.value.next_step
    assert "--micro-batch-tokens 256" in error.value.next_step


def test_micro_batches_of_the_user_are_kept(student: Student, config: TrainConfig) -> None:
    plan = make_plan(Sft(config.replace(micro_batch_tokens=4000), student), ROWS, TWO_STREAMS, 1 << 20)
    assert plan.micro_batch_tokens == 4000
    assert not plan.fits


def test_an_unknown_architecture_has_no_estimate(student: Student, config: TrainConfig) -> None:
    del student.config["intermediate_size"]
    assert make_plan(Sft(config, student), ROWS, TWO_STREAMS, 1 << 20).estimate is None


def test_weights_are_checked_before_they_are_loaded(student: Student, config: TrainConfig, tmp_path: Path) -> None:
    n_bytes = 4 * student.n_parameters
    check_weights_fit(config, 4, int(n_bytes / USABLE_FRACTION) + 1)
    with pytest.raises(MachineError, match="for the weights alone"):
        check_weights_fit(config, 4, int(n_bytes / USABLE_FRACTION) - 10)
    small = config.replace(model=quantized(config.model, tmp_path / "q4"))
    check_weights_fit(small, 4, n_bytes // 2)
