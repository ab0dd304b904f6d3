"""`mlx-distill train`: train an adapter on prepared rows."""

from __future__ import annotations

from typing import Any

import click

from mlx_distill.cli.options import config_options, json_option, resolve
from mlx_distill.cli.output import print_facts, print_json, reporting
from mlx_distill.formatting import format_bytes, format_duration, format_percent, plural
from mlx_distill.run.pipeline import run_standalone
from mlx_distill.run.stages import TRAIN
from mlx_distill.train import TrainConfig, TrainResult


@click.command("train")
@config_options(TrainConfig)
@json_option
def command(as_json: bool, **flags: Any) -> None:
    """Train an adapter on the prepared rows and keep the best one on valid.jsonl: by loss, or by KL to the teacher.

    Only answer tokens are learned. Ctrl-C finishes the step and saves; --resume continues.

    \b
    Examples:
      mlx-distill train
      mlx-distill train --objective kd --learning-rate 3e-4
      mlx-distill train --objective on-policy --teacher mlx:models/teacher --learning-rate 1e-4
      mlx-distill train --model models/Qwen2.5-0.5B-Instruct --data data/mine --adapter adapters/mine --epochs 2
    """
    config = resolve(TrainConfig, "train", flags)
    with reporting() as report:
        result = run_standalone(TRAIN, config, report)
    if as_json:
        print_json(result)
    else:
        print_result(result)


def print_result(result: TrainResult) -> None:
    """Print size and time of the training, and loss and accuracy before and after."""
    trainable = f"{result.n_trainable / 1e6:.2f}M of {result.n_parameters / 1e6:.0f}M"
    fraction = format_percent(result.n_trainable / result.n_parameters, 2)
    estimated = f" ({format_bytes(result.estimated_bytes)} estimated)" if result.estimated_bytes else ""
    accuracy = f"{format_percent(result.valid_accuracy_before)} → {format_percent(result.valid_accuracy)}"
    points = 100 * (result.valid_accuracy - result.valid_accuracy_before)
    n_valid = f"{plural(result.n_valid_rows, 'row')}, {plural(result.n_valid_tokens, 'token')}"
    best = f"best: step {result.best_step}" if result.best_step else "no step was better than the base: step 0"
    kl = []
    if result.valid_kl_before is not None and result.valid_kl is not None:
        kl = [("valid KL", f"{_change(result.valid_kl_before, result.valid_kl)} to the teacher")]
    print_facts(
        f"Trained {result.steps} steps, {result.epochs:g} epochs ({result.stopped})",
        [
            ("trainable", f"{trainable} ({fraction})"),
            ("time", f"{format_duration(result.seconds)}, {result.supervised_tokens_per_second:.0f} answer tokens/s"),
            ("peak memory", f"{format_bytes(result.peak_bytes)}{estimated}"),
            *kl,
            ("valid loss", _change(result.valid_loss_before, result.valid_loss)),
            ("token accuracy", f"{accuracy} ({points:+.1f} points; {n_valid})"),
            ("adapter", f"{result.adapter} ({best})"),
        ],
    )


def _change(before: float, after: float) -> str:
    change = f" ({100 * (after / before - 1):+.1f} %)" if before else ""
    return f"{before:.3f} → {after:.3f}{change}"
