from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from mlx_distill.config import parse
from mlx_distill.errors import InputError
from mlx_distill.train import TrainConfig


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "epochs = 0"),
        ({"rank": 0}, "rank = 0"),
        ({"learning_rate": 0.0}, "learning_rate = 0.0"),
        ({"learning_rate": math.nan}, "learning_rate"),
        ({"learning_rate": math.inf}, "must be finite"),
        ({"dropout": 1.0}, "dropout = 1.0"),
        ({"warmup": 1.5}, "warmup = 1.5"),
        ({"schedule": "exponential"}, "not one of cosine"),
        ({"method": "qlora"}, "not one of lora"),
        ({"resume": True, "force": True}, "exclude"),
        ({"method": "full", "dropout": 0.1}, "belong to a low-rank update"),
        ({"grad_checkpoint": True, "dropout": 0.1}, "exclude"),
        ({"preset": "dmeo"}, "not one of"),
        ({"preset": "demo", "epochs": 5}, "preset 'demo' sets epochs to 3, and epochs is 5"),
    ],
)
def test_wrong_settings_are_refused(config: TrainConfig, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config.replace(**change)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("micro_tokens", "micro_batch_tokens"),
        ("clip", "max_grad_norm"),
        ("minutes", "time_budget_minutes"),
        ("evaluate_every", "eval_every"),
    ],
)
def test_old_names_are_refused_with_the_new_name(old: str, new: str) -> None:
    with pytest.raises(InputError) as error:
        parse(TrainConfig, {"model": "m", "data": "d", "adapter": "a", old: 1}, "distill.toml")
    assert error.value.problems == (f"{old} is called {new} now",)


def test_a_preset_leaves_other_settings_alone(config: TrainConfig) -> None:
    preset = config.replace(preset="demo", epochs=3, learning_rate=1e-4)
    assert (preset.rank, preset.alpha, preset.learning_rate) == (4, 16.0, 1e-4)


def test_inputs_and_outputs() -> None:
    config = TrainConfig(Path("m"), Path("d"), Path("a"))
    assert config.inputs() == [Path("m"), Path("d/train.jsonl"), Path("d/valid.jsonl")]
    assert config.outputs() == [Path("a/adapters.safetensors"), Path("a/adapter_config.json")]
