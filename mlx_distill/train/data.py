"""Training rows: read, refused if they cannot be learned from, and grouped into the batches of each step."""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mlx_distill.errors import InputError, raise_problems
from mlx_distill.models.score import batches_by_length
from mlx_distill.models.tokenize import TokenizedChat
from mlx_distill.records import Example
from mlx_distill.storage.jsonl import read_jsonl
from mlx_distill.train.objectives.base import Objective

LENGTH_JITTER = 0.1
"""Multiply lengths by a random 1 to 1.1 before sorting, so that the batches differ between epochs."""


@dataclass(frozen=True)
class Rows:
    """The rows of train.jsonl or valid.jsonl, in the order of the file."""

    ids: tuple[str, ...]
    chats: tuple[TokenizedChat, ...]

    def __len__(self) -> int:
        return len(self.chats)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row."""
        return [len(row.tokens) for row in self.chats]

    @property
    def digest(self) -> str:
        """A hash of all tokens and masks, so that a run does not resume on other rows."""
        return hashlib.sha256(repr([(row.tokens, row.mask) for row in self.chats]).encode()).hexdigest()[:16]


def read_rows(path: Path, objective: Objective, max_length: int) -> Rows:
    """Read a split. InputError names every row that is too long or has no answer tokens."""
    examples = read_jsonl(path, Example.from_json, "Make it with `mlx-distill prepare`.")
    if not examples:
        raise InputError(f"{path} holds no rows.", "Collect more answers, then run `mlx-distill prepare` again.")
    rows = tuple(objective.tokenize(example) for example in examples)
    problems = []
    for example, row in zip(examples, rows, strict=True):
        if len(row.tokens) > max_length:
            problems.append(f"row {example.id!r} is {len(row.tokens)} tokens long, max_length is {max_length}")
        elif not row.n_targets:
            problems.append(f"row {example.id!r} has no answer tokens to learn")
    raise_problems(path, problems, "Raise --max-length, or let `mlx-distill prepare` reject such rows.")
    return Rows(tuple(example.id for example in examples), rows)


def epoch_batches(lengths: Sequence[int], batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """Return the row indices of each step of an epoch. They depend on the arguments alone, so a resumed run repeats.

    Rows of similar length share a batch; the batches come in random order. The remainder is a batch too.
    """
    draw = random.Random(f"{seed}/{epoch}")
    jittered = [length * (1 + LENGTH_JITTER * draw.random()) for length in lengths]
    by_length = sorted(range(len(lengths)), key=lambda index: jittered[index])
    batches = [by_length[start : start + batch_size] for start in range(0, len(by_length), batch_size)]
    draw.shuffle(batches)
    return batches


def micro_batches(lengths: Sequence[int], batch: Sequence[int], max_tokens: int, n_streams: int) -> list[list[int]]:
    """Split the row indices of a batch: one micro-batch a stream, or more if one exceeds `max_tokens` padded tokens.

    Rows of similar length share a micro-batch. A row longer than `max_tokens` is alone.
    """
    by_length = sorted(batch, key=lambda index: lengths[index])
    size = math.ceil(len(by_length) / min(n_streams, len(by_length)))
    parts = [by_length[start : start + size] for start in range(0, len(by_length), size)]
    return [
        [part[place] for place in group]
        for part in parts
        for group in batches_by_length([lengths[index] for index in part], max_tokens)
    ]
