"""A model folder in transformers with torch, in a separate environment, compared with MLX."""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from mlx_distill.models.load import Student, load_student
from mlx_distill.models.tokenize import render_prompt
from mlx_distill.records import Message

MESSAGES = (Message("system", "You are a helpful assistant."), Message("user", "Write a function that adds 3."))
FLOAT32_FRACTION = 1e-4
"""Maximum difference of two float32 computations as a fraction of the largest logit. bfloat16 rounds to 2**-8."""
Logits = npt.NDArray[np.float32]  # (T, V)

_SCRIPT = """\
import json, sys
import numpy, torch
from transformers import AutoModelForCausalLM, AutoTokenizer

folder, messages, out = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3]
tokens = AutoTokenizer.from_pretrained(folder).apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
logits = {}
for dtype in ("float32", "auto"):
    model, loading = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    with torch.no_grad():
        logits[dtype] = model(torch.tensor([tokens])).logits[0].float().numpy()
numpy.savez(out, **logits)
wrong = [f"{name}: {sorted(map(str, keys))}" for name, keys in loading.items() if keys]
ends = model.generation_config.eos_token_id
print(json.dumps({"tokens": tokens, "ends": ends, "dtype": str(model.dtype), "wrong": wrong}))
"""


def check_in_transformers(python: Path, folder: Path) -> None:
    """Check that tokens, end tokens and logits equal MLX's, and that every weight is used.

    `python` belongs to the other environment.
    """
    messages = json.dumps([message.to_json() for message in MESSAGES])
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "logits.npz"
        asked: list[str | Path] = [python, "-c", _SCRIPT, folder, messages, file]
        finished = subprocess.run(asked, capture_output=True, text=True, timeout=300, check=False)
        assert finished.returncode == 0, finished.stderr
        theirs = dict(np.load(file))
    seen = json.loads(finished.stdout)
    student = load_student(folder, dtype=mx.float32)
    config = json.loads((folder / "config.json").read_text())
    dtype = config.get("dtype") or config["torch_dtype"]
    assert (seen["wrong"], seen["dtype"]) == ([], f"torch.{dtype}")
    assert seen["tokens"] == render_prompt(student.tokenizer, MESSAGES)
    assert set(seen["ends"] if isinstance(seen["ends"], list) else [seen["ends"]]) == student.tokenizer.eos_token_ids

    exact = _logits(student, seen["tokens"])
    assert _difference(theirs["float32"], exact) <= FLOAT32_FRACTION * np.abs(exact).max()
    ours = _logits(load_student(folder, dtype=getattr(mx, dtype)), seen["tokens"])
    assert _difference(theirs["auto"], exact) <= 2 * _difference(ours, exact), "its rounding error is like MLX's"


def _logits(student: Student, tokens: list[int]) -> Logits:
    return np.array(student.model(mx.array([tokens]))[0].astype(mx.float32))


def _difference(one: Logits, other: Logits) -> float:
    return float(np.abs(one - other).max())
