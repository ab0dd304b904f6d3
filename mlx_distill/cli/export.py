"""`mlx-distill export`: the fused model as a GGUF file or in Ollama."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import click

from mlx_distill.cli.options import config_options, json_option
from mlx_distill.cli.output import duration, print_facts, print_json, reporting, size
from mlx_distill.config import parse
from mlx_distill.export.ollama import OllamaConfig, OllamaResult
from mlx_distill.run.project import Project

GGUF_KINDS = ("F16", "BF16", "F32", "Q8_0")


@click.group("export")
def command() -> None:
    """Write the fused model as a GGUF file, or into Ollama.

    \b
    Examples:
      mlx-distill export gguf --kind Q8_0
      mlx-distill export ollama
    """


@command.command("gguf")
@click.option("--model", type=click.Path(path_type=Path), help="the fused model folder")
@click.option("--out", type=click.Path(path_type=Path), help="the file to write  [default: MODEL-KIND.gguf]")
@click.option("--kind", type=click.Choice(GGUF_KINDS), default="F16", help="type of the weights  [default: F16]")
@click.option("--force", is_flag=True, help="replace the file where it exists")
@json_option
def gguf(model: Path | None, out: Path | None, kind: str, force: bool, as_json: bool) -> None:
    """Write the fused model as one GGUF file, for llama.cpp and LM Studio.

    \b
    Examples:
      mlx-distill export gguf
      mlx-distill export gguf --model models/mine --kind Q8_0 --out mine.gguf
    """
    from mlx_distill import device

    folder = fused_model(model)
    device.prepare()
    from mlx_distill.export.gguf import KINDS, write_gguf

    name = folder.resolve().name
    target = out or folder.parent / f"{name}-{kind}.gguf"
    with reporting() as report:
        result = write_gguf(folder, target, next(known for known in KINDS if known == kind), report, replace=force)
    if as_json:
        print_json(result)
        return
    print_facts(
        f"Wrote {result.path}",
        [
            ("weights", f"{result.kind}, {result.n_tensors} tensors, {size(result.size_bytes)}"),
            ("time", duration(result.seconds)),
            ("LM Studio", lm_studio(result.path, name)),
            ("next", f"llama-cli -m {shlex.quote(str(result.path))}"),
        ],
    )


@command.command("ollama")
@config_options(OllamaConfig)
@json_option
def ollama(as_json: bool, **flags: Any) -> None:
    """Write a GGUF file with its Modelfile, and create the model where Ollama is installed.

    \b
    Examples:
      mlx-distill export ollama
      mlx-distill export ollama --model models/mine --name mine --kind Q8_0
    """
    from mlx_distill.export.ollama import run

    given = {name: value for name, value in flags.items() if value is not None}
    folder = fused_model(given.get("model"))
    project = Project.find(Path())
    name = re.sub(r"[^a-z0-9._-]+", "-", folder.resolve().name.lower()).strip("-._")
    defaults = {
        "model": folder,
        "out": folder.parent / f"{folder.resolve().name}-ollama",
        "name": name,
        "system": project.config.system if project else "",
    }
    with reporting() as report:
        result = run(parse(OllamaConfig, {**defaults, **given}, "options"), report)
    if as_json:
        print_json(result)
    else:
        print_ollama(result)


def print_ollama(result: OllamaResult) -> None:
    """What was written, and what to type to use it."""
    run = f"ollama run {result.name}"
    print_facts(
        f"Created {result.name} in Ollama"
        if result.created
        else f"Wrote {result.modelfile}; Ollama is not installed here",
        [
            ("weights", f"{result.gguf}, {size(result.size_bytes)}"),
            ("LM Studio", lm_studio(result.gguf, result.name.replace(":", "-"))),
            ("next", run if result.created else f"{result.command} && {run}"),
        ],
    )


def lm_studio(gguf: Path, name: str) -> str:
    """What to type for LM Studio, which looks two folders below its own: publisher and model."""
    folder = f"~/.lmstudio/models/mlx-distill/{shlex.quote(name.rpartition('/')[2])}"
    return f"looks in ~/.lmstudio/models: mkdir -p {folder} && cp {shlex.quote(str(gguf))} {folder}/"


def fused_model(given: Path | None) -> Path:
    """The model that was named, or the project's fused one; a usage error where there is neither."""
    if given:
        return given
    project = Project.find(Path())
    if project is None:
        raise click.UsageError("This folder has no distill.toml, so --model must be given.")
    return project.fused
