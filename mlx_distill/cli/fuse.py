"""`mlx-distill fuse`: add the adapter into a standalone model."""

from __future__ import annotations

import shlex
from typing import Any

import click

from mlx_distill.cli.options import config_options, json_option, resolve
from mlx_distill.cli.output import print_facts, print_json, reporting
from mlx_distill.formatting import format_bytes, format_duration
from mlx_distill.fuse.config import FuseConfig
from mlx_distill.run.pipeline import run_standalone
from mlx_distill.run.stages import FUSE


@click.command("fuse")
@config_options(FuseConfig)
@json_option
def command(as_json: bool, **flags: Any) -> None:
    """Add the adapter into a standalone model and verify it against the adapter on the test rows.

    \b
    Examples:
      mlx-distill fuse
      mlx-distill fuse --model models/base --adapter adapters/mine --data data/mine --out models/mine
      mlx-distill fuse --q-bits 8 --out models/mine-8bit
    """
    config = resolve(FuseConfig, "fuse", flags)
    with reporting() as report:
        result = run_standalone(FUSE, config, report)
    if as_json:
        print_json(result)
        return
    precision = f"{result.dtype} (dequantised)" if result.dequantized else result.dtype
    if result.q_bits:
        precision = f"{result.q_bits} bits with scales in {result.dtype}"
    losses = f"base {result.base_loss:.4f}, adapter {result.adapter_loss:.4f}, fused {result.fused_loss:.4f}"
    difference = abs(result.fused_loss - result.adapter_loss)
    differ = [index for index in result.divergences if index is not None]
    same = f"equal for {len(result.divergences) - len(differ)} of {len(result.divergences)} prompts"
    first = f"first difference at token {min(differ) + 1}" if differ else f"up to {result.greedy_tokens} tokens each"
    print_facts(
        f"Fused {result.n_layers} layers into {result.path}",
        [
            ("adapter", result.adapter),
            ("weights", f"{precision}, {format_bytes(result.size_bytes)}"),
            ("test loss", f"{losses} ({result.n_rows} rows, {result.n_tokens} tokens)"),
            ("check", f"losses differ by {difference:.4f}, {result.allowed_difference:.4f} allowed"),
            ("KL", f"adapter to fused {result.kl:.2g}, adapter to base {result.kl_base:.2g} nats per token"),
            ("greedy text", f"{same}, {first}"),
            ("time", format_duration(result.seconds)),
            ("next", f"mlx-distill chat --model {shlex.quote(str(result.path))}"),
        ],
    )
