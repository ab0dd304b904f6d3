"""`mlx-distill train`: prepared rows to an adapter."""

from __future__ import annotations

from typing import Any

import click

from mlx_distill.cli.options import config_options, json_option, resolve
from mlx_distill.cli.output import duration, print_facts, print_json, reporting, size
from mlx_distill.run.pipeline import alone
from mlx_distill.train import TrainConfig, TrainResult


@click.command("train")
@config_options(TrainConfig)
@json_option
def command(as_json: bool, **flags: Any) -> None:
    """Train an adapter on the prepared rows and keep the best one by validation loss.

    Only answer tokens are learnt. Ctrl-C finishes the step and saves; --resume goes on from there.

    \b
    Examples:
      mlx-distill train
      mlx-distill train --model models/Qwen2.5-0.5B-Instruct --data data/mine --adapter adapters/mine --epochs 2
    """
    config = resolve(TrainConfig, "train", flags)
    with reporting() as report:
        result = alone("train", config, report)
    if as_json:
        print_json(result)
    else:
        print_result(result)


def print_result(result: TrainResult) -> None:
    """How the run ended: what was trained, for how long, and loss and accuracy before and after."""
    share = result.n_trainable / result.n_parameters
    loss, accuracy = result.valid_loss - result.valid_loss_before, result.valid_accuracy - result.valid_accuracy_before
    estimated = f", {size(result.estimated_bytes)} estimated" if result.estimated_bytes else ""
    print_facts(
        f"Trained {result.steps} steps, {result.epochs:g} epochs ({result.stopped})",
        [
            ("trainable", f"{result.n_trainable / 1e6:.2f}M of {result.n_parameters / 1e6:.0f}M ({share:.2%})"),
            ("time", f"{duration(result.seconds)}, {result.supervised_tokens_per_second:.0f} answer tokens/s"),
            ("memory", f"{size(result.peak_bytes)} at most{estimated}"),
            (
                "valid loss",
                f"{result.valid_loss_before:.3f} -> {result.valid_loss:.3f} ({loss / result.valid_loss_before:+.1%})",
            ),
            (
                "token accuracy",
                f"{result.valid_accuracy_before:.1%} -> {result.valid_accuracy:.1%} ({accuracy * 100:+.1f} points; "
                f"{result.n_valid_rows} rows, {result.n_valid_tokens} tokens)",
            ),
            ("adapter", f"{result.adapter} (best: step {result.best_step})"),
        ],
    )
