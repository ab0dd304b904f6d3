"""Storage under kills, full disks and a second writer, with child processes."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mlx_distill.convert.config import ConvertConfig
from mlx_distill.convert.run import run as convert
from mlx_distill.errors import InputError
from mlx_distill.fuse.config import FuseConfig
from mlx_distill.fuse.run import run as fuse
from mlx_distill.prepare.config import PrepareConfig
from mlx_distill.prepare.run import run as prepare
from mlx_distill.storage.atomic import write_text
from mlx_distill.storage.journal import Journal
from mlx_distill.storage.lock import exclusive
from mlx_distill.train.config import TrainConfig
from mlx_distill.train.run import run as train
from tests.support.adapters import write_test_rows

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
MAX_FILE_BYTES = 2000


def run_python(code: str, *arguments: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, **options)


def lines(path: Path) -> list[object]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_killed_writer_leaves_complete_lines_and_no_lock(tmp_path: Path) -> None:
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
    assert run_python(code, path).returncode == -signal.SIGKILL

    with Journal(path) as journal:
        journal.append({"n": 8})
    assert lines(path) == [{"n": n} for n in range(9)]


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[int]:
    """Another process that writes the folder `out`; its id."""
    code = """
        import os, sys
        from pathlib import Path
        from mlx_distill.storage.lock import exclusive
        with exclusive(Path(sys.argv[1])):
            print(os.getpid(), flush=True)
            sys.stdin.read()
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "out")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        yield int(process.stdout.readline())
        process.communicate()


@pytest.mark.parametrize("stage", ["convert", "prepare", "train", "fuse"])
def test_a_second_process_is_told_who_writes_the_folder(
    stage: str, holder: int, tmp_path: Path, tiny_student: Path
) -> None:
    out = tmp_path / "out"
    write_test_rows(tmp_path / "data")
    stages: dict[str, Callable[[], object]] = {
        "convert": lambda: convert(ConvertConfig(str(tiny_student), out)),
        "prepare": lambda: prepare(PrepareConfig(data=out, model=tiny_student)),
        "train": lambda: train(TrainConfig(model=tiny_student, data=tmp_path / "data", adapter=out)),
        "fuse": lambda: fuse(FuseConfig(tiny_student, tmp_path / "adapter", tmp_path / "data", out)),
    }
    with pytest.raises(InputError, match=rf"out is being written by another mlx-distill \(process {holder}\)"):
        stages[stage]()
    assert not out.exists()


def test_another_name_of_a_folder_has_the_same_lock(holder: int, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path, target_is_directory=True)
    with pytest.raises(InputError, match=f"process {holder}"), exclusive(tmp_path / "link" / "out"):
        pass


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (
            "with Journal(folder / 'journal.jsonl') as journal: journal.append({'text': 'x' * 5000})",
            "Everything before this is saved",
        ),
        ("write_text(folder / 'a.txt', 'x' * 5000)", "a.txt: cannot write"),
        (
            "with new_folder(folder / 'model') as scratch: (scratch / 'weights').write_text('x' * 5000)",
            "model: cannot write",
        ),
    ],
)
def test_full_disk_changes_nothing(tmp_path: Path, action: str, message: str) -> None:
    write_text(tmp_path / "a.txt", "old")
    with Journal(tmp_path / "journal.jsonl") as journal:
        journal.append({"n": 1})

    finished = run_python(
        FULL_DISK.replace("{action}", action),
        tmp_path,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (MAX_FILE_BYTES, MAX_FILE_BYTES)),
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )

    assert message in finished.stdout, finished.stderr
    assert lines(tmp_path / "journal.jsonl") == [{"n": 1}]
    assert (tmp_path / "a.txt").read_text() == "old"
    assert sorted(item.name for item in tmp_path.iterdir()) == ["a.txt", "journal.jsonl"]
