"""`mlx-distill init`: create a project folder."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import click

from mlx_distill.cli.options import config_options, field_help, json_option
from mlx_distill.cli.output import print_facts, print_json
from mlx_distill.run.init import InitConfig, run


@click.command("init")
@click.argument("name", type=click.Path(path_type=Path))
@config_options(InitConfig, leave_out=("folder", "sample", "context"))
@click.option("--sample", is_flag=True, help="use the embedded sample: recorded answers, a small student, no key")
@click.option("--context", is_flag=True, help=f"{field_help(InitConfig, 'context')}.")
@json_option
def command(name: Path, as_json: bool, **flags: Any) -> None:
    """Create the project folder NAME: distill.toml with every setting explained, and the prompts.

    \b
    Examples:
      mlx-distill init demo --sample
      mlx-distill init my-student
      mlx-distill init my-student --teacher mlx:mlx-community/Qwen2.5-7B-Instruct-4bit
      mlx-distill init my-student --context
    """
    given = {name: value for name, value in flags.items() if value is not None}
    result = run(InitConfig(folder=name, **given))
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
