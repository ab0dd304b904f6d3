"""Stored log-probabilities: what was written is read, changed rows are found, and broken files are refused."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest

from mlx_distill.errors import InputError, MissingError
from mlx_distill.models import signal
from mlx_distill.models.signal import SignalWriter, Source, TeacherSignal, Values, row_key
from mlx_distill.models.tokenize import TokenizedChat

SHARD_TOKENS = 20
SOURCE = Source("w", "t", "c", "x", "float32", vocabulary=400, top_k=4)


def chat(number: int) -> TokenizedChat:
    """A row with `number` answer tokens after two others."""
    tokens = (7, number, *range(number))
    return TokenizedChat(tokens, (False, False, *([True] * number)))


def values_of(key: str, count: int, source: Source) -> Values:
    """Values that depend on the row alone."""
    draw = np.random.default_rng(int(key[:8], 16))
    ids = draw.integers(0, source.vocabulary, (count, source.top_k), dtype=np.uint32)
    log_probs = -np.sort(draw.exponential(3, (count, source.top_k))).astype(np.float32)
    return ids, log_probs


def write(folder: Path, rows: Sequence[TokenizedChat], source: Source = SOURCE, *, stop_after: int = 99) -> list[str]:
    """Write the rows, or as many shards as allowed; return the keys of the rows that were scored."""
    folder.mkdir(exist_ok=True)
    writer = SignalWriter(folder, source, {row_key(row): row.n_supervised for row in rows}, SHARD_TOKENS)
    scored: list[str] = []
    for shard in writer.unfinished[:stop_after]:
        keys = writer.to_score(shard)
        writer.write(shard, {key: values_of(key, writer.n_tokens[key], source) for key in keys})
        scored += keys
    if stop_after == 99:
        writer.finish("mlx:teacher")
    return scored


def contents(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}


ROWS = [chat(number) for number in range(1, 15)]


@pytest.mark.parametrize("vocabulary", [400, 65_536, 65_537, 152_064])
def test_rows_are_read_as_they_were_written(tmp_path: Path, vocabulary: int) -> None:
    source = msgspec.structs.replace(SOURCE, vocabulary=vocabulary)
    write(tmp_path / "s", ROWS, source)
    found = TeacherSignal.open(tmp_path / "s")
    assert len(found.manifest.shards) > 3 and found.manifest.n_rows == 14 and found.manifest.n_tokens == 105
    for row in ROWS:
        ids, log_probs = found.row(row_key(row))
        expected = values_of(row_key(row), row.n_supervised, source)
        assert (ids.dtype.name, log_probs.dtype.name) == ("uint32", "float32")
        assert np.array_equal(ids, expected[0])
        assert np.allclose(log_probs, expected[1], rtol=2**-11)
    assert source.bytes_per_token == (16 if vocabulary <= 65_536 else 24)


def test_values_use_the_stated_bytes(tmp_path: Path) -> None:
    write(tmp_path / "s", ROWS)
    arrays = signal._Shard.open(sorted((tmp_path / "s").glob("*.safetensors"))[0], SOURCE)
    assert arrays.ids.nbytes + arrays.log_probs.nbytes == SOURCE.bytes_per_token * len(arrays.ids)


def test_a_key_depends_on_tokens_mask_and_document() -> None:
    row = TokenizedChat((1, 2, 3), (False, True, True))
    others = [
        row_key(TokenizedChat((1, 2, 4), row.mask)),
        row_key(TokenizedChat(row.tokens, (False, False, True))),
        row_key(row, "a document"),
    ]
    assert len({row_key(row), *others}) == 4
    assert row_key(row) == row_key(TokenizedChat(row.tokens, row.mask), "")


@pytest.mark.parametrize("n_shards", [0, 1, 3])
def test_interrupted_writing_continues_to_the_same_bytes(tmp_path: Path, n_shards: int) -> None:
    write(tmp_path / "whole", ROWS)
    first = write(tmp_path / "s", ROWS, stop_after=n_shards)
    with pytest.raises(MissingError, match="no complete log-probabilities"):
        TeacherSignal.open(tmp_path / "s")
    (tmp_path / "s" / ".leftover.safetensors.x1").write_bytes(b"half a shard")
    second = write(tmp_path / "s", list(reversed(ROWS)))
    assert not set(first) & set(second) and len(first) + len(second) == len(ROWS)
    assert contents(tmp_path / "s") == contents(tmp_path / "whole")


def test_only_changed_rows_are_scored_again(tmp_path: Path) -> None:
    write(tmp_path / "s", ROWS)
    changed = TokenizedChat((9, 9, 1), (False, False, True))
    rows = [*ROWS[:5], changed, *ROWS[6:]]
    with pytest.raises(InputError, match=r"no log-probabilities of row 'r5': it is new, or its tokens changed"):
        TeacherSignal.open(tmp_path / "s").check(row_key(changed), 1, "r5")
    assert write(tmp_path / "s", rows) == [row_key(changed)]
    write(tmp_path / "fresh", rows)
    assert contents(tmp_path / "s") == contents(tmp_path / "fresh")
    with pytest.raises(InputError, match="no log-probabilities"):
        TeacherSignal.open(tmp_path / "s").row(row_key(ROWS[5]))
    assert write(tmp_path / "s", rows) == []


@pytest.mark.parametrize("name", ["weights", "tokenizer", "template", "context", "dtype"])
def test_another_source_scores_every_row_again(tmp_path: Path, name: str) -> None:
    write(tmp_path / "s", ROWS)
    other = msgspec.structs.replace(SOURCE, **{name: "other"})
    assert len(write(tmp_path / "s", ROWS, other)) == len(ROWS)
    assert TeacherSignal.open(tmp_path / "s").source == other


def test_equal_rows_are_stored_once(tmp_path: Path) -> None:
    write(tmp_path / "s", [ROWS[3], ROWS[3], ROWS[2]])
    assert TeacherSignal.open(tmp_path / "s").manifest.n_rows == 2


def test_a_very_small_probability_stays_finite(tmp_path: Path) -> None:
    row = chat(1)
    (tmp_path / "s").mkdir()
    writer = SignalWriter(tmp_path / "s", SOURCE, {row_key(row): 1})
    least = np.array([[0, -1e-9, -1e6, -np.inf]], dtype=np.float32)
    writer.write(writer.unfinished[0], {row_key(row): (np.arange(4, dtype=np.uint32)[None], least)})
    writer.finish("mlx:teacher")
    _, log_probs = TeacherSignal.open(tmp_path / "s").row(row_key(row))
    assert log_probs.tolist() == [[0.0, 0.0, -65504.0, -65504.0]]


def cut_off(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-5])


def long_header(file: Path) -> None:
    file.write_bytes((1 << 60).to_bytes(8, "little") + file.read_bytes()[8:])


def edit_header(old: bytes, new: bytes) -> Callable[[Path], None]:
    def edit(file: Path) -> None:
        data = file.read_bytes()
        assert old in data and len(old) == len(new)
        file.write_bytes(data.replace(old, new, 1))

    return edit


def large_id(file: Path) -> None:
    data = file.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    place = start + header["ids"]["data_offsets"][0]
    file.write_bytes(data[:place] + b"\xff\xff" + data[place + 2 :])


def not_a_number(file: Path) -> None:
    data = file.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    place = start + json.loads(data[8:start])["log_probs"]["data_offsets"][0]
    file.write_bytes(data[:place] + b"\x00\x7e" + data[place + 2 :])


def pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


BROKEN: Mapping[str, Callable[[Path], None]] = {
    "cut off": cut_off,
    "endless header": long_header,
    "empty": lambda file: os.truncate(file, 0),
    "another type": edit_header(b'"U16"', b'"F99"'),
    "shape and size differ": edit_header(b'"shape": [1', b'"shape": [9'),
    "a negative shape": edit_header(b'"shape": [', b'"shape":[-'),
    "a pipe": pipe,
    "another source": edit_header(SOURCE.digest[:8].encode(), b"00000000"),
    "missing array": edit_header(b"row_keys", b"row_cats"),
    "an id out of range": large_id,
    "not a number": not_a_number,
    "gone": lambda file: file.unlink(),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_shards_are_refused_and_made_again(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "s"
    write(folder, ROWS)
    before = contents(folder)
    BROKEN[name](sorted(folder.glob("*.safetensors"))[0])
    with pytest.raises(InputError) as caught:
        found = TeacherSignal.open(folder)
        for row in ROWS:
            found.row(row_key(row))
    assert len(str(caught.value).splitlines()) == 2 and str(folder) in str(caught.value)
    assert write(folder, ROWS)
    assert contents(folder) == before


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "[" * 100_000, '{"format": 2}', '{"format": "x"}'],
    ids=["empty", "half", "list", "null", "deep", "version", "type"],
)
def test_broken_manifests_are_refused(tmp_path: Path, text: str) -> None:
    write(tmp_path / "s", ROWS)
    (tmp_path / "s" / "manifest.json").write_text(text)
    with pytest.raises(InputError, match="manifest"):
        TeacherSignal.open(tmp_path / "s")


def test_a_pipe_in_place_of_the_manifest_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "s", ROWS)
    pipe(tmp_path / "s" / "manifest.json")
    with pytest.raises(InputError, match="pipe"):
        TeacherSignal.open(tmp_path / "s")


def test_values_of_another_number_of_tokens_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "s", ROWS)
    found, n_tokens = TeacherSignal.open(tmp_path / "s"), ROWS[3].n_supervised
    found.check(row_key(ROWS[3]), n_tokens, "r3")
    with pytest.raises(InputError, match=f"{n_tokens} answer tokens of row 'r3', which has {n_tokens + 1}"):
        found.check(row_key(ROWS[3]), n_tokens + 1, "r3")


def test_a_manifest_cannot_name_files_elsewhere(tmp_path: Path) -> None:
    write(tmp_path / "s", ROWS)
    file = tmp_path / "s" / "manifest.json"
    data = json.loads(file.read_text())
    data["shards"][0]["file"] = "../" + data["shards"][0]["file"]
    file.write_text(json.dumps(data))
    with pytest.raises(InputError, match="another version"):
        TeacherSignal.open(tmp_path / "s")
