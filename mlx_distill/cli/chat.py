"""`mlx-distill chat`: talk to the distilled student, or to its base."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import click

from mlx_distill.chat.config import ChatConfig
from mlx_distill.chat.run import run
from mlx_distill.cli.options import config_options, resolve
from mlx_distill.events import Event, Progress
from mlx_distill.models.config import AnswerConfig

Config = TypeVar("Config", bound=AnswerConfig)


@click.command("chat")
@config_options(ChatConfig)
@click.option("--base", is_flag=True, help="Leave the project's adapter off.")
@click.option("--ab", is_flag=True, help="Let base and distilled answer each turn, over one copy of the weights.")
def command(base: bool, ab: bool, **flags: Any) -> None:
    """Talk to the distilled student: in a project, its adapter on the base.

    A prompt that is piped in is answered on standard output, with nothing else there.

    \b
    Examples:
      mlx-distill chat --ab
      echo "What is a queue?" | mlx-distill chat --model models/mine
    """
    if base and ab:
        raise click.UsageError("--base and --ab exclude each other.")
    run(chat_config(ChatConfig, flags, base=base), print_notes, ab=ab)


def chat_config(kind: type[Config], flags: Mapping[str, Any], *, base: bool) -> Config:
    """The settings of [chat] and the flags. A model named alone stands alone: the project's adapter is not its own."""
    if base and flags["adapter"]:
        raise click.UsageError("--base and --adapter exclude each other.")
    config = resolve(kind, "chat", flags)
    if base or (flags["model"] and not flags["adapter"]):
        config = config.replace(adapter=None)
    return config


def print_notes(event: Event) -> None:
    """Notes as lines: progress bars would fight with the line editor."""
    if not isinstance(event, Progress):
        click.secho(event.text, dim=True, err=True)
