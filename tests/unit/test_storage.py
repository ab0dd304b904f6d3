"""Files that survive: torn lines, locks, full disks, half-made folders, and manifests that notice every change."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_distill.errors import InputError, MissingError
from mlx_distill.run.manifest import Manifest
from mlx_distill.storage.atomic import json_text, new_file, new_folder, write_json, write_json_lists, write_text
from mlx_distill.storage.file_states import states_of
from mlx_distill.storage.journal import Journal
from mlx_distill.storage.jsonl import each_jsonl, read_at, read_jsonl, read_text


def names(folder: Path) -> list[str]:
    return sorted(item.name for item in folder.iterdir())


def lines(path: Path) -> list[object]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def in_a_process(code: str, *arguments: Path, **options: object) -> subprocess.CompletedProcess[str]:
    """Run Python code in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        **options,  # type: ignore[call-overload]
    )


def test_a_journal_keeps_every_line_it_was_given(tmp_path: Path) -> None:
    with Journal(tmp_path / "deep" / "journal.jsonl") as journal:
        journal.append({"n": 1})
        journal.append({"text": "zwei\n✓ \u2028 drei"})

    assert lines_of_journal(tmp_path / "deep" / "journal.jsonl") == [{"n": 1}, {"text": "zwei\n✓ \u2028 drei"}]


def lines_of_journal(path: Path) -> list[object]:
    return read_jsonl(path, lambda data: data)


@given(cut=st.integers(min_value=1, max_value=60))
def test_wherever_a_crash_tears_the_last_line_the_lines_before_stay(
    tmp_path_factory: pytest.TempPathFactory, cut: int
) -> None:
    path = tmp_path_factory.mktemp("torn") / "journal.jsonl"
    whole = b'{"n": 1}\n{"n": 2}\n'
    last = json.dumps({"n": 3, "text": "häß" * 20}, ensure_ascii=False).encode()
    path.write_bytes(whole + last[:cut])

    with Journal(path) as journal:
        torn = journal.torn
        journal.append({"n": 4})

    assert torn == last[:cut]
    assert lines_of_journal(path) == [{"n": 1}, {"n": 2}, {"n": 4}]


def test_a_line_is_found_again_where_the_journal_says_that_it_begins(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    rows = [{"n": 1}, {"text": "zwei\n✓ \u2028 drei"}, {"n": 3}]
    with Journal(path) as journal:
        places = [journal.append(row) for row in rows]

    assert places[0] == 0
    assert list(read_at(path, reversed(places), lambda data: data)) == rows[::-1]


@given(
    rows=st.lists(st.text() | st.integers(), max_size=5),
    blank=st.sampled_from(["", "\n", " \r\n\n"]),
    mark=st.booleans(),
)
def test_each_record_comes_with_the_place_that_it_is_read_at(
    tmp_path_factory: pytest.TempPathFactory, rows: list[str | int], blank: str, mark: bool
) -> None:
    path = tmp_path_factory.mktemp("places") / "rows.jsonl"
    lines = [json.dumps(row, ensure_ascii=False) + "\n" + blank for row in rows]
    path.write_bytes((mark * "\ufeff" + "".join(lines)).encode("utf-8"))

    found = list(each_jsonl(path, lambda data: data))

    assert [record for _, record in found] == rows == read_jsonl(path, lambda data: data)
    assert list(read_at(path, [at for at, _ in found], lambda data: data)) == rows


@pytest.mark.parametrize("read", [read_text, lambda path: read_jsonl(path, lambda data: data)])
def test_text_that_is_not_utf_8_is_refused_with_the_byte(tmp_path: Path, read: Callable[[Path], object]) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"n": 1}\n{"n": "\xff"}\n')
    with pytest.raises(InputError, match="byte 16 is not UTF-8 text"):
        read(path)


JSON = st.recursive(
    st.none() | st.integers() | st.text(), lambda item: st.lists(item) | st.dictionaries(st.text(), item), max_leaves=8
)


@given(lists=st.dictionaries(st.text(), st.lists(JSON, max_size=3), min_size=1, max_size=3))
def test_lists_written_item_by_item_make_the_same_file_as_at_once(
    tmp_path_factory: pytest.TempPathFactory, lists: dict[str, list[object]]
) -> None:
    path = tmp_path_factory.mktemp("lists") / "lists.json"
    write_json_lists(path, {name: iter(items) for name, items in lists.items()})
    assert path.read_text(encoding="utf-8") == json_text(lists)
    assert names(path.parent) == ["lists.json"]


def test_a_whole_last_line_without_its_newline_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_text('{"n": 1}\n{"n": 2}')

    with Journal(path) as journal:
        journal.append({"n": 3})

    assert journal.torn == b""
    assert lines(path) == [{"n": 1}, {"n": 2}, {"n": 3}]


def test_a_torn_line_longer_than_a_block_is_cut_off_whole(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_text('{"n": 1}\n{"text": "' + "x" * 200_000)

    with Journal(path):
        pass

    assert lines(path) == [{"n": 1}]


def test_a_journal_has_one_writer_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal:
        journal.append({"n": 1})
        with pytest.raises(InputError, match="being written by another mlx-distill"), Journal(path):
            pass
    with Journal(path) as journal:  # the lock ends with its holder
        journal.append({"n": 2})

    assert lines(path) == [{"n": 1}, {"n": 2}]


def test_a_killed_writer_leaves_whole_lines_and_no_lock(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    code = """
        import os, signal, sys
        from pathlib import Path
        from mlx_distill.storage.journal import Journal
        with Journal(Path(sys.argv[1])) as journal:
            for n in range(1000):
                journal.append({"n": n})
                if n == 7:
                    os.kill(os.getpid(), signal.SIGKILL)
    """
    assert in_a_process(code, path).returncode == -signal.SIGKILL

    with Journal(path) as journal:
        journal.append({"n": 8})
    assert lines(path) == [{"n": n} for n in range(9)]


FULL_DISK = """
    import signal, sys
    from pathlib import Path
    from mlx_distill.errors import MachineError
    from mlx_distill.storage.atomic import new_folder, write_text
    from mlx_distill.storage.journal import Journal
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    folder = Path(sys.argv[1])
    try:
        {action}
    except MachineError as error:
        print(error)
"""


def on_a_full_disk(action: str, folder: Path, limit: int) -> str:
    """Run `action` where no file can grow beyond `limit` bytes; returns the MachineError's text."""
    finished = in_a_process(
        FULL_DISK.replace("{action}", action),
        folder,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def test_a_full_disk_leaves_the_journal_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal:
        journal.append({"n": 1})

    said = on_a_full_disk(
        "with Journal(folder / 'journal.jsonl') as journal: journal.append({'text': 'x' * 5000})", tmp_path, 2000
    )

    assert "cannot write" in said and "Everything up to here is saved" in said
    assert lines(path) == [{"n": 1}]


def test_a_full_disk_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "old")

    said = on_a_full_disk("write_text(folder / 'a.txt', 'x' * 5000)", tmp_path, 2000)

    assert "a.txt: cannot write" in said
    assert (tmp_path / "a.txt").read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_a_full_disk_leaves_no_half_made_folder(tmp_path: Path) -> None:
    action = "with new_folder(folder / 'model') as scratch: (scratch / 'weights').write_text('x' * 5000)"

    said = on_a_full_disk(action, tmp_path, 2000)

    assert "model: cannot write" in said
    assert names(tmp_path) == []


def test_a_new_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "model"
    with pytest.raises(RuntimeError), new_folder(target) as scratch:
        (scratch / "half").write_text("x")
        assert not target.exists()
        raise RuntimeError("a bug half-way")
    assert names(tmp_path) == []

    with new_folder(target) as scratch:
        (scratch / "whole").write_text("x")
    assert names(tmp_path) == ["model"] and names(target) == ["whole"]


@pytest.mark.parametrize("new", [new_folder, new_file])
def test_a_failure_leaves_no_empty_folders_but_those_that_were_there(
    new: Callable[[Path], AbstractContextManager[Path]], tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(RuntimeError), new(tmp_path / "mine" / "a" / "b" / "model"):
        assert (tmp_path / "mine/a/b").is_dir()
        raise RuntimeError
    assert list(tmp_path.rglob("*")) == [tmp_path / "mine"]
    with pytest.raises(RuntimeError), new(tmp_path / "a" / "model"):
        (tmp_path / "a" / "of somebody else").touch()
        raise RuntimeError
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["of somebody else"]


def test_a_folder_that_holds_something_is_not_replaced_unasked(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine").write_text("x")

    with pytest.raises(InputError, match="exists already"), new_folder(tmp_path / "model"):
        raise AssertionError("the block must not be entered")
    with new_folder(tmp_path / "model", replace=True) as scratch:
        (scratch / "new").write_text("y")

    assert names(tmp_path) == ["model"] and names(tmp_path / "model") == ["new"]


def test_a_failed_replacement_keeps_the_old_folder(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old").write_text("x")

    with pytest.raises(ValueError), new_folder(tmp_path / "model", replace=True):
        raise ValueError("a bug half-way")

    assert names(tmp_path) == ["model"] and names(tmp_path / "model") == ["old"]


def test_a_file_in_the_way_of_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("x")

    with pytest.raises(InputError, match="data/deep: a file is in the way"):
        write_json(tmp_path / "data" / "deep" / "x.json", {})


def test_files_written_whole_have_the_permissions_of_ordinary_files(tmp_path: Path) -> None:
    (tmp_path / "ordinary").write_text("x")
    write_text(tmp_path / "durable", "x")

    assert (tmp_path / "durable").stat().st_mode == (tmp_path / "ordinary").stat().st_mode


def test_every_bad_line_of_a_file_is_named_with_its_number(tmp_path: Path) -> None:
    def parse(data: object) -> object:
        if data != {"good": 1}:
            raise ValueError("not good")
        return data

    path = tmp_path / "x.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"good": 1}\r\n\n{"bad": 1}\n{"good"\n' + b"[" * 100_000 + b"\n")

    with pytest.raises(InputError) as caught:
        read_jsonl(path, parse)

    assert [problem.split(": ")[0] for problem in caught.value.problems] == ["x.jsonl:3", "x.jsonl:4", "x.jsonl:5"]


def test_a_missing_file_and_a_file_of_other_bytes_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="there is no such file"):
        read_jsonl(tmp_path / "none.jsonl", lambda data: data)
    (tmp_path / "latin.jsonl").write_bytes("{ü}".encode("latin-1"))
    with pytest.raises(InputError, match="byte 1 is not UTF-8"):
        read_jsonl(tmp_path / "latin.jsonl", lambda data: data)
    with pytest.raises(InputError, match="is a folder"):
        read_jsonl(tmp_path, lambda data: data)


@pytest.fixture
def manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Manifest:
    """A stage that read in.txt and the folder model/, and wrote out.txt."""
    monkeypatch.chdir(tmp_path)
    Path("in.txt").write_text("in")
    Path("model").mkdir()
    Path("model/weights").write_text("w")
    Path("out.txt").write_text("out")
    inputs, outputs = states_of([Path("in.txt"), Path("model")]), states_of([Path("out.txt")])
    return Manifest("stage", {"epochs": 3}, inputs, outputs, {"python": "3"}, 1.5, "now", {"loss": 1.0})


INPUTS = [Path("in.txt"), Path("model")]


def test_a_manifest_survives_being_saved(manifest: Manifest, tmp_path: Path) -> None:
    manifest.save(tmp_path / "manifests" / "stage.json")

    assert Manifest.load(tmp_path / "manifests" / "stage.json") == manifest
    assert manifest.is_current({"epochs": 3}, INPUTS) == ""


def test_a_manifest_says_what_changed(manifest: Manifest) -> None:
    assert manifest.is_current({"epochs": 4}, INPUTS) == "epochs changed"

    Path("in.txt").write_text("other")
    assert manifest.is_current({"epochs": 3}, INPUTS) == "in.txt changed"
    Path("in.txt").write_text("in")
    assert manifest.is_current({"epochs": 3}, INPUTS) == ""

    Path("model/more").write_text("m")
    assert manifest.is_current({"epochs": 3}, INPUTS) == "more changed"
    Path("model/more").unlink()

    Path("out.txt").write_text("edited")
    assert manifest.is_current({"epochs": 3}, INPUTS) == "out.txt was changed"
    Path("out.txt").unlink()
    assert manifest.is_current({"epochs": 3}, INPUTS) == "out.txt is gone"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"stage": "x"}', '{"inputs": {"a": {}}, "outputs": {}}'])
def test_a_manifest_that_cannot_be_read_counts_as_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "stage.json").write_text(text)

    assert Manifest.load(tmp_path / "stage.json") is None


def test_large_files_are_not_read_again_while_size_and_time_are_the_same(tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    weights.write_bytes(b"a" * (5 << 20))
    before = states_of([weights])
    known = {path: replace(state, sha256="kept from before") for path, state in before.items()}

    assert states_of([weights], known)[str(weights)].sha256 == "kept from before"

    os.utime(weights, ns=(1, 1))
    assert states_of([weights], known)[str(weights)].sha256 == before[str(weights)].sha256


def test_a_journal_that_its_last_holder_removes_while_it_is_opened_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, lock, n_locked = tmp_path / "journal.jsonl", Journal._lock, 0

    def removed_first(journal: Journal) -> None:
        nonlocal n_locked
        n_locked += 1
        if n_locked == 1:
            path.unlink()
        lock(journal)

    monkeypatch.setattr(Journal, "_lock", removed_first)
    with Journal(path) as journal:
        journal.append({"kept": True})
    assert json.loads(path.read_text()) == {"kept": True}
    assert n_locked == 2
