"""JSON lines: records with their offsets, and all problems with their lines."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_distill.errors import InputError, MissingError
from mlx_distill.storage.jsonl import MAX_TEXT_BYTES, each_line, read_json, read_jsonl, read_text


def same(data: object) -> object:
    return data


@given(
    rows=st.lists(st.text() | st.integers(), max_size=5),
    blank=st.sampled_from(["", "\n", " \r\n\n"]),
    mark=st.booleans(),
)
def test_blank_lines_and_byte_order_mark_are_skipped(
    tmp_path_factory: pytest.TempPathFactory, rows: list[str | int], blank: str, mark: bool
) -> None:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    content = "".join(json.dumps(row, ensure_ascii=False) + "\n" + blank for row in rows)
    path.write_bytes((mark * "\ufeff" + content).encode("utf-8"))

    assert read_jsonl(path, same) == rows


@pytest.mark.parametrize("read", [read_text, lambda path: read_jsonl(path, same)])
def test_byte_that_is_not_utf8_is_named(tmp_path: Path, read: Callable[[Path], object]) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"n": 1}\n{"n": "\xff"}\n')
    with pytest.raises(InputError, match="byte 16 is not UTF-8 text"):
        read(path)


def test_every_bad_line_is_named(tmp_path: Path) -> None:
    def parse(data: object) -> object:
        if data != {"good": 1}:
            raise ValueError("not good")
        return data

    path = tmp_path / "x.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"good": 1}\r\n\n{"bad": 1}\n{"good"\n' + b"[" * 100_000 + b"\n")

    with pytest.raises(InputError) as caught:
        read_jsonl(path, parse)

    assert [problem.split(": ")[0] for problem in caught.value.problems] == ["x.jsonl:3", "x.jsonl:4", "x.jsonl:5"]


def test_missing_file_and_folder_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="no such file"):
        read_jsonl(tmp_path / "none.jsonl", same)
    with pytest.raises(InputError, match="is a folder"):
        read_jsonl(tmp_path, same)


@pytest.mark.parametrize("read", [read_text, lambda path: list(each_line(path)), lambda path: read_jsonl(path, str)])
def test_a_pipe_or_a_device_is_refused(read: Callable[[Path], object], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(InputError, match="is a pipe or a device"):
            read(path)


def test_a_file_with_a_huge_hole_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.touch()
    os.truncate(path, MAX_TEXT_BYTES + 1)
    with pytest.raises(InputError, match="67,108,865 bytes"):
        read_text(path)


def test_json_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('\ufeff{"a": 1}', encoding="utf-8")
    assert read_json(path, "") == {"a": 1}
