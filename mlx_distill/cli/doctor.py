"""`mlx-distill doctor`"""

from __future__ import annotations

import click

from mlx_distill.cli.options import json_option
from mlx_distill.cli.output import print_json
from mlx_distill.run import doctor

COLOURS = {"ok": "green", "warning": "yellow", "problem": "red"}


@click.command("doctor")
@click.option("--brief", is_flag=True, help="Only what needs attention, and one line in all.")
@json_option
@click.pass_context
def command(context: click.Context, brief: bool, as_json: bool) -> None:
    """Say what works on this machine and what to do about what does not.

    Exit code 1 means that mlx-distill cannot work here; warnings alone end with 0.

    \b
    Examples:
      mlx-distill doctor
      mlx-distill -C demo doctor --json
    """
    result = doctor.run()
    if as_json:
        print_json(result)
    else:
        print_checks(result.checks, brief)
    context.exit(0 if result.ok else 1)


def print_checks(checks: tuple[doctor.Check, ...], brief: bool) -> None:
    """A line for each check, what to do beneath it, and a last line that counts."""
    width = max(len(check.name) for check in checks)
    for check in checks:
        if brief and check.status == "ok":
            continue
        status = click.style(check.status.ljust(7), fg=COLOURS[check.status])
        click.echo(f"{status}  {check.name.ljust(width)}  {check.found}")
        if check.advice:
            click.echo(f"{'':9}{'':{width}}  → {check.advice}")
    counts = {status: sum(check.status == status for check in checks) for status in COLOURS}
    said = [f"{counts['ok']} ok", _counted(counts["warning"], "warning"), _counted(counts["problem"], "problem")]
    click.echo(", ".join(said))


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
