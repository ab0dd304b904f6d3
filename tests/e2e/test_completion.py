"""Shell completion: the printed script completes commands and options, and ends with its install command."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Finished

Cli = Callable[..., Finished]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_ends_with_its_install_command(shell: str, cli: Cli) -> None:
    printed = cli("completion", shell)
    assert printed.code == 0 and printed.err == ""
    *script, last = printed.out.splitlines()
    assert last.startswith("# To install: ") and f"mlx-distill completion {shell} > ~/" in last
    assert f"_MLX_DISTILL_COMPLETE={shell}_complete" in "\n".join(script)
    if shell == "zsh":
        assert script[0] == "#compdef mlx-distill"


def test_bash_completes_commands_and_options(tmp_path: Path, cli: Cli) -> None:
    script = tmp_path / "completion.bash"
    script.write_text(cli("completion", "bash").out)
    program = tmp_path / "mlx-distill"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m mlx_distill "$@"\n')
    program.chmod(0o755)

    def complete(*words: str) -> list[str]:
        line = f"COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}"
        asked = f'source {script}; {line}; _mlx_distill_completion mlx-distill; echo "${{COMPREPLY[@]}}"'
        env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
        done = subprocess.run(["bash", "-c", asked], capture_output=True, text=True, env=env, timeout=60, check=True)
        return done.stdout.split()

    assert complete("mlx-distill", "fu") == ["fuse"]
    assert "--q-bits" in complete("mlx-distill", "fuse", "--q")
    assert complete("mlx-distill", "completion", "f") == ["fish"]


@pytest.mark.parametrize(("shell", "n_words"), [("zsh", "1"), ("fish", "fu")])
def test_zsh_and_fish_show_the_help_of_a_command(shell: str, n_words: str, cli: Cli) -> None:
    env = {"_MLX_DISTILL_COMPLETE": f"{shell}_complete", "COMP_WORDS": "mlx-distill fu", "COMP_CWORD": n_words}
    answer = cli(env=env)
    assert answer.code == 0 and "fuse" in answer.out and "Add the adapter" in answer.out


def test_another_shell_exits_with_2(cli: Cli) -> None:
    assert cli("completion", "tcsh").code == 2
