"""README and docs: the command line accepts their commands and knows their options, and their links lead to files."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

from mlx_distill.cli import COMMANDS, group
from tests.conftest import REPOSITORY
from tests.support.small_project import write_project
from tests.support.tiny import make_tiny_qwen2

WHITE_BOX = REPOSITORY / "docs/guides/white-box.md"
BENCHMARKS = REPOSITORY / "docs/benchmarks.md"
"""Names options of the bench scripts."""
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
OTHER_PROGRAMS = {"--only", "--list", "--adapter-path", "--no-deps"}
"""Options of pip, mlx-lm and our scripts that the other pages name."""


def commands_of(page: Path) -> list[list[str]]:
    """Return the words of each mlx-distill command in the code blocks of a page."""
    blocks = re.findall(r"^```\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    lines = [line.split(" #")[0] for block in blocks for line in block.splitlines()]
    parts = [part.strip() for line in lines for part in line.split("&&")]
    return [shlex.split(part)[1:] for part in parts if part.startswith("mlx-distill ")]


def parse(words: list[str]) -> None:
    """Raise a usage error if the command line refuses the command."""
    command: click.Command | None = group
    words = words[2:] if words[0] == "-C" else list(words)
    while isinstance(command, click.Group):
        command = command.get_command(click.Context(command), words.pop(0))
    assert command, words
    command.make_context("mlx-distill", words)


def known_options() -> set[str]:
    """Return the options of all commands."""
    todo: list[click.Command | None] = [group, *(group.get_command(click.Context(group), name) for name in COMMANDS)]
    found = {"--help"}
    for command in todo:
        assert command
        found |= {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        if isinstance(command, click.Group) and command is not group:
            todo += command.commands.values()
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_options_and_links_of_a_page(page: Path) -> None:
    for words in commands_of(page):
        parse(words)
    text = page.read_text()
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+[a-z]", text)) - OTHER_PROGRAMS
    assert page == BENCHMARKS or named <= known_options()
    links = re.findall(r"\]\((?!https?:)([^)#]+)", text)
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_white_box_commands_run(tmp_path: Path, tiny_student: Path) -> None:
    """All but `init` and `run`, on a small project. The last adapter on the page is that of `on-policy`."""
    teacher = make_tiny_qwen2(tmp_path / "teacher", seed=9, layers=3)
    project = tmp_path / "mine"
    write_project(project, tiny_student)
    settings = project / "distill.toml"
    settings.write_text(settings.read_text() + f'[logprobs]\nteacher = "mlx:{teacher}"\n')
    for words in commands_of(WHITE_BOX):
        if words[0] in ("init", "run"):
            continue
        named = [f"mlx:{teacher}" if word.startswith("mlx:") else word for word in words]
        done = subprocess.run(
            [sys.executable, "-m", "mlx_distill", *named], cwd=project, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    assert (project / "adapters/own/rollouts.jsonl").read_text()
