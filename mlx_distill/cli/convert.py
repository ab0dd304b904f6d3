"""`mlx-distill convert`: make an MLX model of a student."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mlx_distill.cli.options import config_options, json_option, resolve
from mlx_distill.cli.output import print_facts, print_json, reporting
from mlx_distill.convert.config import ConvertConfig
from mlx_distill.formatting import format_duration
from mlx_distill.run.pipeline import run_standalone
from mlx_distill.run.project import student_name
from mlx_distill.run.stages import CONVERT
from mlx_distill.sanitize import printable


@click.command("convert")
@click.argument("source", required=False)
@config_options(ConvertConfig, leave_out=("source",))
@json_option
def command(source: str | None, as_json: bool, **flags: Any) -> None:
    """Make an MLX model of a student from the Hub, a folder, a GGUF file or the packaged sample.

    SOURCE is a Hub id (owner/name), a model folder, a GGUF file, or `sample`. Default: the project's student.

    \b
    Examples:
      mlx-distill convert
      mlx-distill convert sample
      mlx-distill convert Qwen/Qwen2.5-0.5B-Instruct --out models/qwen-8bit --q-bits 8
    """
    if source and not flags["out"]:
        flags["out"] = Path("models") / student_name(source)
    config = resolve(ConvertConfig, "convert", {"source": source, **flags})
    with reporting() as report:
        result = run_standalone(CONVERT, config, report)
    if as_json:
        print_json(result)
        return
    print_facts(
        "Already there" if result.already_there else "Converted",
        [
            ("source", f"{result.source} @ {result.revision}" if result.revision else result.source),
            ("parameters", f"{result.n_parameters / 1e6:.1f}M"),
            ("weights", "links to the source, which is MLX already" if result.linked else result.dtype),
            ("answers", " ".join(printable(result.sample_text).split())),
            ("time", format_duration(result.seconds)),
            ("model", str(result.path)),
        ],
    )
