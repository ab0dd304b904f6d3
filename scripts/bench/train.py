#!/usr/bin/env python3
"""Compare LoRA training with mlx_lm.lora and with torch + PEFT, by whole processes.

    python scripts/bench/train.py [--runs 3] [--with-torch | --torch-python PYTHON] [--json]

Every contestant is a separate program. It loads the same float32 model, scores the same 4 validation rows before the
first step and at the last, and takes the same number of steps over the same rows: 24 of the embedded sample, batches of
4, one epoch, LoRA of the same rank and scale on all linear layers, AdamW at a constant learning rate, no gradient
clipping. mlx_lm.lora gets the fast BLAS too. torch has its own oneMKL, gets the rows as tokens in a seeded random
order, and pads the rows of a batch. The order of the contestants rotates from round to round.

Supervised tokens/s: the answer tokens of the training rows by this project's mask, times the epochs, divided by the
seconds from start to exit. Peak memory: the resident memory of the process. Test loss: this project's score of the
weights after the last step.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

OURS, MLX_LM, TORCH = "mlx-distill", "mlx_lm.lora", "torch + PEFT"
TO_REACH = {MLX_LM: 1.75, TORCH: 1.15}
LOSS_WITHIN = 0.01
HERE = Path(__file__).resolve().parent
PARTS = HERE / "train_parts.py"
"""The parts that run in separate processes."""
TORCH_ENVIRONMENT = HERE.parents[1] / ".venv-bench-torch"
TORCH_NEEDS = ("torch==2.13.0", "peft>=0.17", "transformers>=5.0,<6")


@dataclass(frozen=True)
class Job:
    """The task of every contestant."""

    model: Path
    data: Path
    rows: int
    batch_size: int
    epochs: int
    learning_rate: float
    rank: int = 8
    scale: float = 4.0
    weight_decay: float = 0.01
    seed: int = 0

    @property
    def updates(self) -> int:
        return self.rows // self.batch_size * self.epochs

    def plain(self) -> dict[str, Any]:
        """Return the task as JSON data, for another process."""
        values = {name: str(value) if isinstance(value, Path) else value for name, value in vars(self).items()}
        return {**values, "updates": self.updates}


@dataclass
class Contestant:
    """One program and the figures of its rounds. `command` takes the folder for its adapter."""

    name: str
    command: Callable[[Path], Sequence[str]]
    final: Callable[[Path], Path]
    """Return the folder of the weights after the last step, within that folder."""
    updates: Callable[[Path, str], int]
    """Count its steps, from the folder or from its output."""
    made: int = 0
    seconds: list[float] = field(default_factory=list)
    peak_bytes: list[int] = field(default_factory=list)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3, help="rounds; medians are over them  [default: 3]")
    parser.add_argument("--model", type=Path, help="an MLX model folder; the sample student unless given")
    parser.add_argument("--data", type=Path, help="folder of prepared rows; the embedded sample unless given")
    parser.add_argument("--rows", type=int, default=24, help="training rows, the first of the file  [default: 24]")
    parser.add_argument("--batch-size", type=int, default=4, help="rows an update  [default: 4]")
    parser.add_argument("--epochs", type=int, default=1, help="passes over the rows  [default: 1]")
    parser.add_argument("--learning-rate", type=float, default=5e-4, help="constant learning rate  [default: 0.0005]")
    torch = parser.add_mutually_exclusive_group()
    torch.add_argument("--torch-python", type=Path, help="a Python that has torch, peft and transformers")
    torch.add_argument(
        "--with-torch", action="store_true", help=f"make such an environment first ({', '.join(TORCH_NEEDS)})"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    if options.rows % options.batch_size:
        parser.error(f"--rows must be a multiple of {options.batch_size}: mlx_lm.lora leaves a remainder out")
    python = _torch_environment() if options.with_torch else options.torch_python
    with tempfile.TemporaryDirectory(prefix="bench-train-") as scratch:
        result = compete(options, Path(scratch), python)
    print(json.dumps(result, indent=2) if options.json else _in_words(result))
    return 0


def compete(options: argparse.Namespace, scratch: Path, torch_python: Path | None) -> dict[str, Any]:
    """Run all rounds and return the figures. This process stays small: a child's memory includes it at the start."""
    job = Job(
        scratch / "model", scratch / "data", options.rows, options.batch_size, options.epochs, options.learning_rate
    )
    source = {name: str(value) if value else "" for name, value in vars(options).items() if name in ("model", "data")}
    facts = _part("prepare", {**job.plain(), "source": source, "scratch": str(scratch)})
    contestants = [_ours(job), _mlx_lm(job), *([_torch(job, torch_python)] if torch_python else [])]
    rounds = []
    for number in range(options.runs):
        turned = contestants[number % len(contestants) :] + contestants[: number % len(contestants)]
        for contestant in turned:
            _run(contestant, scratch)
        rounds.append({each.name: round(each.seconds[-1], 2) for each in turned})
        _say(f"round {number + 1}: " + ", ".join(f"{name} {seconds:.1f} s" for name, seconds in rounds[-1].items()))
    for each in contestants:
        if each.made != job.updates:
            sys.exit(f"{each.name} made {each.made} updates instead of {job.updates}")
    folders = {each.name: str(each.final(_folder(each, scratch))) for each in contestants}
    losses = _part("score", {**job.plain(), "folders": folders})
    supervised = facts["supervised_tokens"] * job.epochs
    sides = {
        each.name: {
            "seconds": round(statistics.median(each.seconds), 2),
            "supervised_tokens_per_second": round(supervised / statistics.median(each.seconds), 1),
            "peak_bytes": int(statistics.median(each.peak_bytes)),
            "test_loss": losses[each.name],
            "updates": each.made,
        }
        for each in contestants
    }
    return {
        **facts,
        "job": {name: value for name, value in job.plain().items() if name not in ("model", "data")},
        "test_loss_before": losses["base"],
        "rounds": rounds,
        "contestants": sides,
        "against": {name: _against(sides[OURS], sides[name]) for name in sides if name != OURS},
    }


def _against(ours: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    return {
        "speed": round(other["seconds"] / ours["seconds"], 3),
        "memory": round(ours["peak_bytes"] / other["peak_bytes"], 3),
        "loss": round(ours["test_loss"] / other["test_loss"] - 1, 5),
    }


def _in_words(result: dict[str, Any]) -> str:
    job, test = result["job"], result["test"]
    lines = [
        f"{job['rows']} rows, {result['supervised_tokens']:,} supervised tokens, {job['updates']} updates of "
        f"{job['batch_size']} rows, {result['device']}, {result['blas'] or 'its own BLAS'}, float32; medians of "
        f"{len(result['rounds'])} rounds; test loss over {test['tokens']:,} tokens of {test['rows']} rows, before "
        f"training {result['test_loss_before']:.4f}",
        f"{'':13} {'seconds':>8} {'tokens/s':>9} {'peak memory':>12} {'test loss':>10}",
    ]
    for name, side in result["contestants"].items():
        lines.append(
            f"{name:13} {side['seconds']:8.1f} {side['supervised_tokens_per_second']:9.1f} "
            f"{side['peak_bytes'] / 1e9:9.2f} GB {side['test_loss']:10.4f}"
        )
    for name, ratio in result["against"].items():
        lines.append(
            f"against {name}: {ratio['speed']:.2f}x the speed (to reach: {TO_REACH[name]}), {ratio['memory']:.2f}x the "
            f"memory, test loss {ratio['loss']:+.2%} (to stay within {LOSS_WITHIN:.0%})"
        )
    return "\n".join(lines)


# -- the contestants ---------------------------------------------------------------------------------------------------


def _ours(job: Job) -> Contestant:
    def command(folder: Path) -> list[str]:
        flags = {
            **{"--model": job.model, "--data": job.data, "--adapter": folder, "--epochs": job.epochs},
            **{"--batch-size": job.batch_size, "--learning-rate": job.learning_rate, "--schedule": "constant"},
            **{"--warmup": 0, "--max-grad-norm": 0, "--weight-decay": job.weight_decay, "--seed": job.seed},
            **{"--rank": job.rank, "--alpha": job.scale * job.rank, "--eval-every": job.updates},
        }
        return [sys.executable, "-m", "mlx_distill", "train", *(str(part) for flag in flags.items() for part in flag)]

    def updates(folder: Path, _said: str) -> int:
        made: int = json.loads((folder / "run.json").read_text())["result"]["steps"]
        return made

    return Contestant(OURS, command, lambda folder: folder / "last", updates)


def _mlx_lm(job: Job) -> Contestant:
    def command(folder: Path) -> list[str]:
        settings = {
            **{"model": str(job.model), "data": str(job.data), "adapter_path": str(folder), "train": True},
            **{"fine_tune_type": "lora", "num_layers": -1, "mask_prompt": True, "seed": job.seed},
            **{"batch_size": job.batch_size, "iters": job.updates, "learning_rate": job.learning_rate},
            "lora_parameters": {"rank": job.rank, "scale": job.scale, "dropout": 0.0},
            "optimizer": "adamw",
            "optimizer_config": {"adamw": {"weight_decay": job.weight_decay, "bias_correction": True}},
            # It also evaluates before the first step and at the last one.
            **{
                "val_batches": -1,
                "steps_per_eval": job.updates,
                "steps_per_report": job.updates,
                "save_every": job.updates,
            },
        }
        return [sys.executable, str(PARTS), "mlx-lm", json.dumps(settings)]

    def updates(folder: Path, _said: str) -> int:
        return max(int(file.name.split("_")[0]) for file in folder.glob("*_adapters.safetensors"))

    return Contestant(MLX_LM, command, lambda folder: folder, updates)


def _torch(job: Job, python: Path) -> Contestant:
    def command(folder: Path) -> list[str]:
        return [str(python), str(HERE / "torch_peft.py"), json.dumps({**job.plain(), "adapter": str(folder)})]

    def updates(_folder: Path, said: str) -> int:
        return sum(line.startswith("update ") for line in said.splitlines())

    return Contestant(TORCH, command, lambda folder: folder, updates)


def _folder(contestant: Contestant, scratch: Path) -> Path:
    """Return the folder of its last round."""
    return scratch / f"{contestant.name.split()[0]}-{len(contestant.seconds)}"


def _run(contestant: Contestant, scratch: Path) -> None:
    """Run one round of one contestant and add its figures."""
    log = scratch / "said.txt"
    started = time.perf_counter()
    with log.open("w") as said:
        folder = scratch / f"{contestant.name.split()[0]}-{len(contestant.seconds) + 1}"
        child = subprocess.Popen(contestant.command(folder), stdout=said, stderr=subprocess.STDOUT, cwd=scratch)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    contestant.seconds.append(time.perf_counter() - started)
    contestant.peak_bytes.append(usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024))
    text = log.read_text()
    if child.returncode:
        sys.exit(f"{contestant.name} ended with {child.returncode}:\n{text[-3000:]}")
    contestant.made = contestant.updates(folder, text)


def _torch_environment() -> Path:
    """Return the Python of a second environment with torch and PEFT. Create the environment if it is missing."""
    python = TORCH_ENVIRONMENT / "bin" / "python"
    if not python.exists():
        _say(f"Making {TORCH_ENVIRONMENT} with {', '.join(TORCH_NEEDS)} ...")
        venv.create(TORCH_ENVIRONMENT, with_pip=True)
    subprocess.run([python, "-m", "pip", "install", "--quiet", *TORCH_NEEDS], check=True)
    return python


def _part(name: str, settings: dict[str, Any]) -> Any:
    command = [sys.executable, str(PARTS), name, json.dumps(settings)]
    said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(said.splitlines()[-1])


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
