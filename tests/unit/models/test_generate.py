"""Batched answers of base and distilled model, compared with mlx-lm, one prompt at a time."""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mlx_distill.models.adapter import load_adapter
from mlx_distill.models.generate import generate_batch
from mlx_distill.models.load import load_student
from mlx_distill.models.tokenize import render_prompt
from mlx_distill.records import Prompt, build_messages
from mlx_distill.storage.jsonl import read_jsonl
from mlx_distill.storage.package_data import package_data_path
from tests.conftest import REPOSITORY
from tests.support.adapters import make_adapter
from tests.support.comparing import SYSTEM


def bench_module(name: str) -> Any:
    """Load a module of scripts/bench, which is not a package."""
    spec = spec_from_file_location(name, REPOSITORY / "scripts" / "bench" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


near_ties = bench_module("near_ties")


def partings(model_folder: Path, adapter_folder: Path, texts: list[str], max_tokens: int) -> list[Any]:
    """Return where greedy float32 answers of both models differ from mlx-lm's. Prints near-ties."""
    from mlx_lm import stream_generate
    from mlx_lm.utils import load

    student = load_student(model_folder, dtype=mx.float32)
    adapter = load_adapter(student, adapter_folder)
    asked = [render_prompt(student.tokenizer, build_messages(text, SYSTEM)) for text in texts]
    ends = student.tokenizer.eos_token_ids
    found, n_tokens = [], 0
    for enabled in (False, True):
        adapter.enabled = enabled
        together = generate_batch(student, asked, max_tokens=max_tokens)
        model, tokenizer = load(str(model_folder), adapter_path=str(adapter_folder) if enabled else None)[:2]
        model.set_dtype(mx.float32)
        for prompt, one in zip(asked, together, strict=True):
            here = [*one.tokens, *(sorted(ends)[:1] if one.finished else [])]
            there = [answer.token for answer in stream_generate(model, tokenizer, prompt, max_tokens=max_tokens)]
            n_tokens += len(there)
            parted = near_ties.parting(model, prompt, here, there, ends)
            if parted:
                print(f"{'distilled' if enabled else 'base'}, a prompt of {len(prompt)} tokens: {parted}")
                found.append(parted)
    assert n_tokens > max_tokens * len(texts)  # or most answers were empty and nothing was compared
    return found


def test_batch_answers_equal_mlx_lm_except_near_ties(tiny_student: Path, tmp_path: Path) -> None:
    adapter = make_adapter(tiny_student, tmp_path / "adapter")
    texts = ["Hi", *(f"Write {'a longer question about ' * number}trees." for number in range(12)), "Count the words."]
    assert all(parted.is_near_tie for parted in partings(tiny_student, adapter, texts, 24))


@pytest.mark.sample
def test_sample_answers_equal_mlx_lm_except_near_ties(sample_student: Path, tmp_path: Path) -> None:
    adapter = make_adapter(sample_student, tmp_path / "adapter", size=0.003, rank=8)
    texts = [prompt.text for prompt in read_jsonl(package_data_path("prompts.jsonl"), Prompt.from_json)[::26]]
    assert all(parted.is_near_tie for parted in partings(sample_student, adapter, texts, 16))


def test_different_tokens_are_not_a_near_tie(tiny_student: Path) -> None:
    student = load_student(tiny_student, dtype=mx.float32)
    prompt = render_prompt(student.tokenizer, build_messages("What is a queue?", SYSTEM))
    ends = student.tokenizer.eos_token_ids
    logits = student.model(mx.array([prompt]))[0, -1]
    order: Any = mx.argsort(-logits).tolist()
    best, worst = order[0], order[-1]
    parted = near_ties.parting(student.model, prompt, [best], [worst], ends)
    assert (parted.position, parted.here, parted.there, parted.is_near_tie) == (0, best, worst, False)
    assert parted.gap == pytest.approx((logits[best] - logits[worst]).item(), rel=1e-4)
    assert near_ties.parting(student.model, prompt, [best, worst], [best, worst], ends) is None
    assert near_ties.parting(student.model, prompt, [best, min(ends)], [best, max(ends)], ends) is None
    assert not near_ties.parting(student.model, prompt, [best], [best, worst], ends).is_near_tie
    assert near_ties.parting(student.model, prompt, [best, 5], [best, 6], ends).position == 1


def test_almost_equal_probabilities_are_a_near_tie() -> None:
    def model(tokens: mx.array) -> mx.array:
        logits = mx.zeros((1, tokens.shape[1], 8))
        logits[..., 3] = near_ties.NEAR_TIE / 2
        return logits

    assert near_ties.parting(model, [1], [4, 3], [4, 5], [7]).is_near_tie
    assert near_ties.parting(model, [1], [4, 3], [4, 7], [7]).is_near_tie  # the end token is a token like others
