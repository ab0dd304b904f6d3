"""The figures of a fused model's check against its adapter; light, since the command line reads results too."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Check:
    """How close a fused model is to its adapter. Losses and accuracies are over test.jsonl's answer tokens."""

    base_loss: float
    adapter_loss: float
    fused_loss: float
    base_accuracy: float
    adapter_accuracy: float
    fused_accuracy: float
    allowed_difference: float
    """Between the losses of adapter and fused."""
    kl: float
    """Mean KL(adapter || fused) over the answer tokens, in nats."""
    kl_base: float
    """Mean KL(adapter || base): what the adapter changed."""
    n_rows: int
    n_tokens: int
    divergences: tuple[int | None, ...]
    """For each prompt written greedily: the first token that differs from the adapter's, None where none does."""
    greedy_tokens: int
    """Tokens that were written for each prompt at most."""
