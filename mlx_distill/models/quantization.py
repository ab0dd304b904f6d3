"""The check of the quantisation settings that `convert` and `fuse` share."""

from __future__ import annotations


def check_quantization(bits: int | None, group_size: int) -> None:
    """Raise ValueError for settings that mlx does not have. `bits` is None for a model that is not quantised."""
    if bits not in (None, 4, 8):
        raise ValueError(f"q_bits is {bits}, not 4 or 8")
    if group_size not in (32, 64, 128):
        raise ValueError(f"q_group_size is {group_size}, not 32, 64 or 128")
