"""One training step: its loss and gradients against references, and gradient accumulation."""

from __future__ import annotations

import math
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten
from mlx_lm.tuner.trainer import default_loss

from mlx_distill.models.load import load_student
from mlx_distill.models.score import Batch, pad
from mlx_distill.train import TrainConfig
from mlx_distill.train.cpu_kernels import fast_layers
from mlx_distill.train.data import read_rows
from mlx_distill.train.execution import Execution
from mlx_distill.train.lora import make_trainable
from mlx_distill.train.objectives import OBJECTIVES
from mlx_distill.train.objectives.sft import Sft, sft_loss
from mlx_distill.train.run import run
from mlx_distill.train.step import TrainStep, scalar
from tests.support.tiny import make_tiny_qwen2
from tests.support.training import quantized, read_metrics, tokenized


@pytest.mark.parametrize(
    ("head", "method", "dtype", "tolerance"),
    [
        ("tied", "lora", mx.float32, 1e-5),
        ("untied", "lora", mx.float32, 1e-5),
        ("quantised", "lora", mx.float32, 1e-5),
        ("tied", "full", mx.float32, 1e-5),
        ("untied", "full", mx.float32, 1e-5),
        ("tied", "dora", mx.float32, 1e-5),
        ("tied", "lora", mx.bfloat16, 2e-2),
    ],
)
@pytest.mark.parametrize("kernels", [True, False])
def test_loss_and_gradients_equal_a_plain_reference(
    config: TrainConfig, tmp_path: Path, head: str, method: str, dtype: mx.Dtype, tolerance: float, kernels: bool
) -> None:
    """`tolerance` is relative to the loss, and for each gradient's difference to the norm of that gradient."""
    model = make_tiny_qwen2(tmp_path / "model", tied=head == "tied")
    if head == "quantised":
        model = quantized(model, tmp_path / "q4")
    student = load_student(model, dtype=dtype)
    make_trainable(student, config.replace(model=model, method=method))
    for name, module in student.model.named_modules():
        if "lora_b" in module:  # it starts at zero, which would hide half of the gradients
            module.lora_b = 0.05 * mx.random.normal(module.lora_b.shape, key=mx.random.key(len(name)))
    batch = pad(tokenized(config.data / "train.jsonl", student), 8)

    def reference() -> mx.array:
        logits: mx.array = student.model(batch.inputs).astype(mx.float32)
        chosen = logits.reshape(-1, logits.shape[-1])[batch.positions]
        loss: mx.array = nn.losses.cross_entropy(chosen, batch.targets, reduction="sum")
        return loss

    loss, expected = nn.value_and_grad(student.model, reference)()
    with fast_layers(student, kernels):
        (ours, correct), gradients = nn.value_and_grad(student.model, lambda: sft_loss(student, batch))()
    assert math.isclose(loss.item(), ours.item(), rel_tol=tolerance)
    logits = student.model(batch.inputs).reshape(-1, student.config["vocab_size"])[batch.positions]
    if dtype == mx.float32:
        assert correct.item() == (mx.argmax(logits, axis=-1) == batch.targets).sum().item()
    expected_of = dict(tree_flatten(expected))
    assert expected_of
    for name, value in tree_flatten(gradients):
        wanted = expected_of[name].astype(mx.float32)
        norm = scalar(mx.linalg.norm(wanted))
        assert scalar(mx.linalg.norm(value.astype(mx.float32) - wanted)) <= 2 * tolerance * norm + 1e-6, name


def test_losses_equal_those_of_mlx_lm(config: TrainConfig) -> None:
    student = load_student(config.model, dtype=mx.float32)
    for row in tokenized(config.data / "train.jsonl", student):
        lengths = mx.array([[row.mask.index(True), len(row.tokens)]])
        theirs, count = default_loss(student.model, mx.array([(*row.tokens, 0)]), lengths)
        if count.item() != row.n_supervised:  # mlx-lm counts one token past the end of a row; give it none
            theirs, count = default_loss(student.model, mx.array([row.tokens]), lengths)
        assert count.item() == row.n_supervised
        ours, _ = sft_loss(student, pad([row]))
        assert math.isclose(scalar(theirs), scalar(ours) / row.n_supervised, rel_tol=1e-5)


@pytest.mark.parametrize(("micro_batch_tokens", "n_streams"), [(64, 1), (64, 2), (4096, 3)])
def test_accumulated_micro_batches_equal_one_batch(
    config: TrainConfig, micro_batch_tokens: int, n_streams: int
) -> None:
    def take(micro_batch_tokens: int, streams: list[mx.Stream]) -> tuple[float, float, int]:
        student = load_student(config.model, dtype=mx.float32)
        sft = Sft(config, student)
        rows = read_rows(config.data / "train.jsonl", sft, 1024)
        make_trainable(student, config)
        step = TrainStep(sft, rows, micro_batch_tokens, Execution(streams))
        step.optimizer.init(student.model.trainable_parameters())
        metrics = step.step(range(len(rows)), 1e-3, 1)
        assert metrics.supervised_tokens == sum(row.n_supervised for row in rows.chats)
        return metrics.train_loss, metrics.gradient_norm, metrics.tokens

    whole = take(1 << 20, [mx.default_stream(mx.cpu)])
    parts = take(micro_batch_tokens, [mx.new_stream(mx.cpu) for _ in range(n_streams)])
    assert parts[2] < whole[2], "rows of similar length share a micro-batch, so less padding is computed"
    assert math.isclose(whole[0], parts[0], rel_tol=1e-5)
    assert math.isclose(whole[1], parts[1], rel_tol=1e-4)


def test_a_new_objective_is_one_registration(config: TrainConfig) -> None:
    class Half(Sft):
        def loss(self, batch: Batch) -> tuple[mx.array, mx.array, mx.array]:
            loss, correct, cross_entropy = super().loss(batch)
            return loss / 2, correct, cross_entropy

    objectives = {**OBJECTIVES, "half": Half}
    result = run(config.replace(objective="half"), objectives=objectives)
    assert result.valid_loss < result.valid_loss_before - 0.1
    halved = read_metrics(config.adapter)[1]["train_loss"]
    run(config.replace(force=True), objectives=objectives)
    assert math.isclose(read_metrics(config.adapter)[1]["train_loss"], 2 * halved, rel_tol=1e-5)
