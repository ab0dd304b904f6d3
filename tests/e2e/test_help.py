"""Help: every command explains itself with examples, and answers at once."""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys

import click
import pytest

from mlx_distill.cli import COMMANDS, group, main


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself_with_examples(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])

    said = capsys.readouterr().out
    assert ended.value.code in (0, None)
    assert said.startswith(f"Usage: mlx-distill {name}")
    command = group.get_command(click.Context(group), name)
    if not isinstance(command, click.Group):
        assert "Examples:" in said and f"mlx-distill {name}" in said.split("Examples:")[1]


def test_the_list_of_commands_names_all_of_them(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])

    said = capsys.readouterr().out
    assert all(f"\n  {name} " in said for name in COMMANDS)


def test_an_unknown_command_is_bad_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["trane"])

    assert ended.value.code == 2
    assert "No such command 'trane'" in capsys.readouterr().err


def test_help_answers_at_once() -> None:
    def seconds() -> float:
        """Of processor time, which a busy machine does not stretch as it does the clock's."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "mlx_distill", "--help"], capture_output=True, timeout=60, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    seconds()  # warm
    assert statistics.median(seconds() for _ in range(5)) < 0.2
