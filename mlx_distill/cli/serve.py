"""`mlx-distill serve`: offer base and distilled to programs that use OpenAI's API."""

from __future__ import annotations

from typing import Any

import click

from mlx_distill import device
from mlx_distill.cli.chat import chat_config
from mlx_distill.cli.options import config_options
from mlx_distill.cli.output import print_notes
from mlx_distill.run.pipeline import keep_awake
from mlx_distill.serve import ServeConfig


@click.command("serve")
@config_options(ServeConfig)
@click.option("--base", is_flag=True, help="Serve the base only, without the project's adapter.")
def command(base: bool, **flags: Any) -> None:
    """Serve `base` and `distilled` on 127.0.0.1 through an OpenAI-compatible API. They share the weights.

    \b
    Examples:
      mlx-distill serve
      mlx-distill serve --model models/base --adapter adapters/mine --port 9000
    """
    config = chat_config(ServeConfig, flags, base=base)
    device.prepare()
    from mlx_distill.serve.run import run

    with keep_awake():
        run(config, print_notes)
