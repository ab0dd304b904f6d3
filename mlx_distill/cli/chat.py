"""`mlx-distill chat`: talk to the distilled student or to its base."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import click

from mlx_distill import device
from mlx_distill.chat import ChatConfig
from mlx_distill.cli.options import config_options, resolve
from mlx_distill.cli.output import print_notes

ConfigT = TypeVar("ConfigT", bound=ChatConfig)


@click.command("chat")
@config_options(ChatConfig)
@click.option("--base", is_flag=True, help="Use the base, without the project's adapter.")
@click.option("--ab", is_flag=True, help="Base and distilled both answer each turn; they share the weights.")
def command(base: bool, ab: bool, **flags: Any) -> None:
    """Talk to the distilled student: in a project, the base model with the project's adapter.

    With a piped prompt, standard output contains only the answer.

    \b
    Examples:
      mlx-distill chat --ab
      echo "What is a queue?" | mlx-distill chat --model models/mine
    """
    if base and ab:
        raise click.UsageError("--base and --ab cannot be used together.")
    config = chat_config(ChatConfig, flags, base=base)
    device.prepare()
    from mlx_distill.chat.run import run

    run(config, print_notes, ab=ab)


def chat_config(config_class: type[ConfigT], flags: Mapping[str, Any], *, base: bool) -> ConfigT:
    """Build a config from [chat] and the options. `--model` without `--adapter` ignores the project's adapter."""
    if base and flags["adapter"]:
        raise click.UsageError("--base and --adapter cannot be used together.")
    config = resolve(config_class, "chat", flags)
    if base or (flags["model"] and not flags["adapter"]):
        config = config.replace(adapter=None)
    return config
