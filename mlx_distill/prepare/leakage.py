"""Finds held-out prompts that read almost like a train prompt: a leak that their families should have prevented."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rapidfuzz import fuzz, process, utils

from mlx_distill.records import Example

ALIKE = 90.0
"""rapidfuzz's token_sort_ratio (0 to 100) above which two prompts differ in a word or in the order of words."""


@dataclass(frozen=True)
class LookAlike:
    """A held-out prompt and the train prompt that it reads like."""

    held_out: str
    train: str
    similarity: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def look_alikes(train: Sequence[Example], held_out: Sequence[Example]) -> list[LookAlike]:
    """For each held-out prompt the train prompt most like it, where they are at least ALIKE."""
    texts = [utils.default_process(_asked(example)) for example in train]
    found: list[LookAlike] = []
    for example in held_out:
        query = utils.default_process(_asked(example))
        best = process.extractOne(query, texts, scorer=fuzz.token_sort_ratio, score_cutoff=ALIKE)
        if best:
            found.append(LookAlike(example.id, train[best[2]].id, round(best[1], 1)))
    return found


def _asked(example: Example) -> str:
    return "\n".join(message.content for message in example.messages if message.role == "user")
