"""The flow on a real model: SmolLM2-135M-Instruct from the PyPI wheel, trained for a minute or two."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mlx_distill.storage.package_data import package_data_path
from tests.conftest import Finished
from tests.support.in_transformers import check_in_transformers

Cli = Callable[..., Finished]
ROWS = {"train": 20, "valid": 3, "test": 5}
"""The shortest rows of each split: enough to lower the loss on test rows, few enough for a CPU."""


@pytest.mark.sample
def test_convert_train_compare_fuse_and_chat(
    sample_student: Path, tmp_path: Path, cli: Cli, request: pytest.FixtureRequest
) -> None:
    config = json.loads((sample_student / "config.json").read_text())
    assert (config["model_type"], config["num_hidden_layers"], config["hidden_size"]) == ("llama", 30, 576)
    data, adapter, fused = tmp_path / "data", tmp_path / "adapter", tmp_path / "fused"
    model = ("--model", sample_student)
    prompts = ("--prompts", package_data_path("prompts.jsonl"))
    succeed(cli("collect", "--teacher", "recorded:sample", *prompts, "--out", data, cwd=tmp_path))
    succeed(cli("prepare", *model, "--data", data, cwd=tmp_path))
    for split, count in ROWS.items():
        rows = sorted((data / f"{split}.jsonl").read_text().splitlines(), key=len)[:count]
        (data / f"{split}.jsonl").write_text("".join(f"{row}\n" for row in rows))
    options = ["--epochs", "1", "--learning-rate", "1e-3", "--json"]
    trained = cli("train", *model, "--data", data, "--adapter", adapter, *options, cwd=tmp_path)
    assert json.loads(succeed(trained).out)["n_trainable"] == 2442240  # rank 8 on all linear layers of 30 blocks
    where = (*model, "--adapter", adapter, "--data", data)
    succeed(cli("compare", *where, "--out", tmp_path / "report", "--no-teacher", "--max-tokens", 24, cwd=tmp_path))
    figures = json.loads((tmp_path / "report/report.json").read_text())["tables"]["held_out"]["rows"]
    assert figures["loss"][1]["value"] < figures["loss"][0]["value"]
    assert figures["token accuracy"][1]["value"] > figures["token accuracy"][0]["value"]
    succeed(cli("fuse", *where, "--out", fused, cwd=tmp_path))
    question = "Write a Python function that counts words.\n"
    by_adapter = succeed(cli("chat", *model, "--adapter", adapter, "--max-tokens", 24, text=question, cwd=tmp_path))
    by_fused = succeed(cli("chat", "--model", fused, "--max-tokens", 24, text=question, cwd=tmp_path))
    assert by_adapter.out.split()[:5] == by_fused.out.split()[:5]
    asked = ["--system-prompt", "You are a helpful assistant.", "--prompt", question.strip(), "--max-tokens", "4"]
    told = subprocess.run(
        [sys.executable, "-m", "mlx_lm", "generate", "--model", sample_student, "--adapter-path", adapter, *asked],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    assert "Generation: 4 tokens" in told.stdout
    # Last: without that environment, the rest has run before the skip.
    check_in_transformers(request.getfixturevalue("transformers_python"), fused)


def succeed(finished: Finished) -> Finished:
    assert finished.code == 0, finished.err
    return finished
