"""`mlx-distill doctor`: check this machine."""

from __future__ import annotations

import click

from mlx_distill.cli.options import json_option
from mlx_distill.cli.output import print_json, safe
from mlx_distill.formatting import plural
from mlx_distill.run.doctor import DiagnosticCheck, run

COLOURS = {"ok": "green", "warning": "yellow", "problem": "red"}


@click.command("doctor")
@click.option("--brief", is_flag=True, help="print only what needs attention, and one line of counts")
@json_option
@click.pass_context
def command(context: click.Context, brief: bool, as_json: bool) -> None:
    """Check what works on this machine, and give advice for the rest.

    Exit code 1 means that mlx-distill cannot work here. With warnings only, the exit code is 0.

    \b
    Examples:
      mlx-distill doctor
      mlx-distill -C demo doctor --json
    """
    result = run()
    if as_json:
        print_json(result)
    else:
        print_checks(result.checks, brief)
    context.exit(0 if result.ok else 1)


def print_checks(checks: tuple[DiagnosticCheck, ...], brief: bool) -> None:
    """Print one line per check with its advice below, then the counts."""
    width = max(len(check.name) for check in checks)
    for check in checks:
        if brief and check.status == "ok":
            continue
        status = click.style(check.status.ljust(7), fg=COLOURS[check.status])
        click.echo(f"{status}  {check.name.ljust(width)}  {safe(check.found)}")
        if check.advice:
            click.echo(f"{'':9}{'':{width}}  → {safe(check.advice)}")
    counts = {status: sum(check.status == status for check in checks) for status in COLOURS}
    click.echo(f"{counts['ok']} ok, {plural(counts['warning'], 'warning')}, {plural(counts['problem'], 'problem')}")
