"""`mlx-distill push`: upload the fused model to the Hugging Face Hub."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from mlx_distill.cli.export import fused_model
from mlx_distill.cli.options import json_option
from mlx_distill.cli.output import print_facts, print_json, reporting, safe
from mlx_distill.errors import InputError, Interrupted
from mlx_distill.export.config import PushConfig
from mlx_distill.formatting import format_bytes


@click.command("push")
@click.argument("repo")
@click.option("--model", type=click.Path(path_type=Path), help="the fused model folder")
@click.option("--private/--no-private", default=True, help="only you can see it  [default: private]")
@click.option("--yes", is_flag=True, help="do not ask")
@click.option("--force", is_flag=True, help="replace files that the repository holds already")
@json_option
def command(repo: str, model: Path | None, private: bool, yes: bool, force: bool, as_json: bool) -> None:
    """Upload the fused model to the Hugging Face Hub as REPO, after showing the files.

    \b
    Examples:
      mlx-distill push my-student
      mlx-distill push me/my-student --model models/mine --no-private --yes
    """
    from mlx_distill.export import hub

    config = PushConfig(fused_model(model), repo, private, force)
    files = hub.files_to_upload(config)
    visible = "private" if private else "PUBLIC: everybody can see it"
    lines = [safe(f"{name}  {format_bytes(size_bytes)}") for name, size_bytes in files.items()]
    click.echo(
        "\n  ".join([f"{safe(repo)} ({visible})", *lines, f"total  {format_bytes(sum(files.values()))}"]), err=True
    )
    if not yes and not sys.stdin.isatty():
        raise InputError("There is no terminal to ask for a confirmation.", "In scripts, pass --yes.")
    if not yes and not click.confirm("Upload?", err=True):
        raise Interrupted("Nothing was uploaded.")
    with reporting() as report:
        result = hub.run(config, report)
    if as_json:
        print_json(result)
        return
    print_facts(
        f"Uploaded {result.n_files} files, {format_bytes(result.size_bytes)}",
        [("repository", f"{result.url} ({visible})"), ("next", f"mlx_lm.chat --model {result.repo}")],
    )
