"""Where the data that travels with the package lies: in the wheel, or in the checkout of an editable install."""

from __future__ import annotations

from pathlib import Path

from mlx_distill.errors import MissingError

_PACKAGE = Path(__file__).resolve().parent.parent


def shipped(name: str) -> Path:
    """The path of a shipped file or folder, such as `prompts.jsonl` or `sample`."""
    for root in (_PACKAGE / "_data", _PACKAGE.parent / "data"):
        path = root / name
        if path.exists():
            return path
    raise MissingError(f"The shipped file {name} is not part of this installation.", "Install mlx-distill again.")
