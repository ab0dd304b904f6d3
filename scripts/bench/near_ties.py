"""Where two greedy answers to one prompt part, and whether that is more than rounding.

Float sums in another order differ in their last digits, so two tokens whose probabilities are that close may change
places. The gap between the two tokens, after what both answers share, says whether it was such a near-tie.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

NEAR_TIE = 1e-3
"""Log-probabilities closer than this may change places in float32. Batched and single passes of the sample student
differ by up to about 1e-4; a trained model's first and second choice are mostly 0.1 and more apart."""


@dataclass(frozen=True)
class Parting:
    """The first token in which two answers differ."""

    position: int
    """Tokens that both answers share."""
    here: int
    there: int
    gap: float
    """How much more probable the one is than the other, as a difference of log-probabilities."""

    @property
    def is_near_tie(self) -> bool:
        return self.gap <= NEAR_TIE


def parting(
    model: Any, prompt: Sequence[int], here: Sequence[int], there: Sequence[int], ends: Collection[int]
) -> Parting | None:
    """Where the answers part; None where they are equal. End tokens, of `ends`, count as one and the same."""
    import mlx.core as mx

    pairs = enumerate(zip(here, there, strict=False))
    shorter = min(len(here), len(there))
    position = next((n for n, (a, b) in pairs if a != b and not (a in ends and b in ends)), shorter)
    if position == shorter:
        # One that stops without an end token, before the other does, is explained by no probability.
        return None if len(here) == len(there) else Parting(position, -1, -1, float("inf"))
    logits = model(mx.array([[*prompt, *here[:position]]]))[0, -1].astype(mx.float32)
    pair = here[position], there[position]
    return Parting(position, *pair, gap=abs((logits[pair[0]] - logits[pair[1]]).item()))
