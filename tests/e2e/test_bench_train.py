"""`scripts/bench/train.py` on a tiny model: both trainers take the same steps, and both learn."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import REPOSITORY
from tests.support.rows import make_rows


def test_both_trainers_take_the_same_steps_and_learn(tiny_student: Path, tmp_path: Path) -> None:
    rows = make_rows(tmp_path / "rows", train=9, valid=4)
    command = [sys.executable, str(REPOSITORY / "scripts/bench/train.py"), "--json", "--runs", "1"]
    command += ["--model", str(tiny_student), "--data", str(rows), "--rows", "8", "--epochs", "3"]
    command += ["--learning-rate", "0.005"]
    quick = {**os.environ, "MLX_DISABLE_COMPILE": "1"}  # mlx_lm.lora would call a C++ compiler for 15 s
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, env=quick)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    sides = result["contestants"]
    assert set(sides) == {"mlx-distill", "mlx_lm.lora"}
    for side in sides.values():
        assert side["updates"] == 6
        assert side["test_loss"] < result["test_loss_before"] - 0.1
        assert side["peak_bytes"] > 50e6
    assert abs(result["against"]["mlx_lm.lora"]["loss"]) < 0.1
    tokens = result["supervised_tokens"] * 3
    ours = sides["mlx-distill"]
    assert abs(ours["supervised_tokens_per_second"] * ours["seconds"] / tokens - 1) < 0.05
