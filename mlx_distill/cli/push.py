"""`mlx-distill push`: the fused model to the Hugging Face Hub."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from mlx_distill.cli.export import fused_model
from mlx_distill.cli.options import json_option
from mlx_distill.cli.output import print_facts, print_json, print_notes, size
from mlx_distill.errors import InputError
from mlx_distill.export.hub import Listing, PushConfig, run


@click.command("push")
@click.argument("repo")
@click.option("--model", type=click.Path(path_type=Path), help="the fused model folder")
@click.option("--private/--no-private", default=True, help="only you can see it  [default: private]")
@click.option("--yes", is_flag=True, help="do not ask")
@click.option("--force", is_flag=True, help="replace files that the repository holds already")
@json_option
def command(repo: str, model: Path | None, private: bool, yes: bool, force: bool, as_json: bool) -> None:
    """Upload the fused model to the Hugging Face Hub as REPO, after showing what would go there.

    \b
    Examples:
      mlx-distill push my-student
      mlx-distill push me/my-student --model models/mine --no-private --yes
    """

    def confirm(listing: Listing) -> bool:
        show(listing)
        if yes:
            return True
        if not sys.stdin.isatty():
            raise InputError("Nobody is here to say yes.", "In scripts, pass --yes.")
        return click.confirm("Upload?", err=True)

    config = PushConfig(fused_model(model), repo, private, force)
    result = run(config, print_notes, confirm=confirm)
    if as_json:
        print_json(result)
    else:
        visible = "private" if result.private else "public"
        print_facts(
            f"Uploaded {result.n_files} files, {size(result.size_bytes)}",
            [("repository", f"{result.url} ({visible})"), ("next", f"mlx_lm.chat --model {result.repo}")],
        )


def show(listing: Listing) -> None:
    """The files that would be uploaded, on standard error."""
    visible = "private: only you can see it" if listing.private else "PUBLIC: everybody can see it"
    click.echo(f"{listing.repo} ({visible})", err=True)
    width = max(len(name) for name, _ in listing.files)
    for name, size_bytes in listing.files:
        click.echo(f"  {name.ljust(width)}  {size(size_bytes):>9}", err=True)
    click.echo(f"  {len(listing.files)} files, {size(listing.size_bytes)}", err=True)
