"""Paths of the data that is installed with the package, from a wheel or from a checkout."""

from __future__ import annotations

from pathlib import Path

from mlx_distill.errors import MissingError

_PACKAGE = Path(__file__).resolve().parent.parent


def package_data_path(name: str) -> Path:
    """Return the path of a packaged file or folder, such as `prompts.jsonl` or `sample`."""
    for root in (_PACKAGE / "_data", _PACKAGE.parent / "data"):
        path = root / name
        if path.exists():
            return path
    raise MissingError(f"The packaged file {name} is missing from this installation.", "Install mlx-distill again.")
