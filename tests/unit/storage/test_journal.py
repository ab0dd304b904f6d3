"""Journals: no line is lost, and an incomplete last line is removed."""

from __future__ import annotations

import fcntl
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_distill.errors import InputError, MachineError
from mlx_distill.storage.journal import Journal


def lines(path: Path) -> list[object]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def test_every_line_is_kept(tmp_path: Path) -> None:
    rows = [{"n": 1}, {"text": "zwei\n✓ \u2028 drei"}]
    with Journal(tmp_path / "deep" / "journal.jsonl") as journal:
        assert [journal.append(row) for row in rows] == [0, 9]

    assert lines(tmp_path / "deep" / "journal.jsonl") == rows


@given(cut=st.integers(min_value=1, max_value=60))
def test_torn_last_line_is_removed(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    path = tmp_path_factory.mktemp("partial") / "journal.jsonl"
    last = json.dumps({"n": 3, "text": "häß" * 20}, ensure_ascii=False).encode()
    path.write_bytes(b'{"n": 1}\n{"n": 2}\n' + last[:cut])

    with Journal(path) as journal:
        assert journal.removed == last[:cut]
        journal.append({"n": 4})

    assert lines(path) == [{"n": 1}, {"n": 2}, {"n": 4}]


@pytest.mark.parametrize(
    ("content", "kept"),
    [
        ('{"n": 1}\n{"n": 2}', [{"n": 1}, {"n": 2}]),  # complete, but without its newline
        ('{"n": 1}\n{"text": "' + "x" * 200_000, [{"n": 1}]),  # longer than one block
    ],
)
def test_last_line_without_newline(tmp_path: Path, content: str, kept: list[object]) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_text(content)

    with Journal(path) as journal:
        journal.append({"n": 3})

    assert lines(path) == [*kept, {"n": 3}]


def test_second_writer_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal:
        journal.append({"n": 1})
        with pytest.raises(InputError, match="being written by another mlx-distill"), Journal(path):
            pass
    with Journal(path) as journal:  # the lock ends with its holder
        journal.append({"n": 2})

    assert lines(path) == [{"n": 1}, {"n": 2}]


def test_file_system_without_locks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_descriptor: int, _operation: int) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(MachineError, match="cannot lock files"), Journal(tmp_path / "journal.jsonl"):
        pass


def test_journal_removed_while_opening_is_created_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, flock = tmp_path / "journal.jsonl", fcntl.flock

    def remove_first(descriptor: int, operation: int) -> None:
        monkeypatch.setattr(fcntl, "flock", flock)
        path.unlink()
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", remove_first)
    with Journal(path) as journal:
        journal.append({"kept": True})

    assert lines(path) == [{"kept": True}]
