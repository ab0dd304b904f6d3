"""A row, token counts of a group of rows, and a preview that marks the supervised text."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from mlx_distill.models.load import load_tokenizer
from mlx_distill.models.tokenize import render
from mlx_distill.prepare.config import TokenStats
from mlx_distill.records import Example
from mlx_distill.storage.jsonl import read_jsonl


@dataclass(frozen=True, slots=True)
class Row:
    """An example and its length in the student's tokens."""

    example: Example
    n_tokens: int
    n_supervised: int

    @property
    def prompt_text(self) -> str:
        return "\n".join(message.content for message in self.example.messages if message.role == "user")


def token_stats(name: str, rows: Sequence[Row]) -> TokenStats:
    """Return the token counts of a group; all zero for an empty group."""
    counts = sorted(row.n_tokens for row in rows) or [0]
    shortest, median, p90, longest = (counts[max(0, math.ceil(q * len(counts)) - 1)] for q in (0, 0.5, 0.9, 1))
    n_tokens, n_supervised = sum(counts), sum(row.n_supervised for row in rows)
    share = round(n_supervised / n_tokens, 4) if n_tokens else 0.0
    return TokenStats(name, len(rows), shortest, median, p90, longest, n_tokens, n_supervised, share)


def preview_rows(file: Path, model: Path, n_rows: int) -> Iterator[tuple[Row, list[tuple[str, bool]]]]:
    """Yield the first `n_rows` rows of a prepared file, each with its text cut into (text, is supervised)."""
    tokenizer = load_tokenizer(model)
    for example in read_jsonl(file, Example.from_json, "Create it with `mlx-distill prepare`.")[:n_rows]:
        rendered = render(tokenizer, example)
        runs = groupby(zip(rendered.tokens, rendered.mask, strict=True), key=lambda pair: pair[1])
        segments = [(tokenizer.decode([token for token, _ in pairs]), supervised) for supervised, pairs in runs]
        yield Row(example, len(rendered.tokens), rendered.n_supervised), segments
