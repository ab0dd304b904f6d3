"""Help: every command explains itself with examples, and answers at once."""

from __future__ import annotations

import re
import resource
import shlex
import statistics
import subprocess
import sys

import click
import pytest

from mlx_distill.cli import COMMANDS, group, main


def check_examples(said: str, *path: str) -> None:
    """At least two lines under `Examples:` run the command, with options and values that it takes."""
    asked = re.findall(r"mlx-distill (?:-C \S+ )?([^>\n]*)", said.partition("Examples:")[2].split("\n\n")[0])
    assert len(asked) >= 2
    for line in asked:
        command: click.Command = group
        words = shlex.split(line)
        assert tuple(words[: len(path)]) == path
        while isinstance(command, click.Group):
            found = command.get_command(click.Context(command), words.pop(0))
            assert found
            command = found
        command.make_context(line, words)  # a usage error for what it does not take


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself_with_examples(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])

    said = capsys.readouterr().out
    assert ended.value.code in (0, None)
    assert said.startswith(f"Usage: mlx-distill {name}")
    check_examples(said, name)
    command = group.get_command(click.Context(group), name)
    for part in command.commands if isinstance(command, click.Group) else ():
        with pytest.raises(SystemExit):
            main([name, part, "--help"])
        check_examples(capsys.readouterr().out, name, part)


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
