"""The trained weights: LoRA, DoRA, all weights; chosen layers; gradient checkpointing; the demo preset."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten
from mlx_lm import load
from mlx_lm.models import qwen2

from mlx_distill.errors import InputError
from mlx_distill.models.adapter import load_adapter
from mlx_distill.models.load import Student, load_student
from mlx_distill.models.score import pad
from mlx_distill.train import TrainConfig
from mlx_distill.train.lora import make_trainable
from mlx_distill.train.objectives.sft import sft_loss
from mlx_distill.train.run import run
from mlx_distill.train.step import scalar
from tests.support.training import quantized, read_metrics, read_weights, tokenized

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
"""The shape in the config.json of Qwen/Qwen2.5-0.5B-Instruct."""


def test_the_demo_preset_trains_as_many_weights_as_the_demo(tmp_path: Path) -> None:
    config = TrainConfig(tmp_path, tmp_path, tmp_path / "adapter", preset="demo")
    model = qwen2.Model(qwen2.ModelArgs.from_dict(QWEN2_5_05B))  # lazy: its weights are never computed
    student = Student(tmp_path, model, None, QWEN2_5_05B, mx.bfloat16)  # no tokenizer
    make_trainable(student, config)
    trainable = sum(value.size for _, value in tree_flatten(model.trainable_parameters()))
    assert trainable == 1_658_880
    assert student.n_parameters == 494_032_768
    assert config.epochs == 3


def test_dora_is_read_by_mlx_lm(config: TrainConfig) -> None:
    result = run(config.replace(method="dora"))
    assert result.valid_loss < result.valid_loss_before - 0.1
    assert {name.rsplit(".", 1)[1] for name in read_weights(config.adapter)} == {"lora_a", "lora_b", "m"}
    load(str(config.model), adapter_path=str(config.adapter))
    assert not load_adapter(load_student(config.model), config.adapter).is_zero


def test_full_training_trains_all_weights(config: TrainConfig) -> None:
    result = run(config.replace(method="full", learning_rate=1e-3))
    assert result.n_trainable == result.n_parameters
    assert result.valid_loss < result.valid_loss_before - 0.1
    assert json.loads((config.adapter / "adapter_config.json").read_text())["fine_tune_type"] == "full"
    with pytest.raises(InputError, match="all weights") as error:
        load_adapter(load_student(config.model), config.adapter)
    assert "python -m mlx_lm fuse" in error.value.next_step


def test_a_quantised_student_trains_only_a_low_rank_update(config: TrainConfig, tmp_path: Path) -> None:
    small = config.replace(model=quantized(config.model, tmp_path / "q4"))
    result = run(small)
    assert result.valid_loss < result.valid_loss_before - 0.1
    with pytest.raises(InputError, match="quantised"):
        run(small.replace(method="full", adapter=tmp_path / "full"))
    assert not (tmp_path / "full").exists()


def test_only_target_layers_are_adapted(config: TrainConfig) -> None:
    run(config.replace(epochs=1, targets=("self_attn.q_proj", "mlp.down_proj")))
    adapted = {name.rsplit(".", 1)[0].split(".", 3)[-1] for name in read_weights(config.adapter)}
    assert adapted == {"self_attn.q_proj", "mlp.down_proj"}
    with pytest.raises(InputError, match="has no layer attn_q") as error:
        run(config.replace(targets=("attn_q",), force=True))
    assert "self_attn.q_proj" in error.value.next_step


def test_cast_adapters_compute_in_the_type_of_the_activations(config: TrainConfig) -> None:
    losses, gradients = [], []
    for cast in (False, True):
        student = load_student(config.model, dtype=mx.bfloat16)
        make_trainable(student, config, cast_adapters=cast)
        layer = student.model.layers[0].mlp.up_proj
        layer.lora_b = mx.random.normal(layer.lora_b.shape, key=mx.random.key(1)) / 10
        assert layer.lora_a.dtype == layer.lora_b.dtype == mx.float32
        assert layer(mx.ones((1, 64), mx.bfloat16)).dtype == mx.bfloat16
        batch = pad(tokenized(config.data / "train.jsonl", student))
        (loss, _), gradient = nn.value_and_grad(student.model, partial(sft_loss, student))(batch)
        losses.append(scalar(loss))
        gradients.append(gradient["model"]["layers"][0]["mlp"]["up_proj"]["lora_a"])
    assert losses[0] != losses[1]
    assert math.isclose(losses[0], losses[1], rel_tol=5e-3)
    assert gradients[1].dtype == mx.float32
    assert scalar(mx.linalg.norm(gradients[0] - gradients[1])) < 0.05 * scalar(mx.linalg.norm(gradients[0]))


def test_gradient_checkpointing_trains_the_same(config: TrainConfig, tmp_path: Path) -> None:
    plain = qwen2.TransformerBlock.__call__
    run(config)
    run(config.replace(grad_checkpoint=True, adapter=tmp_path / "again"))
    assert qwen2.TransformerBlock.__call__ is plain
    for one, other in zip(read_metrics(config.adapter)[1:], read_metrics(tmp_path / "again")[1:], strict=True):
        assert math.isclose(one["train_loss"], other["train_loss"], rel_tol=1e-4)
        assert math.isclose(one["gradient_norm"], other["gradient_norm"], rel_tol=1e-3)
