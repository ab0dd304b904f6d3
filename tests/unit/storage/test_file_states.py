"""File states: large files are hashed only when they changed."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from mlx_distill.storage.file_states import states_of


def test_unchanged_large_file_is_not_read(tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    weights.write_bytes(b"a" * (5 << 20))
    before = states_of([weights])
    known = {path: replace(state, sha256="known") for path, state in before.items()}

    assert states_of([weights], known)[str(weights)].sha256 == "known"

    os.utime(weights, ns=(1, 1))
    assert states_of([weights], known)[str(weights)].sha256 == before[str(weights)].sha256


def test_folder_stands_for_its_visible_files(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for name in ("a", "deep/b", ".DS_Store"):
        (tmp_path / name).write_text(name)

    assert list(states_of([tmp_path, tmp_path / "none"])) == [str(tmp_path / "a"), str(tmp_path / "deep/b")]
