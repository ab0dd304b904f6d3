"""`mlx-distill completion`: the script that teaches a shell to complete commands and options."""

from __future__ import annotations

import click

INSTALL = {
    "bash": "mlx-distill completion bash > ~/.mlx-distill.bash && echo '. ~/.mlx-distill.bash' >> ~/.bashrc",
    "zsh": "mlx-distill completion zsh > ~/.mlx-distill.zsh && echo '. ~/.mlx-distill.zsh' >> ~/.zshrc",
    "fish": "mkdir -p ~/.config/fish/completions"
    " && mlx-distill completion fish > ~/.config/fish/completions/mlx-distill.fish",
}
"""Written to a file once: asking for the script at every start of a shell would slow that down."""


@click.command("completion")
@click.argument("shell", type=click.Choice(list(INSTALL)))
@click.pass_context
def command(context: click.Context, shell: str) -> None:
    """Print the completion script of a shell, with the line that installs it as a comment at its end.

    bash has to be 4.4 or later (macOS brings 3.2), and zsh needs its completion switched on (compinit).

    \b
    Examples:
      mlx-distill completion zsh
      mlx-distill completion bash > ~/.mlx-distill.bash && echo '. ~/.mlx-distill.bash' >> ~/.bashrc
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None  # the argument is one of click's shells
    complete = kind(context.find_root().command, {}, "mlx-distill", "_MLX_DISTILL_COMPLETE")
    # click's own `source` also runs bash to look at its version; the script depends on nothing but the names.
    click.echo((kind.source_template % complete.source_vars()).strip())
    click.echo(f"# To install: {INSTALL[shell]}")
