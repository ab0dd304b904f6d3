"""Text generation with a student: many prompts in batches, or one answer as a stream."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx_lm.generate import BatchGenerator, stream_generate
from mlx_lm.sample_utils import make_sampler

from mlx_distill import device
from mlx_distill.events import Progress, Report, ignore
from mlx_distill.models.load import Student

BATCH_SIZE, METAL_BATCH_SIZE = 16, 32
"""Number of prompts to answer at the same time."""


MIN_SAMPLING = 1e-4
"""Below this temperature or top_p, decoding is greedy. Dividing by much smaller values overflows."""


@dataclass(frozen=True)
class Sampling:
    """The choice of each token: the most probable one at temperature 0, a seeded draw above."""

    temperature: float = 0.0
    top_p: float = 1.0
    """Draw only from the most probable tokens with this total probability."""
    seed: int = 0

    def sampler(self) -> Callable[[mx.array], mx.array]:
        """Seed the random numbers and return the function from log-probabilities to tokens."""
        mx.random.seed(self.seed)
        greedy = min(self.temperature, self.top_p) < MIN_SAMPLING
        sampler: Callable[[mx.array], mx.array] = (
            make_sampler(temp=0.0) if greedy else make_sampler(temp=self.temperature, top_p=self.top_p)
        )
        return sampler


GREEDY = Sampling()


@dataclass(frozen=True)
class Completion:
    """One generated answer."""

    text: str
    tokens: tuple[int, ...]
    """The tokens without the end token."""
    end_token: int | None
    """The token that ended the turn; None if the limit cut the answer off."""
    seconds: float
    """Time from the start of the job to the answer's last token."""

    @property
    def finished(self) -> bool:
        """True if the model ended its turn, False if the limit cut it off."""
        return self.end_token is not None


@dataclass(frozen=True)
class TextChunk:
    """A part of a streamed answer: whole characters only."""

    text: str
    token: int
    finish_reason: str | None
    """None until the last chunk, then `stop` or `length`."""


def default_batch_size() -> int:
    """Return how many prompts the device answers at the same time."""
    return METAL_BATCH_SIZE if device.prepare().kind == "metal" else BATCH_SIZE


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
    """Answer all prompts (token lists) and return the answers in the same order.

    Greedy at temperature 0, seeded otherwise. Prompts of similar length share a batch.
    """
    if not prompts:
        return []
    batch_size = default_batch_size()
    generator = BatchGenerator(
        student.model,
        stop_tokens=[[token] for token in sorted(student.tokenizer.eos_token_ids)],
        sampler=Sampling(temperature, seed=seed).sampler(),
        completion_batch_size=batch_size,
        prefill_batch_size=batch_size,
    )
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    started, n_tokens = time.perf_counter(), 0
    tokens: list[list[int]] = [[] for _ in prompts]
    done: dict[int, Completion] = {}
    report(Progress(job, 0, len(prompts), "answers"))
    try:
        ids = generator.insert([prompts[index] for index in order], [max_tokens] * len(order))
        index_of = dict(zip(ids, order, strict=True))
        while responses := generator.next_generated():
            seconds = time.perf_counter() - started
            for response in responses:
                index, reason = index_of[response.uid], response.finish_reason
                n_tokens += 1
                if reason != "stop":
                    tokens[index].append(response.token)
                if reason is not None:
                    text = student.tokenizer.decode(tokens[index])
                    end_token = response.token if reason == "stop" else None
                    done[index] = Completion(text, tuple(tokens[index]), end_token, seconds)
            rate = n_tokens / max(seconds, 1e-9)
            report(Progress(job, len(done), len(prompts), "answers", f"{rate:.0f} tokens/s"))
    finally:
        generator.close()
    return [done[index] for index in range(len(prompts))]


def stream(
    student: Student,
    prompt: list[int],
    *,
    max_tokens: int,
    sampling: Sampling = GREEDY,
    cache: list[Any] | None = None,
) -> Iterator[TextChunk]:
    """Stream one answer. `cache` is a prompt cache that holds the tokens before `prompt`."""
    responses = stream_generate(
        student.model,
        student.tokenizer,
        prompt,
        max_tokens=max_tokens,
        sampler=sampling.sampler(),
        prompt_cache=cache,
    )
    for response in responses:
        yield TextChunk(response.text, response.token, response.finish_reason)
