"""Files of earlier stages are read as far as they can be."""

from __future__ import annotations

import json
from pathlib import Path

from mlx_distill.compare.history import read_collected, read_training
from mlx_distill.compare.report import TrainingStep
from tests.support.comparing import write_lines


def test_empty_folders_say_nothing(tmp_path: Path) -> None:
    assert read_collected(tmp_path) is None
    assert read_training(tmp_path) is None


def test_index_counts_answers_and_journal_prices_them(tmp_path: Path) -> None:
    journal = [
        {"key": "a", "teacher": "anthropic:x", "model": "x-1", "cost_usd": 0.5},
        {"key": "b", "teacher": "anthropic:x", "model": "x-1", "cost_usd": None},
        {"key": "of other prompts", "model": "y", "cost_usd": 9.0},
    ]
    write_lines(tmp_path / "teacher_data.jsonl", journal)
    (tmp_path / "collect.json").write_text(json.dumps({"answers": [{"key": key} for key in "abc"]}))
    found = read_collected(tmp_path)
    assert found
    assert (found.n_prompts, found.n_answered, found.models, found.cost_usd, found.n_priced) == (3, 2, ("x-1",), 0.5, 1)


def test_training_steps_survive_damaged_lines(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 0, "valid_loss": 2.0, "valid_accuracy": 0.5}\n{"step": 1, "train_loss": NaN}\n{broken\n[1]\n'
        '{"step": 2, "train_loss": 1.5, "train_accuracy": "high"}\n'
    )
    found = read_training(tmp_path)
    assert found
    assert found.steps == (
        TrainingStep(0, valid_loss=2.0, valid_accuracy=0.5),
        TrainingStep(1),
        TrainingStep(2, train_loss=1.5),
    )
