"""The shipped data is found from the checkout and from an installed wheel far away from it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mlx_distill.errors import MissingError
from mlx_distill.storage.package_data import shipped
from tests.conftest import REPOSITORY

NAMES = ("prompts.jsonl", "test_prompts.jsonl", "sample", "sample/teacher_data.jsonl")


@pytest.mark.parametrize("name", NAMES)
def test_an_editable_install_finds_the_data_of_the_checkout(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    assert shipped(name) == REPOSITORY / "data" / name


def test_a_name_that_is_not_shipped_is_refused() -> None:
    with pytest.raises(MissingError, match=r"none\.jsonl"):
        shipped("none.jsonl")


def test_a_wheel_brings_its_data(tmp_path: Path) -> None:
    def pip(*arguments: str) -> None:
        command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
        finished = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert finished.returncode == 0, finished.stderr

    wheels, target, elsewhere = tmp_path / "wheels", tmp_path / "target", tmp_path / "elsewhere"
    elsewhere.mkdir()
    pip("wheel", "--no-deps", "--wheel-dir", str(wheels), str(REPOSITORY))
    (wheel,) = wheels.glob("mlx_distill-*.whl")
    pip("install", "--no-deps", "--target", str(target), str(wheel))

    code = f"from mlx_distill.storage.package_data import shipped\nfor name in {NAMES!r}: print(shipped(name))"
    finished = subprocess.run(
        [sys.executable, "-c", code],
        cwd=elsewhere,
        env={**os.environ, "PYTHONPATH": str(target)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )

    found = [Path(line) for line in finished.stdout.splitlines()]
    assert found == [target / "mlx_distill" / "_data" / name for name in NAMES]
    assert found[0].read_bytes() == (REPOSITORY / "data" / "prompts.jsonl").read_bytes()
    assert not [path for path in target.rglob("*.jsonl") if "quickstart" in str(path)]  # results stay at home
