"""`mlx-distill init`: create a project folder."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from mlx_distill.cli.options import json_option
from mlx_distill.cli.output import print_facts, print_json
from mlx_distill.run.init import InitConfig, run


@click.command("init")
@click.argument("name", type=click.Path(path_type=Path))
@click.option("--sample", is_flag=True, help="use the embedded sample: recorded answers, a small student, no key")
@json_option
def command(name: Path, sample: bool, as_json: bool) -> None:
    """Create the project folder NAME: distill.toml with every setting explained, and the prompts.

    \b
    Examples:
      mlx-distill init demo --sample
      mlx-distill init my-student
    """
    result = run(InitConfig(folder=name, sample=sample))
    if as_json:
        print_json(result)
        return
    facts = [("teacher", result.teacher), ("student", result.student)]
    print_facts(f"Created {result.folder}", [*facts, *(("file", str(file)) for file in result.files)])
    click.echo("Next:")
    click.echo(f"  cd {shlex.quote(str(result.folder))}")
    if result.teacher.startswith("anthropic:"):
        click.echo("  export ANTHROPIC_API_KEY=...     # the teacher's key; it is never written to a file")
    click.echo("  mlx-distill run")
