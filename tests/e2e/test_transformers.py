"""A fused folder is a Hugging Face model: transformers with torch loads it and computes what MLX computes."""

from __future__ import annotations

from pathlib import Path

from mlx_distill.fuse import FuseConfig
from mlx_distill.fuse.run import run
from tests.support.adapters import make_adapter, write_test_rows
from tests.support.in_transformers import check_in_transformers
from tests.support.tiny import make_tiny_qwen2


def test_a_fused_qwen2_gives_the_same_logits(transformers_python: Path, tmp_path: Path) -> None:
    base = make_tiny_qwen2(tmp_path / "base")
    adapter = make_adapter(base, tmp_path / "adapter")
    fused = run(FuseConfig(base, adapter, write_test_rows(tmp_path / "data", 2), tmp_path / "fused")).path
    check_in_transformers(transformers_python, fused)
