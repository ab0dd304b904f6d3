"""adapter → fuse → GGUF → convert → chat, all in float32: each link, and llama.cpp, writes the same greedy tokens.

Two ways to compute the same sum differ in its last bits. If the two likeliest tokens are nearly tied, either may win.
All other tokens must be those of the reference.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mlx_distill.convert import run as convert
from mlx_distill.convert.config import ConvertConfig
from mlx_distill.export import gguf as gguf_export
from mlx_distill.export.config import GgufConfig
from mlx_distill.fuse import run as fuse
from mlx_distill.fuse.config import FuseConfig
from mlx_distill.models.adapter import load_adapter
from mlx_distill.models.generate import generate_batch
from mlx_distill.models.load import Student, load_student
from mlx_distill.models.prefix_cache import PrefixCache
from mlx_distill.models.score import score
from mlx_distill.models.tokenize import render, render_prompt
from mlx_distill.records import Example, Message
from mlx_distill.storage.jsonl import read_jsonl
from tests.support.adapters import make_adapter, write_test_rows
from tests.support.llama_cpp import LlamaCpp
from tests.support.tiny import make_tiny_qwen2

NEAR_TIE = 0.01
"""Distance in nats between the two likeliest tokens below which either may be chosen."""
MAX_TOKENS = 16
MAX_LOSS_SHARE = 0.10
"""Limit on the loss change of a quantised model, as a share of the adapter's change (as in `fuse`)."""
QUESTIONS = ("Write a Python function that counts words.", "What is a queue?")
END = -1

Write = Callable[[list[int], int], list[int]]
"""Maps a prompt and a limit to the greedy tokens, with END last if the model ended its turn."""


@dataclass(frozen=True)
class Reference:
    """The output of base and adapter: the tokens for each prompt, and their margins."""

    prompts: list[list[int]]
    tokens: list[list[int]]
    margins: list[list[float]]
    """Distance in nats between the likeliest token and the second one."""
    loss: float
    base_loss: float


def test_every_link_writes_the_same_for_a_tiny_qwen2(tmp_path: Path) -> None:
    base = make_tiny_qwen2(tmp_path / "base", dtype="float32", tied=False)
    check_chain(base, make_adapter(base, tmp_path / "adapter"), tmp_path)


@pytest.mark.sample
def test_every_link_writes_the_same_for_the_sample_student(sample_student: Path, tmp_path: Path) -> None:
    base = in_float32(sample_student, tmp_path / "base")
    check_chain(base, make_adapter(base, tmp_path / "adapter", size=0.05), tmp_path)


def check_chain(base: Path, adapter: Path, folder: Path) -> None:
    data = write_test_rows(folder / "data", 2)
    examples = read_jsonl(data / "test.jsonl", Example.from_json)
    reference = reference_of(base, adapter, examples)
    changed = abs(reference.base_loss - reference.loss)
    assert changed > 0.05, "the adapter changes the answers"

    fused = fuse.run(FuseConfig(base, adapter, data, folder / "fused", check_rows=1))
    assert fused.dtype == "float32"
    check_same(reference, chat_of(load_student(fused.path, dtype=mx.float32)), "fused")

    gguf = gguf_export.run(GgufConfig(fused.path, folder / "fused-F32.gguf", "F32"))
    check_same(reference, LlamaCpp(gguf.path).greedy, "llama.cpp")
    converted = convert.run(ConvertConfig(str(gguf.path), folder / "converted"))
    assert converted.dtype == "float32"
    check_same(reference, chat_of(load_student(converted.path, dtype=mx.float32)), "converted")

    small = gguf_export.run(GgufConfig(fused.path, folder / "fused-Q8_0.gguf", "Q8_0"))
    back = convert.run(ConvertConfig(str(small.path), folder / "converted-Q8_0"))
    loss = loss_of(load_student(back.path, dtype=mx.float32), examples)
    assert abs(loss - reference.loss) <= MAX_LOSS_SHARE * changed


def check_same(reference: Reference, write: Write, link: str) -> None:
    """Check that tokens equal the reference's except at near-ties; after one, continue from the reference's text."""
    for prompt, expected, margins in zip(reference.prompts, reference.tokens, reference.margins, strict=True):
        at = 0
        while at < len(expected):
            written = write([*prompt, *expected[:at]], MAX_TOKENS - at)
            pairs = zip(written, expected[at:], strict=False)
            at += next((n for n, (ours, theirs) in enumerate(pairs) if ours != theirs), len(written))
            if at < len(expected):
                assert margins[at] < NEAR_TIE, f"{link}: token {at} of {prompt} differs"
                at += 1


def reference_of(base: Path, adapter_folder: Path, examples: list[Example]) -> Reference:
    student = load_student(base, dtype=mx.float32)
    base_loss = loss_of(student, examples)
    load_adapter(student, adapter_folder)
    messages = [(Message("system", "You are a helpful assistant."), Message("user", text)) for text in QUESTIONS]
    prompts = [render_prompt(student.tokenizer, turns) for turns in messages]
    answers = generate_batch(student, prompts, max_tokens=MAX_TOKENS)
    tokens = [[*answer.tokens, *([END] if answer.finished else [])] for answer in answers]
    margins = [margins_of(student, prompt, written) for prompt, written in zip(prompts, tokens, strict=True)]
    return Reference(prompts, tokens, margins, loss_of(student, examples), base_loss)


def margins_of(student: Student, prompt: list[int], written: list[int]) -> list[float]:
    logits = student.model(mx.array([[*prompt, *written[:-1]]]))[0, len(prompt) - 1 :]
    best = np.sort(np.array(logits), axis=-1)[:, -2:]
    return [float(first - second) for second, first in best]


def chat_of(student: Student) -> Write:
    """Write as the chat does: streamed, with a prefix cache."""
    cache = PrefixCache(student)

    def write(prompt: list[int], limit: int) -> list[int]:
        pieces = list(cache.stream(prompt, max_tokens=limit))
        return [END if piece.finish_reason == "stop" else piece.token for piece in pieces]

    return write


def loss_of(student: Student, examples: list[Example]) -> float:
    return score(student, [render(student.tokenizer, example.messages) for example in examples]).loss


def in_float32(folder: Path, out: Path) -> Path:
    """Copy a model folder, with its weights in float32."""
    shutil.copytree(folder, out, ignore=shutil.ignore_patterns("*.safetensors", "mlx_distill.json"))
    weights = mx.load(str(folder / "model.safetensors"))
    assert isinstance(weights, dict)
    wide = {name: value.astype(mx.float32) for name, value in weights.items()}
    mx.save_safetensors(str(out / "model.safetensors"), wide, metadata={"format": "mlx"})
    config = json.loads((out / "config.json").read_text())
    config["dtype" if "dtype" in config else "torch_dtype"] = "float32"
    (out / "config.json").write_text(json.dumps(config))
    return out
