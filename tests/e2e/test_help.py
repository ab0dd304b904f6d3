"""Help: every command has examples that it accepts, and `--help` loads nothing heavy."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys

import click
import pytest

from mlx_distill.cli import COMMANDS, group, main
from mlx_distill.run.stages import SECTIONS

HEAVY = {
    "anthropic",
    "gguf",
    "huggingface_hub",
    "mlx",
    "mlx_lm",
    "numpy",
    "openai",
    "rich",
    "starlette",
    "tokenizers",
    "transformers",
    "tree_sitter",
    "uvicorn",
}


def help_of(capsys: pytest.CaptureFixture[str], *path: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main([*path, "--help"])
    assert ended.value.code in (0, None)
    return capsys.readouterr().out


def subcommand(command: click.Command, name: str) -> click.Command:
    assert isinstance(command, click.Group)
    found = command.get_command(click.Context(command), name)
    assert found
    return found


def check_examples(text: str, *path: str) -> None:
    """Check that at least two lines under `Examples:` run the command, with options and values that it accepts."""
    examples = re.findall(r"mlx-distill (?:-C \S+ )?([^>\n]*)", text.partition("Examples:")[2].split("\n\n")[0])
    assert len(examples) >= 2
    for example in examples:
        command: click.Command = group
        words = shlex.split(example)
        assert tuple(words[: len(path)]) == path
        while isinstance(command, click.Group):
            command = subcommand(command, words.pop(0))
        command.make_context(example, words)  # raises a usage error for anything else


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_examples(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of(capsys, name)
    assert text.startswith(f"Usage: mlx-distill {name}")
    check_examples(text, name)
    command = subcommand(group, name)
    for part in command.commands if isinstance(command, click.Group) else ():
        check_examples(help_of(capsys, name, part), name, part)


def test_the_list_of_commands_is_complete(capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of(capsys)
    assert all(f"\n  {name} " in text for name in COMMANDS)


def test_help_and_settings_load_nothing_heavy() -> None:
    modules = sorted({config.__module__ for config, _ in SECTIONS.values()})
    modules += [f"mlx_distill.cli.{name}" for name in COMMANDS]
    code = (
        "import importlib, json, sys\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        "print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert not HEAVY & set(json.loads(done.stdout))
