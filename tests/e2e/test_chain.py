"""adapter → fuse → GGUF → convert → chat, in float32 at every link: the same greedy tokens, and llama.cpp's too.

Two ways to compute the same sum differ in its last bits, so where the two likeliest tokens are nearly tied either may
win. Everywhere else every link must choose the reference's token.
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

from mlx_distill import export
from mlx_distill.convert import run as convert
from mlx_distill.export.gguf import write_gguf
from mlx_distill.fuse.run import FuseConfig
from mlx_distill.models.adapter import attach
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
"""Nats between the two likeliest tokens, below which either may be chosen."""
LENGTH = 16
"""Tokens that are written for each prompt at most."""
LOSS_SHARE = 0.10
"""What a quantised result may differ in loss, as a share of what the adapter changed (as `fuse` has it)."""
QUESTIONS = ("Write a Python function that counts words.", "What is a queue?")
END = -1

Write = Callable[[list[int], int], list[int]]
"""Prompt and limit to the tokens that are written greedily, END at the end where the model ended its turn."""


@dataclass(frozen=True)
class Reference:
    """What base and adapter write: for each prompt the tokens, and how sure the model was of each."""

    prompts: list[list[int]]
    tokens: list[list[int]]
    margins: list[list[float]]
    """Nats between the likeliest token and the next one."""
    loss: float
    base_loss: float


def test_a_tiny_qwen2_says_the_same_at_every_link(tmp_path: Path) -> None:
    base = make_tiny_qwen2(tmp_path / "base", dtype="float32", tied=False)
    check_chain(base, make_adapter(base, tmp_path / "adapter"), tmp_path)


@pytest.mark.sample
def test_the_sample_student_says_the_same_at_every_link(sample_student: Path, tmp_path: Path) -> None:
    base = in_float32(sample_student, tmp_path / "base")
    check_chain(base, make_adapter(base, tmp_path / "adapter", size=0.05), tmp_path)


def check_chain(base: Path, adapter: Path, folder: Path) -> None:
    data = write_test_rows(folder / "data", 2)
    examples = read_jsonl(data / "test.jsonl", Example.from_json)
    reference = reference_of(base, adapter, examples)
    changed = abs(reference.base_loss - reference.loss)
    assert changed > 0.05, "the adapter changes what the model says"

    fused = export.run(FuseConfig(base, adapter, data, folder / "fused", check_rows=1))
    assert fused.dtype == "float32"
    check_same(reference, chat_of(load_student(fused.path, dtype=mx.float32)), "fused")

    gguf = write_gguf(fused.path, folder / "fused-F32.gguf", "F32")
    check_same(reference, llama_cpp_of(gguf.path), "llama.cpp")
    converted = convert.run(convert.ConvertConfig(str(gguf.path), folder / "converted"))
    assert converted.dtype == "float32"
    check_same(reference, chat_of(load_student(converted.path, dtype=mx.float32)), "converted")

    small = write_gguf(fused.path, folder / "fused-Q8_0.gguf", "Q8_0")
    back = convert.run(convert.ConvertConfig(str(small.path), folder / "converted-Q8_0"))
    loss = loss_of(load_student(back.path, dtype=mx.float32), examples)
    assert abs(loss - reference.loss) <= LOSS_SHARE * changed


def check_same(reference: Reference, write: Write, link: str) -> None:
    """Every token is the reference's, but for near-ties; after one, the link goes on from the reference's text."""
    for prompt, expected, margins in zip(reference.prompts, reference.tokens, reference.margins, strict=True):
        at = 0
        while at < len(expected):
            written = write([*prompt, *expected[:at]], LENGTH - at)
            pairs = zip(written, expected[at:], strict=False)
            at += next((n for n, (ours, theirs) in enumerate(pairs) if ours != theirs), len(written))
            if at < len(expected):
                assert margins[at] < NEAR_TIE, f"{link}: token {at} of {prompt} differs"
                at += 1


def reference_of(base: Path, adapter_folder: Path, examples: list[Example]) -> Reference:
    student = load_student(base, dtype=mx.float32)
    base_loss = loss_of(student, examples)
    attach(student, adapter_folder)
    messages = [(Message("system", "You are a helpful assistant."), Message("user", text)) for text in QUESTIONS]
    prompts = [render_prompt(student.tokenizer, turns) for turns in messages]
    answers = generate_batch(student, prompts, max_tokens=LENGTH)
    tokens = [[*answer.tokens, *([END] if answer.finished else [])] for answer in answers]
    margins = [margins_of(student, prompt, written) for prompt, written in zip(prompts, tokens, strict=True)]
    return Reference(prompts, tokens, margins, loss_of(student, examples), base_loss)


def margins_of(student: Student, prompt: list[int], written: list[int]) -> list[float]:
    logits = student.model(mx.array([[*prompt, *written[:-1]]]))[0, len(prompt) - 1 :]
    best = np.sort(np.array(logits), axis=-1)[:, -2:]
    return [float(first - second) for second, first in best]


def chat_of(student: Student) -> Write:
    """As the chat writes: streamed, with the memory of what was asked before."""
    cache = PrefixCache(student)

    def write(prompt: list[int], limit: int) -> list[int]:
        pieces = list(cache.stream(prompt, max_tokens=limit, temperature=0.0, seed=0))
        return [END if piece.finish_reason == "stop" else piece.token for piece in pieces]

    return write


def llama_cpp_of(file: Path) -> Write:
    return LlamaCpp(file).greedy


def loss_of(student: Student, examples: list[Example]) -> float:
    return score(student, [render(student.tokenizer, example.messages) for example in examples]).loss


def in_float32(folder: Path, out: Path) -> Path:
    """A copy of a model folder with its weights in float32."""
    shutil.copytree(folder, out, ignore=shutil.ignore_patterns("*.safetensors", "mlx_distill.json"))
    weights = mx.load(str(folder / "model.safetensors"))
    assert isinstance(weights, dict)
    wide = {name: value.astype(mx.float32) for name, value in weights.items()}
    mx.save_safetensors(str(out / "model.safetensors"), wide, metadata={"format": "mlx"})
    config = json.loads((out / "config.json").read_text())
    config["dtype" if "dtype" in config else "torch_dtype"] = "float32"
    (out / "config.json").write_text(json.dumps(config))
    return out
