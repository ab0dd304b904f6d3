"""`mlx-distill export`: the fused model as a GGUF file or in Ollama."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import click

from mlx_distill import device
from mlx_distill.cli.options import config_options, json_option
from mlx_distill.cli.output import print_facts, print_json, reporting
from mlx_distill.config import parse
from mlx_distill.export.config import GgufConfig, OllamaConfig
from mlx_distill.formatting import format_bytes, format_duration
from mlx_distill.run.project import Project


@click.group("export")
def command() -> None:
    """Write the fused model as a GGUF file, or into Ollama.

    \b
    Examples:
      mlx-distill export gguf --kind Q8_0
      mlx-distill export ollama
    """


@command.command("gguf")
@config_options(GgufConfig)
@json_option
def gguf(as_json: bool, **flags: Any) -> None:
    """Write the fused model as one GGUF file, for llama.cpp and LM Studio.

    \b
    Examples:
      mlx-distill export gguf
      mlx-distill export gguf --model models/mine --kind Q8_0 --out mine.gguf
    """
    folder = fused_model(flags["model"])
    name = folder.resolve().name
    defaults = {"model": folder, "out": folder.parent / f"{name}-{flags['kind'] or 'F16'}.gguf"}
    config = parse(GgufConfig, defaults | _given(flags), "options")
    device.prepare()
    from mlx_distill.export.gguf import run

    with reporting() as report:
        result = run(config, report)
    if as_json:
        print_json(result)
        return
    file, target = shlex.quote(str(result.path)), f"~/.lmstudio/models/mlx-distill/{shlex.quote(name)}"
    print_facts(
        f"Wrote {result.path}",
        [
            ("weights", f"{result.kind}, {result.n_tensors} tensors, {format_bytes(result.size_bytes)}"),
            ("time", format_duration(result.seconds)),
            ("LM Studio", f"mkdir -p {target} && cp {file} {target}/"),
            ("next", f"llama-cli -m {file}"),
        ],
    )


@command.command("ollama")
@config_options(OllamaConfig)
@json_option
def ollama(as_json: bool, **flags: Any) -> None:
    """Write a GGUF file with its Modelfile, and create the model if Ollama is installed.

    \b
    Examples:
      mlx-distill export ollama
      mlx-distill export ollama --model models/mine --name mine --kind Q8_0
    """
    folder, project = fused_model(flags["model"]), Project.find(Path())
    name = folder.resolve().name
    defaults = {
        "model": folder,
        "out": folder.parent / f"{name}-ollama",
        "name": re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip("-._"),
        "system": project.config.system if project else "",
    }
    config = parse(OllamaConfig, defaults | _given(flags), "options")
    device.prepare()
    from mlx_distill.export.ollama import run

    with reporting() as report:
        result = run(config, report)
    if as_json:
        print_json(result)
        return
    start = f"ollama run {result.name}"
    print_facts(
        f"Created {result.name} in Ollama" if result.created else f"Wrote {result.modelfile}. Ollama is not installed.",
        [
            ("weights", f"{result.gguf}, {format_bytes(result.size_bytes)}"),
            ("next", start if result.created else f"{result.command} && {start}"),
        ],
    )


def _given(flags: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in flags.items() if value is not None}


def fused_model(given: Path | None) -> Path:
    """Return the named model, or the project's fused one. Raises a usage error if there is neither."""
    project = Project.find(Path())
    if given:
        return given
    if project is None:
        raise click.UsageError("This folder has no distill.toml, so --model must be given.")
    return project.fused
