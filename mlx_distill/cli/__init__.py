"""The command line: one file per command."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

import click

from mlx_distill import __version__, device
from mlx_distill.errors import DistillError

COMMANDS = {
    "init": "Create a project folder: settings and prompts.",
    "doctor": "Check what works on this machine.",
    "run": "Run all stages of distill.toml that are not up to date.",
    "collect": "Collect the teacher's answers.",
    "expand": "Ask the teacher for variations of the base prompts.",
    "prepare": "Make train, valid and test rows from the answers.",
    "convert": "Convert a student from the Hub, a folder or a GGUF file to MLX.",
    "logprobs": "Store a local teacher's log-probabilities of the prepared rows.",
    "train": "Train a LoRA adapter on the prepared rows.",
    "compare": "Compare base and distilled on held-out rows and test prompts.",
    "fuse": "Fuse the adapter into a standalone model and verify it.",
    "export": "Write the fused model as GGUF or into Ollama.",
    "push": "Upload the fused model to the Hugging Face Hub.",
    "chat": "Chat with the distilled student.",
    "serve": "Serve base and distilled through an OpenAI-compatible API.",
    "completion": "Print the completion script for bash, zsh or fish.",
}
"""Names and one-line helps, in the order of the flow. A command's file is imported only when it runs."""


class Commands(click.Group):
    """Imports a command when it is needed, so that --help answers at once."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"mlx_distill.cli.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


def _change_folder(_ctx: click.Context, _parameter: click.Parameter, folder: Path | None) -> None:
    if folder:
        os.chdir(folder)


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Start with `mlx-distill doctor`, then `mlx-distill init demo --sample && mlx-distill -C demo run`.",
)
@click.version_option(__version__, message="mlx-distill %(version)s", help="Show the version.")
@click.option(
    "-C",
    "folder",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    expose_value=False,
    callback=_change_folder,
    help="Work in this project folder.",
)
def group() -> None:
    """Distil a large teacher into a small student on one Mac.

    Collect a teacher's answers, train a LoRA adapter on MLX, compare base and distilled, fuse, chat.
    """


def _warn(text: str) -> None:
    from mlx_distill.cli.output import print_notes
    from mlx_distill.events import Warning

    print_notes(Warning(text))


def main(arguments: list[str] | None = None) -> None:
    """Run a command and exit: 0, 1 (an error with advice), 2 (bad usage), 130 (Ctrl-C)."""
    device.configure_process(_warn)
    try:
        code = group.main(arguments, prog_name="mlx-distill", standalone_mode=False)
    except DistillError as error:
        from mlx_distill.cli.output import print_error

        print_error(error)
        code = error.exit_code
    except (click.exceptions.Abort, KeyboardInterrupt):  # Abort is a RuntimeError, so before it
        click.echo("\nStopped.", err=True)
        code = 130
    except (RuntimeError, MemoryError) as error:  # MLX raises them for memory and GPU errors
        from mlx_distill.cli.output import print_error
        from mlx_distill.gpu_errors import explain

        machine_error = explain(error)
        if machine_error is None:
            raise
        print_error(machine_error)
        code = machine_error.exit_code
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except BrokenPipeError:  # the program that reads our output ended, for example `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    sys.exit(code if isinstance(code, int) else 0)
