"""The record of a training run, as later stages read it."""

from __future__ import annotations

from pathlib import Path

from mlx_distill.training_run import MetricPoint, TrainingRun


def test_settings_and_figures_come_back(tmp_path: Path) -> None:
    TrainingRun({"rank": 8, "model": Path("models/m")}, {"steps": 6}).save(tmp_path)
    assert TrainingRun.load(tmp_path) == TrainingRun({"rank": 8, "model": "models/m"}, {"steps": 6})


def test_metrics_without_a_finished_run(tmp_path: Path) -> None:
    lines = [
        '{"step": 0, "epoch": 0, "valid_loss": 2.5, "valid_accuracy": 0.5, "peak_bytes": 0}',
        '{"step": 2, "epoch": 1, "train_loss": 1.5}',
        '{"step": 1, "epoch": 0.5, "train_loss": 9.0}',
        '{"step": 1, "epoch": 0.5, "train_loss": 2.0}',
        "[1]",
        '{"step": "three"}',
        '{"step": 4, "train_loss": NaN}',
        '{"step": 3, "tra',
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    (tmp_path / "run.json").write_text("{")
    run = TrainingRun.load(tmp_path)
    assert run
    assert (run.settings, run.result) == ({}, {})
    assert run.points == (
        MetricPoint(step=0, epoch=0, valid_loss=2.5, valid_accuracy=0.5),
        MetricPoint(step=1, epoch=0.5, train_loss=2.0),
        MetricPoint(step=2, epoch=1, train_loss=1.5),
    )


def test_a_folder_of_another_program_says_nothing(tmp_path: Path) -> None:
    assert TrainingRun.load(tmp_path / "missing") is None
    (tmp_path / "run.json").write_text('{"settings": 7}')
    assert TrainingRun.load(tmp_path) is None
