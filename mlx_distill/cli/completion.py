"""`mlx-distill completion`: print the script that lets a shell complete commands and options."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

INSTALL = {
    "bash": "mlx-distill completion bash > ~/.mlx-distill.bash && echo '. ~/.mlx-distill.bash' >> ~/.bashrc",
    "zsh": "mlx-distill completion zsh > ~/.mlx-distill.zsh && echo '. ~/.mlx-distill.zsh' >> ~/.zshrc",
    "fish": "mkdir -p ~/.config/fish/completions"
    " && mlx-distill completion fish > ~/.config/fish/completions/mlx-distill.fish",
}
"""Install commands. The script is saved in a file, because this command would slow down each start of the shell."""


@click.command("completion")
@click.argument("shell", type=click.Choice(list(INSTALL)))
@click.pass_context
def command(context: click.Context, shell: str) -> None:
    """Print the completion script for a shell. Its last line is a comment with the install command.

    bash must be 4.4 or later (macOS has 3.2). zsh must have completion enabled (compinit).

    \b
    Examples:
      mlx-distill completion zsh
      mlx-distill completion bash > ~/.mlx-distill.bash && echo '. ~/.mlx-distill.bash' >> ~/.bashrc
    """
    kind = get_completion_class(shell)
    assert kind is not None  # click.Choice admits only shells that click knows
    complete = kind(context.find_root().command, {}, "mlx-distill", "_MLX_DISTILL_COMPLETE")
    # click's own `source` also runs bash to check its version; the script needs only the names.
    click.echo((kind.source_template % complete.source_vars()).strip())
    click.echo(f"# To install: {INSTALL[shell]}")
