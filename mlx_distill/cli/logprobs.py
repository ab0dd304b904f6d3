"""`mlx-distill logprobs`: store a local teacher's log-probabilities."""

from __future__ import annotations

from typing import Any

import click

from mlx_distill.cli.options import config_options, json_option, resolve
from mlx_distill.cli.output import print_facts, print_json, reporting
from mlx_distill.formatting import format_bytes, format_duration, format_percent
from mlx_distill.logprobs import LogprobsConfig
from mlx_distill.run.pipeline import run_standalone
from mlx_distill.run.stages import LOGPROBS


@click.command("logprobs")
@config_options(LogprobsConfig)
@json_option
def command(as_json: bool, **flags: Any) -> None:
    """Store a local teacher's log-probabilities of every answer token of the prepared rows.

    `train --objective kd` learns from them. Teacher and student must have the same tokenizer; this is checked before
    the teacher loads. Rows that are stored already are not scored again. After Ctrl-C, the same command continues.

    \b
    Examples:
      mlx-distill logprobs
      mlx-distill logprobs --teacher mlx:models/Qwen2.5-7B-Instruct-4bit --top-k 20
      mlx-distill logprobs --teacher self --examples data/shots.jsonl
    """
    with reporting() as report:
        result = run_standalone(LOGPROBS, resolve(LogprobsConfig, "logprobs", flags), report)
    if as_json:
        print_json(result)
        return
    speed = f", {result.tokens_per_second:,.0f} tokens/s" if result.n_scored else ""
    print_facts(
        f"Log-probabilities of {result.teacher}",
        [
            ("tokens", f"{result.n_tokens:,} answer tokens of {result.n_rows:,} rows"),
            ("scored now", f"{result.n_scored:,}{speed}"),
            ("kept", f"top {result.top_k}: {format_percent(result.mass)} of the probability"),
            ("time", format_duration(result.seconds)),
            ("written to", f"{result.folder} ({format_bytes(result.n_bytes)})"),
        ],
    )
