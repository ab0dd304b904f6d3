"""Compare estimated and measured peak memory of training, for a few shapes of student.

    python scripts/bench/memory.py [--json] [--only NAME]

Random weights, random rows, two steps and an evaluation through the real loop, in float32. The measurement is
mx.get_peak_memory(): what MLX allocated, without its cache.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlx_distill import cpu, device
from mlx_distill.events import ignore
from mlx_distill.train import TrainConfig

ALLOWED = 0.25
"""The largest relative error of an estimate."""


@dataclass(frozen=True)
class Case:
    """The shape of a student and the settings of its training."""

    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    batch_size: int
    length: int
    more: dict[str, Any] = field(default_factory=dict)
    tied: bool = True


QWEN = (896, 4864, 2, 14, 2, 151_936)
SMOL = (576, 1536, 30, 9, 3, 49_152)
CASES = {
    "small, vocabulary 8,000, batch 8 x 256": Case(256, 1024, 6, 4, 2, 8_000, 8, 256),
    "two layers like Qwen2.5-0.5B, batch 4 x 512": Case(*QWEN, 4, 512),
    "SmolLM2-135M, batch 4 x 256": Case(*SMOL, 4, 256),
    "SmolLM2-135M, batch 2 x 128": Case(*SMOL, 2, 128),
    "small, dora": Case(256, 1024, 6, 4, 2, 8_000, 8, 256, {"method": "dora"}),
    "small, full": Case(256, 1024, 6, 4, 2, 8_000, 8, 256, {"method": "full"}),
    "small, full, untied head": Case(256, 1024, 6, 4, 2, 8_000, 8, 256, {"method": "full"}, tied=False),
    "small, gradient checkpointing": Case(256, 1024, 12, 4, 2, 8_000, 8, 256, {"grad_checkpoint": True}),
    "small, micro-batches of 512 tokens": Case(256, 1024, 6, 4, 2, 8_000, 8, 256, {"micro_batch_tokens": 512}),
}


def measure(case: Case) -> tuple[int, int]:
    """Return estimated and measured bytes."""
    import mlx.core as mx
    from mlx_lm.models.qwen2 import Model, ModelArgs

    from mlx_distill.models.load import Student
    from mlx_distill.models.tokenize import Rendered
    from mlx_distill.train.cpu_kernels import fast_layers
    from mlx_distill.train.data import Rows
    from mlx_distill.train.execution import Execution
    from mlx_distill.train.loop import Trainer
    from mlx_distill.train.lora import make_trainable
    from mlx_distill.train.memory_plan import make_plan
    from mlx_distill.train.objectives import OBJECTIVES
    from mlx_distill.train.schedule import TimeBudget
    from mlx_distill.train.signals import StopRequest
    from mlx_distill.train.step import TrainStep

    draw = random.Random(0)
    config = {
        "model_type": "qwen2",
        "hidden_size": case.hidden,
        "intermediate_size": case.inner,
        "num_hidden_layers": case.layers,
        "num_attention_heads": case.heads,
        "num_key_value_heads": case.kv_heads,
        "vocab_size": case.vocabulary,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": case.tied,
    }
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
        settings = TrainConfig(folder, folder, folder / "adapter", epochs=1, batch_size=case.batch_size, **case.more)
        model = Model(ModelArgs.from_dict(config))
        model.set_dtype(mx.float32)
        mx.eval(model.parameters())
        student = Student(folder, model, None, config, mx.float32)

        def rows(count: int) -> Rows:
            tokens = [tuple(draw.randrange(case.vocabulary) for _ in range(case.length)) for _ in range(count)]
            mask = tuple(index >= case.length // 4 for index in range(case.length))
            return Rows(tuple(map(str, range(count))), tuple(Rendered(row, mask) for row in tokens))

        train, valid = rows(2 * case.batch_size), rows(2)
        execution = Execution.on(device.prepare())
        adapter_config = make_trainable(student, settings)
        plan = make_plan(student, settings, train.rows, execution, device.prepare().usable_bytes)
        step = TrainStep(settings, student, OBJECTIVES["sft"], train, plan.micro_batch_tokens, execution)
        with cpu.shared_cores(len(execution.streams)), fast_layers(student):
            result = Trainer(settings, step, valid, plan, adapter_config, TimeBudget(0), StopRequest(), ignore).train()
    del step, student, model
    mx.clear_cache()
    print(plan.estimate, file=sys.stderr)
    return result.estimated_bytes, result.peak_bytes


def main() -> int:
    """Print a line for each case. Return 1 if an estimate is off by more than ALLOWED."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--only", default="", help="measure cases whose name contains this")
    arguments = parser.parse_args()
    device.configure_process()
    measured_of = {name: measure(case) for name, case in CASES.items() if arguments.only in name}
    off = {name: estimated / measured - 1 for name, (estimated, measured) in measured_of.items()}
    if arguments.json:
        cases = {
            name: {"estimated_bytes": estimated, "measured_bytes": measured, "off": off[name]}
            for name, (estimated, measured) in measured_of.items()
        }
        print(json.dumps({"allowed": ALLOWED, "cases": cases}, indent=2))
    else:
        for name, (estimated, measured) in measured_of.items():
            print(f"{name:46} estimated {estimated / 1e9:6.2f} GB  measured {measured / 1e9:6.2f} GB  {off[name]:+.0%}")
    return 0 if measured_of and all(abs(share) <= ALLOWED for share in off.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
