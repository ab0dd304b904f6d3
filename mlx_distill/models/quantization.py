"""What may be asked of a quantisation: when a student is converted, and when a model is fused."""

from __future__ import annotations

Q_BITS = (4, 8)
Q_GROUP_SIZES = (32, 64, 128)


def check_quantization(bits: int | None, group_size: int) -> None:
    """Raise ValueError for bits (None: not quantised) or weights a scale that are not offered."""
    if bits is not None and bits not in Q_BITS:
        raise ValueError(f"q_bits is {bits}, not 4 or 8")
    if group_size not in Q_GROUP_SIZES:
        raise ValueError(f"q_group_size is {group_size}, not 32, 64 or 128")
