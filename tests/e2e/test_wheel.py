"""The wheel contains the data, the type marker and nothing else that is not code."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import REPOSITORY

DATA = ("prompts.jsonl", "test_prompts.jsonl", "sample", "sample/teacher_data.jsonl")


def python(*arguments: str | Path, **environment: str) -> str:
    finished = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=Path.home().parent,  # not the checkout, from which Python would import the package
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def test_a_wheel_brings_its_data_and_its_type_marker(tmp_path: Path) -> None:
    wheels, target = tmp_path / "wheels", tmp_path / "target"
    pip = ("-m", "pip", "--quiet", "--disable-pip-version-check")
    python(*pip, "wheel", "--no-deps", "--wheel-dir", wheels, REPOSITORY)
    (wheel,) = wheels.glob("mlx_distill-*.whl")
    python(*pip, "install", "--no-deps", "--target", target, wheel)
    code = (
        "from mlx_distill.storage.package_data import package_data_path\n"
        f"for name in {DATA!r}: print(package_data_path(name))"
    )
    found = [Path(line) for line in python("-c", code, PYTHONPATH=str(target)).splitlines()]
    assert found == [target / "mlx_distill" / "_data" / name for name in DATA]
    assert found[0].read_bytes() == (REPOSITORY / "data" / "prompts.jsonl").read_bytes()
    assert (target / "mlx_distill" / "py.typed").exists()
    assert not [path for path in target.rglob("*.jsonl") if "quickstart" in str(path)], "results are not packaged"
