"""Rows as the student reads them, cut into what is supervised and what is not."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from mlx_distill import device
from mlx_distill.records import Example
from mlx_distill.storage.jsonl import read_jsonl


@dataclass(frozen=True)
class Segment:
    """Neighbouring tokens that are all supervised, or all not."""

    text: str
    supervised: bool


@dataclass(frozen=True)
class ShownRow:
    """One rendered row."""

    id: str
    n_tokens: int
    n_supervised: int
    segments: tuple[Segment, ...]


def shown_rows(file: Path, model: Path, count: int) -> list[ShownRow]:
    """The first `count` rows of a prepared file, rendered with the tokenizer of `model`."""
    device.prepare()
    from mlx_distill.models.load import load_tokenizer
    from mlx_distill.models.tokenize import render

    tokenizer = load_tokenizer(model)
    shown: list[ShownRow] = []
    for example in read_jsonl(file, Example.from_json, "Make it with `mlx-distill prepare`.")[:count]:
        rendered = render(tokenizer, example.messages)
        marked = groupby(zip(rendered.tokens, rendered.mask, strict=True), key=lambda pair: pair[1])
        segments = tuple(
            Segment(tokenizer.decode([token for token, _ in pairs]), supervised) for supervised, pairs in marked
        )
        shown.append(ShownRow(example.id, len(rendered.tokens), rendered.n_supervised, segments))
    return shown
