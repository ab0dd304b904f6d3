"""Locks: a second writer is refused, and the message names the process that holds the lock."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from mlx_distill.errors import InputError, MachineError
from mlx_distill.storage.atomic import new_folder
from mlx_distill.storage.lock import exclusive


def test_second_writer_is_told_who_holds_the_lock(tmp_path: Path) -> None:
    with (
        exclusive(tmp_path / "model"),
        pytest.raises(InputError, match=f"model is being written by another mlx-distill \\(process {os.getpid()}\\)"),
        exclusive(tmp_path / "model"),
    ):
        pass
    with exclusive(tmp_path / "model"):  # the lock ends with the block
        pass
    assert not list(tmp_path.iterdir())


def test_a_link_in_place_of_the_lock_is_not_followed(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("kept")
    (tmp_path / ".model.lock").symlink_to(precious)
    with pytest.raises(MachineError, match=r"\.model\.lock: cannot be written"), exclusive(tmp_path / "model"):
        pass
    assert precious.read_text() == "kept"


@pytest.mark.parametrize("make", [os.mkfifo, lambda lock: os.link(lock.with_name("precious"), lock)])
def test_a_pipe_or_a_second_name_is_no_lock(tmp_path: Path, make: Callable[[Path], None]) -> None:
    (tmp_path / "precious").write_text("kept")
    make(tmp_path / ".model.lock")
    with pytest.raises(MachineError, match=r"\.model\.lock: not a lock"), exclusive(tmp_path / "model"):
        pass
    assert (tmp_path / "precious").read_text() == "kept"


def test_new_folder_has_one_writer(tmp_path: Path) -> None:
    with (
        new_folder(tmp_path / "model") as scratch,
        pytest.raises(InputError, match="being written"),
        new_folder(tmp_path / "model"),
    ):
        (scratch / "weights").touch()
