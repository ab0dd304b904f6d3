"""The learning rate over a run."""

from __future__ import annotations

import pytest

from mlx_distill.train import TrainConfig
from mlx_distill.train.schedule import MIN_LR_RATIO, learning_rate


@pytest.mark.parametrize(
    ("schedule", "progress", "expected"),
    [
        ("cosine", 0.0, MIN_LR_RATIO),
        ("cosine", 0.1, 0.5),
        ("cosine", 0.2, 1.0),
        ("cosine", 0.6, 0.5 + MIN_LR_RATIO / 2),
        ("linear", 0.6, 0.5 + MIN_LR_RATIO / 2),
        ("linear", 0.4, 0.75 + MIN_LR_RATIO / 4),
        ("constant", 0.6, 1.0),
        ("cosine", 1.0, MIN_LR_RATIO),
        ("linear", 7.0, MIN_LR_RATIO),
    ],
)
def test_learning_rate(config: TrainConfig, schedule: str, progress: float, expected: float) -> None:
    settings = config.replace(learning_rate=1.0, warmup=0.2, schedule=schedule)
    assert learning_rate(settings, progress) == pytest.approx(expected)
