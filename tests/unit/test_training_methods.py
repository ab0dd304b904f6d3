"""What is trained, and how: low-rank updates, all weights, quantised students, checkpointed layers, objectives."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten

from mlx_distill.errors import InputError
from mlx_distill.events import ignore
from mlx_distill.models.adapter import attach
from mlx_distill.models.load import Student, load_student
from mlx_distill.models.score import Batch, pad
from mlx_distill.models.tokenize import Rendered
from mlx_distill.records import Example
from mlx_distill.train import TrainConfig
from mlx_distill.train.cpu_kernels import sooner_layers
from mlx_distill.train.lora import make_trainable
from mlx_distill.train.objectives import OBJECTIVES, Objective, padded, sft, sft_row
from mlx_distill.train.rows import read_rows
from mlx_distill.train.run import run
from tests.support.rows import make_rows
from tests.support.tiny import make_tiny_qwen2
from tests.support.training import metrics_of, quantized, weights_of


@pytest.fixture
def config(tiny_student: Path, tmp_path: Path) -> TrainConfig:
    rows = make_rows(tmp_path / "rows")
    return TrainConfig(model=tiny_student, data=rows, adapter=tmp_path / "adapter", epochs=2, learning_rate=5e-3)


QWEN2_5_05B = {
    "model_type": "qwen2",
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "vocab_size": 151_936,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
}
"""What config.json of Qwen/Qwen2.5-0.5B-Instruct says of its shape."""


def test_the_demo_preset_trains_what_the_demo_trained_of_qwen(tmp_path: Path) -> None:
    from mlx_lm.models.qwen2 import Model, ModelArgs

    config = TrainConfig(tmp_path, tmp_path, tmp_path / "adapter", preset="demo")
    model = Model(ModelArgs.from_dict(QWEN2_5_05B))  # nothing asks for its weights, so none are made
    student = Student(tmp_path, model, None, QWEN2_5_05B, mx.bfloat16)
    make_trainable(student, config)
    trainable = sum(value.size for _, value in tree_flatten(model.trainable_parameters()))
    assert trainable == 1_658_880
    assert student.n_parameters == 494_032_768
    assert f"{trainable / student.n_parameters:.1%}" == "0.3%"
    assert config.epochs == 3


def test_a_setting_that_contradicts_a_preset_is_refused_and_one_beside_it_stands(tmp_path: Path) -> None:
    paths = (tmp_path, tmp_path, tmp_path / "adapter")
    assert TrainConfig(*paths, preset="demo", learning_rate=1e-4).learning_rate == 1e-4
    with pytest.raises(ValueError, match="preset 'demo' sets rank to 4, and rank is 16"):
        TrainConfig(*paths, preset="demo", rank=16)
    with pytest.raises(ValueError, match="'dmeo', not one of demo"):
        TrainConfig(*paths, preset="dmeo")


def test_dora_learns_and_mlx_lm_and_attach_read_it(config: TrainConfig) -> None:
    from mlx_lm import load

    result = run(config.replace(method="dora"))
    assert result.valid_loss < result.valid_loss_before - 0.1
    assert {name.rsplit(".", 1)[1] for name in weights_of(config.adapter)} == {"lora_a", "lora_b", "m"}
    load(str(config.model), adapter_path=str(config.adapter))
    assert not attach(load_student(config.model), config.adapter).is_zero


def test_all_weights_are_trained_and_mlx_lm_makes_a_model_of_them(config: TrainConfig, tmp_path: Path) -> None:
    result = run(config.replace(method="full", learning_rate=1e-3))
    assert result.n_trainable == result.n_parameters
    assert result.valid_loss < result.valid_loss_before - 0.1
    assert json.loads((config.adapter / "adapter_config.json").read_text())["fine_tune_type"] == "full"
    with pytest.raises(InputError, match="all weights") as error:
        attach(load_student(config.model), config.adapter)
    assert "python -m mlx_lm fuse" in error.value.next_step
    out = tmp_path / "out"
    places = ["--model", config.model, "--adapter-path", config.adapter, "--save-path", out]
    subprocess.run([sys.executable, "-m", "mlx_lm", "fuse", *map(str, places)], check=True, capture_output=True)
    made = dict(tree_flatten(load_student(out).model.parameters()))
    trained = weights_of(config.adapter)
    assert all(mx.array_equal(made[name], mx.array(value)) for name, value in trained.items())


def test_a_quantised_student_learns_a_low_rank_update_but_not_all_weights(config: TrainConfig, tmp_path: Path) -> None:
    small = config.replace(model=quantized(config.model, tmp_path / "q4"))
    result = run(small)
    assert result.valid_loss < result.valid_loss_before - 0.1
    with pytest.raises(InputError, match="quantised"):
        run(replace(small, method="full", adapter=tmp_path / "full"))
    assert not (tmp_path / "full").exists()


def test_checkpointed_layers_learn_the_same_and_are_plain_again_afterwards(config: TrainConfig, tmp_path: Path) -> None:
    from mlx_lm.models.qwen2 import TransformerBlock

    plain = TransformerBlock.__call__
    run(config)
    run(config.replace(grad_checkpoint=True, adapter=tmp_path / "again"))
    assert TransformerBlock.__call__ is plain
    for one, other in zip(metrics_of(config.adapter)[1:], metrics_of(tmp_path / "again")[1:], strict=True):
        assert math.isclose(one["train_loss"], other["train_loss"], rel_tol=1e-4)
        assert math.isclose(one["gradient_norm"], other["gradient_norm"], rel_tol=1e-3)


@pytest.mark.parametrize(
    "change", [{"method": "qlora"}, {"method": "full", "dropout": 0.1}, {"grad_checkpoint": True, "dropout": 0.1}]
)
def test_settings_that_exclude_each_other_are_refused(config: TrainConfig, change: dict) -> None:
    with pytest.raises(ValueError, match=r"method|dropout"):
        config.replace(**change)


@pytest.mark.parametrize(
    ("head", "method", "dtype", "close"),
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
def test_loss_and_gradients_equal_a_plain_reference(
    config: TrainConfig, tmp_path: Path, head: str, method: str, dtype: mx.Dtype, close: float
) -> None:
    """`close` bounds the loss relative to its size, and each gradient's difference relative to that gradient's norm."""
    model = make_tiny_qwen2(tmp_path / "model", tied=head == "tied")
    if head == "quantised":
        model = quantized(model, tmp_path / "q4")
    student = load_student(model, dtype=dtype)
    rows = read_rows(config.data / "train.jsonl", student, OBJECTIVES["sft"], 1024).rows
    make_trainable(student, config.replace(model=model, method=method))
    for name, module in student.model.named_modules():
        if "lora_b" in module:  # zero at the start, which would hide half of the gradients
            module.lora_b = 0.05 * mx.random.normal(module.lora_b.shape, key=mx.random.key(len(name)))
    batch = pad(rows, 8)

    def plain() -> mx.array:
        logits = student.model(batch.inputs).astype(mx.float32)
        chosen = logits.reshape(-1, logits.shape[-1])[batch.positions]
        return nn.losses.cross_entropy(chosen, batch.targets, reduction="sum")

    loss, expected = nn.value_and_grad(student.model, plain)()
    with sooner_layers(student):  # as in training
        (ours, _), gradients = nn.value_and_grad(student.model, lambda: sft(student, batch))()
    assert math.isclose(loss.item(), ours.item(), rel_tol=close)
    expected_of = dict(tree_flatten(expected))
    assert expected_of
    for name, value in tree_flatten(gradients):
        wanted = expected_of[name].astype(mx.float32)
        norm = mx.linalg.norm(wanted).item()
        assert mx.linalg.norm(value.astype(mx.float32) - wanted).item() <= 2 * close * norm + 1e-6, name


@dataclass(frozen=True)
class Soft(Rendered):
    """A row with what the teacher would rather have said at each token."""

    likely: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class SoftBatch(Batch):
    """Those of a batch, token after token."""

    likely: tuple[tuple[int, float], ...] = ()


def test_an_objective_with_the_teachers_probabilities_needs_nothing_of_the_loop(config: TrainConfig) -> None:
    def row(student: Student, example: Example) -> Soft:
        plain = sft_row(student, example)
        return Soft(plain.tokens, plain.mask, tuple((token, 0.5) for token in plain.tokens))

    def batch(student: Student, rows: Sequence[Rendered]) -> SoftBatch:
        likely = [
            row.likely[index]
            for row in rows
            if isinstance(row, Soft)
            for index in range(1, len(row.tokens))
            if row.mask[index]
        ]
        return SoftBatch(**vars(padded(student, rows)), likely=tuple(likely))

    def loss(student: Student, batch: Batch) -> tuple[mx.array, mx.array]:
        assert isinstance(batch, SoftBatch)
        total, correct = sft(student, batch)
        return total * batch.likely[0][1], correct

    soft = run(config, ignore, objective=Objective(row, batch, loss))
    assert soft.valid_loss < soft.valid_loss_before - 0.1
    halved = metrics_of(config.adapter)[1]["train_loss"]
    run(config.replace(force=True))
    assert math.isclose(metrics_of(config.adapter)[1]["train_loss"], 2 * halved, rel_tol=1e-5)
