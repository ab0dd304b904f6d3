"""`mlx-distill fuse`: the adapter added into a standalone model."""

from __future__ import annotations

import shlex
from typing import Any

import click

from mlx_distill.cli.options import config_options, json_option, resolve
from mlx_distill.cli.output import duration, print_facts, print_json, reporting, size
from mlx_distill.fuse.run import FuseConfig, FuseResult
from mlx_distill.run.pipeline import alone


@click.command("fuse")
@config_options(FuseConfig)
@json_option
def command(as_json: bool, **flags: Any) -> None:
    """Add the adapter into a standalone model and check it against the adapter on the test rows.

    \b
    Examples:
      mlx-distill fuse
      mlx-distill fuse --model models/base --adapter adapters/mine --data data/mine --out models/mine
      mlx-distill fuse --q-bits 8 --out models/mine-8bit
    """
    config = resolve(FuseConfig, "fuse", flags)
    with reporting() as report:
        result = alone("fuse", config, report)
    if as_json:
        print_json(result)
    else:
        print_result(result)


def print_result(result: FuseResult) -> None:
    """What was written, how close it is to the adapter, and what to type next."""
    difference = abs(result.fused_loss - result.adapter_loss)
    print_facts(
        f"Fused {result.n_layers} layers into {result.path}",
        [
            ("adapter", result.adapter),
            ("weights", f"{_precision(result)}, {size(result.size_bytes)}"),
            (
                "test loss",
                f"base {result.base_loss:.4f}, adapter {result.adapter_loss:.4f}, fused {result.fused_loss:.4f} "
                f"({result.n_rows} rows, {result.n_tokens} tokens)",
            ),
            ("check", f"losses differ by {difference:.4f}, {result.allowed_difference:.4f} allowed"),
            ("KL", f"adapter to fused {result.kl:.2g}, adapter to base {result.kl_base:.2g} nats a token"),
            ("greedy text", _greedy(result)),
            ("time", duration(result.seconds)),
            ("next", f"mlx-distill chat --model {shlex.quote(str(result.path))}"),
        ],
    )


def _precision(result: FuseResult) -> str:
    if result.q_bits:
        return f"{result.q_bits} bits with scales in {result.dtype}"
    return f"{result.dtype} (dequantised)" if result.dequantized else result.dtype


def _greedy(result: FuseResult) -> str:
    differ = [index for index in result.divergences if index is not None]
    count = len(result.divergences)
    if not differ:
        return f"the same for {count} of {count} prompts, up to {result.greedy_tokens} tokens each"
    first = f"the first difference is at token {min(differ) + 1}"
    return f"the same for {count - len(differ)} of {count} prompts, {first}"
