"""Writing text with a student: many prompts at once for a comparison, one streamed for a chat."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx_lm.generate import BatchGenerator, stream_generate
from mlx_lm.sample_utils import make_sampler

from mlx_distill.events import Progress, Report, ignore
from mlx_distill.models.load import Student

BATCH_SIZE = 16
"""Prompts that are written at the same time."""


@dataclass(frozen=True)
class Completion:
    """One generated answer."""

    text: str
    tokens: tuple[int, ...]
    """Without the end token."""
    finished: bool
    """True where the model ended its turn, False where the limit cut it off."""
    seconds: float
    """From the start of its batch to its last token."""


@dataclass(frozen=True)
class Piece:
    """A streamed piece of text: whole characters only."""

    text: str
    token: int
    finish_reason: str | None
    """None while it goes on, then `stop` or `length`."""


def generate_batch(
    student: Student,
    prompts: Sequence[list[int]],
    *,
    max_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
    report: Report = ignore,
    job: str = "generate",
) -> list[Completion]:
    """Answers to all prompts (token lists), in their order; greedy at temperature 0, seeded otherwise.

    Prompts are taken in order of length, so that those written together are alike.
    """
    if not prompts:
        return []
    mx.random.seed(seed)
    generator = BatchGenerator(
        student.model,
        stop_tokens=[[token] for token in sorted(student.tokenizer.eos_token_ids)],
        sampler=make_sampler(temp=temperature),
        completion_batch_size=BATCH_SIZE,
        prefill_batch_size=BATCH_SIZE,
    )
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    try:
        index_of = dict(
            zip(generator.insert([prompts[i] for i in order], [max_tokens] * len(order)), order, strict=True)
        )
        return _collect(generator, index_of, student, report, job)
    finally:
        generator.close()


def _collect(
    generator: BatchGenerator, index_of: dict[int, int], student: Student, report: Report, job: str
) -> list[Completion]:
    started = time.perf_counter()
    tokens: list[list[int]] = [[] for _ in index_of]
    done: dict[int, Completion] = {}
    n_tokens = 0
    report(Progress(job, 0, len(index_of), "answers"))
    while responses := generator.next_generated():
        for response in responses:
            index = index_of[response.uid]
            n_tokens += 1
            if response.finish_reason != "stop":
                tokens[index].append(response.token)
            if response.finish_reason is None:
                continue
            seconds = time.perf_counter() - started
            text = student.tokenizer.decode(tokens[index])
            done[index] = Completion(text, tuple(tokens[index]), response.finish_reason == "stop", seconds)
        rate = n_tokens / max(time.perf_counter() - started, 1e-9)
        report(Progress(job, len(done), len(index_of), "answers", f"{rate:.0f} tokens/s"))
    return [done[index] for index in range(len(index_of))]


def stream(
    student: Student,
    prompt: list[int],
    *,
    max_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    cache: list[Any] | None = None,
) -> Iterator[Piece]:
    """One answer, piece by piece. `cache` is a prompt cache that already holds what stands before `prompt`.

    At a temperature, only the likeliest tokens that make up `top_p` of the probability are drawn from.
    """
    if top_p == 0:
        temperature = 0.0  # the likeliest token alone; mlx-lm takes 0 for "all of them"
    mx.random.seed(seed)
    responses = stream_generate(
        student.model,
        student.tokenizer,
        prompt,
        max_tokens=max_tokens,
        sampler=make_sampler(temp=temperature, top_p=top_p),
        prompt_cache=cache,
    )
    for response in responses:
        yield Piece(response.text, response.token, response.finish_reason)
