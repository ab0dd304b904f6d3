"""Damaged model files are loaded or refused in one line: no crash, no hang, and little memory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.adapters import make_adapter
from tests.support.gguf_files import write_gguf
from tests.support.tiny import make_tiny_qwen2

COUNT = 500
SEED = 1


@pytest.mark.parametrize("kind", ["gguf", "safetensors", "adapter", "tokenizer", "config"])
def test_damaged_files_load_or_are_refused_in_one_line(kind: str, tmp_path: Path) -> None:
    model = make_tiny_qwen2(tmp_path / "model", dtype="float32", hidden=32, layers=1)
    write_gguf(model, tmp_path / "model.gguf")
    make_adapter(model, tmp_path / "adapter")
    command = [sys.executable, "-m", "tests.support.fuzzing", kind, str(tmp_path), str(COUNT), str(SEED)]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment)
    *_, last = ["", *done.stdout.splitlines()]
    assert done.returncode == 0, f"mutation {last} of {kind} (seed {SEED}): {done.stderr[-3000:]}"
    assert int(last.removeprefix("refused ")) > COUNT // 4  # the mutations reach the checks
