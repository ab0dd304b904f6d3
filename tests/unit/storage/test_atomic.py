"""Atomic writes: a file or folder is complete or absent, also after an error."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import stat
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_distill.errors import InputError, MachineError
from mlx_distill.storage.atomic import (
    is_inside,
    is_occupied,
    new_file,
    new_folder,
    write_json,
    write_json_lists,
    write_text,
)

JSON = st.recursive(
    st.none() | st.integers() | st.text(), lambda item: st.lists(item) | st.dictionaries(st.text(), item), max_leaves=8
)


def names(folder: Path) -> list[str]:
    return sorted(item.name for item in folder.iterdir())


@given(lists=st.dictionaries(st.text(), st.lists(JSON, max_size=3), min_size=1, max_size=3))
def test_json_lists_round_trip(tmp_path_factory: pytest.TempPathFactory, lists: dict[str, list[object]]) -> None:
    path = tmp_path_factory.mktemp("lists") / "lists.json"
    write_json_lists(path, {name: iter(items) for name, items in lists.items()})

    assert json.loads(path.read_text(encoding="utf-8")) == lists
    assert names(path.parent) == ["lists.json"]


def test_new_folder_is_complete_or_absent(tmp_path: Path) -> None:
    target = tmp_path / "model"
    with pytest.raises(RuntimeError), new_folder(target) as scratch:
        (scratch / "half").write_text("x")
        assert not target.exists()
        raise RuntimeError
    assert names(tmp_path) == []

    with new_folder(target) as scratch:
        (scratch / "whole").write_text("x")
    assert names(tmp_path) == ["model"] and names(target) == ["whole"]


@pytest.mark.parametrize("new", [new_folder, new_file])
def test_failure_removes_only_its_own_folders(
    new: Callable[[Path], AbstractContextManager[Path]], tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(RuntimeError), new(tmp_path / "mine" / "a" / "b" / "model"):
        assert (tmp_path / "mine/a/b").is_dir()
        raise RuntimeError
    assert list(tmp_path.rglob("*")) == [tmp_path / "mine"]

    with pytest.raises(RuntimeError), new(tmp_path / "a" / "model"):
        (tmp_path / "a" / "of another program").touch()
        raise RuntimeError
    assert names(tmp_path / "a") == ["of another program"]


def test_occupied_folder_needs_replace(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine").write_text("x")

    with pytest.raises(InputError, match="already exists"), new_folder(tmp_path / "model"):
        raise AssertionError("the block must not run")
    with new_folder(tmp_path / "model", replace=True) as scratch:
        (scratch / "new").write_text("y")

    assert names(tmp_path) == ["model"] and names(tmp_path / "model") == ["new"]


def test_a_folder_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with pytest.raises(InputError, match="is a folder") as caught, new_file(tmp_path / "model", replace=True):
        raise AssertionError("the block must not run")
    assert "--force" not in caught.value.next_step


def test_failed_replacement_keeps_the_old_folder(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old").write_text("x")

    with pytest.raises(ValueError), new_folder(tmp_path / "model", replace=True):
        raise ValueError

    assert names(tmp_path) == ["model"] and names(tmp_path / "model") == ["old"]


def test_finder_files_do_not_occupy_a_folder(tmp_path: Path) -> None:
    (tmp_path / ".DS_Store").touch()
    assert not is_occupied(tmp_path)
    (tmp_path / "mine").touch()
    assert is_occupied(tmp_path)


@pytest.mark.parametrize(("number", "is_refused"), [(errno.EINVAL, False), (errno.ENOTSUP, False), (errno.EIO, True)])
def test_a_file_system_may_refuse_to_sync_folders(
    number: int, is_refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some network and exFAT volumes do. The file itself is synced before."""
    sync = os.fsync

    def refuse_folders(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", refuse_folders)
    monkeypatch.setattr(fcntl, "F_FULLFSYNC", -1, raising=False)  # falls back to fsync on a Mac, too
    if is_refused:
        with pytest.raises(MachineError, match="cannot write"):
            write_text(tmp_path / "a", "text")
    else:
        write_text(tmp_path / "a", "text")
        assert (tmp_path / "a").read_text() == "text"


def test_file_in_the_way_of_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("x")

    with pytest.raises(InputError, match="data/deep: a file is in the way"):
        write_json(tmp_path / "data" / "deep" / "x.json", {})


def test_written_files_have_ordinary_permissions(tmp_path: Path) -> None:
    (tmp_path / "ordinary").write_text("x")
    write_text(tmp_path / "atomic", "x")

    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "ordinary").stat().st_mode


def test_a_path_is_inside_whatever_its_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a disk that ignores case, BASE is the folder `base`."""
    assert is_inside(tmp_path / "base" / "new", tmp_path / "base")
    assert not is_inside(tmp_path, tmp_path / "base")

    def same_file(self: Path, other: Path) -> bool:
        return str(self).casefold() == str(other).casefold()

    monkeypatch.setattr(Path, "samefile", same_file)
    assert is_inside(tmp_path / "base", tmp_path / "BASE")
