"""Compilation makes the optimizer part of a step launch a tenth of the kernels, or fewer."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.conftest import REPOSITORY


def test_the_compiled_update_launches_few_kernels() -> None:
    command = [sys.executable, str(REPOSITORY / "scripts/bench/kernels.py"), "--layers", "4", "--json"]
    counts = json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
    assert counts["plain"]["total"] > 4 * 7 * 2 * 20
    assert counts["compiled"]["total"] <= 0.1 * counts["plain"]["total"]
