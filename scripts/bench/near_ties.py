"""Find where two greedy answers to one prompt differ, and whether rounding explains it.

The order of a float sum changes its last digits, so two tokens with almost equal probabilities may change places. The
gap between the two tokens, after the tokens that both answers share, shows whether it was such a near-tie.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

NEAR_TIE = 1e-3
"""Log-probabilities closer than this may change places in float32. Batched and single passes of the sample student
differ by up to about 1e-4; the first and second choice of a trained model mostly differ by 0.1 or more."""


@dataclass(frozen=True)
class Parting:
    """The first token in which two answers differ."""

    position: int
    """Tokens that both answers share."""
    here: int
    there: int
    gap: float
    """Difference of the log-probabilities of the two tokens."""

    @property
    def is_near_tie(self) -> bool:
        return self.gap <= NEAR_TIE


def parting(
    model: Any, prompt: Sequence[int], here: Sequence[int], there: Sequence[int], ends: Collection[int]
) -> Parting | None:
    """Return where the answers differ; None if they are equal. All tokens in `ends` count as the same token."""
    import mlx.core as mx

    pairs = enumerate(zip(here, there, strict=False))
    shorter = min(len(here), len(there))
    position = next((n for n, (a, b) in pairs if a != b and not (a in ends and b in ends)), shorter)
    if position == shorter:
        # No probability explains an answer that stops earlier without an end token.
        return None if len(here) == len(there) else Parting(position, -1, -1, float("inf"))
    logits = model(mx.array([[*prompt, *here[:position]]]))[0, -1].astype(mx.float32)
    pair = here[position], there[position]
    return Parting(position, *pair, gap=abs((logits[pair[0]] - logits[pair[1]]).item()))
