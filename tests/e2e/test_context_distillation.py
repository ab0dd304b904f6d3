"""Context distillation on a real model: from the same answers of the teacher, kd learns more of it than sft."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY


@pytest.mark.sample
def test_kd_comes_closer_to_the_teacher_than_sft(sample_student: Path, tmp_path: Path) -> None:
    """Each objective at its better one of two learning rates; KL to the teacher on prompts of unseen families."""
    command = [sys.executable, str(REPOSITORY / "scripts/bench/context_distillation.py"), "--quick", "--json"]
    command += ["--model", str(sample_student), "--work", str(tmp_path), "--journal", str(tmp_path / "journal.jsonl")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    of_base = json.loads(done.stdout)
    assert of_base["kd"] < 0.65  # measured: 0.57; another machine draws other answers from the teacher
    assert of_base["kd"] < 0.85 * of_base["sft"]
