"""The result that `train` prints."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlx_distill.cli.train import print_result
from mlx_distill.train import TrainResult


def test_a_teacher_equal_to_the_student_prints(capsys: pytest.CaptureFixture[str]) -> None:
    """The KL before training is 0, and no step is better."""
    result = TrainResult(
        adapter=Path("adapters/a"),
        n_trainable=1,
        n_parameters=100,
        steps=3,
        epochs=1.0,
        stopped="finished",
        best_step=0,
        valid_loss_before=2.0,
        valid_loss=2.0,
        valid_accuracy_before=0.5,
        valid_accuracy=0.5,
        valid_kl_before=0.0,
        valid_kl=0.0,
        n_train_rows=6,
        n_valid_rows=1,
        n_valid_tokens=45,
        supervised_tokens=270,
        supervised_tokens_per_second=100.0,
        peak_bytes=1,
        estimated_bytes=0,
        seconds=1.0,
    )
    print_result(result)
    shown = capsys.readouterr().out
    assert "0.000 → 0.000 to the teacher" in shown
    assert "no step was better than the base" in shown and "1 row, 45 tokens" in shown
