"""The report of a Mac: one file, with the output of every command, also of those that fail."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import mac_report

from tests.conftest import REPOSITORY


def report(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(REPOSITORY / "scripts/mac_report.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_one_file_holds_the_output_of_a_section(tmp_path: Path) -> None:
    out = tmp_path / "report.md"
    finished = report("--only", "sync", "--out", str(out))
    assert finished.returncode == 0, finished.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["report.md"]
    text = out.read_text()
    assert text.startswith("# Report of ") and "\n## sync\n" in text
    assert "durable=True: " in text and "durable=False: " in text and "exit code 0" in text


def test_the_plan_is_listed_and_a_wrong_name_is_refused() -> None:
    listed = report("--list").stdout
    for name in ("machine", "sync", "run", "steps", "memory", "speed", "fuse", "chat", "display", "tests"):
        assert f"\n{name}: " in f"\n{listed}"
    assert "AGX_RELAX_CDM_CTXSTORE_TIMEOUT=0 python -m mlx_distill" in listed
    refused = report("--only", "nothing")
    assert refused.returncode == 2 and "choose from machine, " in refused.stderr


def test_a_command_that_fails_is_part_of_the_report() -> None:
    code = "import os; print('home', os.path.expanduser('~')); [print(n) for n in range(99)]; raise SystemExit(3)"
    failed = mac_report.run(mac_report.command(sys.executable, "-c", code, NAME="value"))
    assert failed.startswith("```\n$ NAME=value python -c import os") and "\nexit code 3, " in failed
    assert "... (40 lines before)" in failed and "\n98\n```" in failed
    assert "not run: No such file" in mac_report.run(mac_report.command("no-such-program"))
    assert "stopped after 0 s" in mac_report.run(mac_report.command("sleep", "60"), timeout=0.1)


def test_the_report_does_not_name_the_user() -> None:
    home = mac_report.run(mac_report.command("sh", "-c", "echo $HOME/x"))
    assert "\n~/x\n" in home and str(Path.home()) not in home
