"""A small training job for the tests of this package."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlx_distill.train import TrainConfig
from tests.support.rows import make_rows


@pytest.fixture(scope="package")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_rows(tmp_path_factory.mktemp("rows"))


@pytest.fixture
def config(tiny_student: Path, rows: Path, tmp_path: Path) -> TrainConfig:
    """Return six steps: ten rows in batches of four, two epochs."""
    return TrainConfig(
        model=tiny_student,
        data=rows,
        adapter=tmp_path / "adapter",
        epochs=2,
        batch_size=4,
        learning_rate=5e-3,
        checkpoint_every=2,
    )
