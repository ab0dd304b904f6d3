"""Compare estimated and measured peak memory of training, for twelve shapes of student.

    python scripts/bench/memory.py [--dtype bfloat16] [--streams 1] [--json] [--only NAME]

Random weights and rows; one step through the real loop. The measurement is mx.get_peak_memory(): what MLX allocated,
without its cache. `--streams 1` computes as on a Mac: the settings for Linux CPUs stay off, and MLX evaluates graphs
in its own order. 16-bit types cast the adapters as on Metal. The buffers that Metal holds for work that is queued are
not measured here.

The factors of `train/memory_plan.py` were fitted to the eight cases with `fitted`; the last four only check them.
"""

from __future__ import annotations

import argparse
import json
import math
import os
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
"""The largest relative difference between a measured peak and its estimate."""


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
    fitted: bool = True


SMALL, WIDE, DEEP = (
    (256, 1024, 6, 4, 2, 8_000, 4, 256),
    (224, 1216, 8, 7, 1, 8_000, 1, 512),
    (192, 512, 10, 3, 3, 8_000, 2, 256),
)
LONG, SMOL = (256, 704, 6, 4, 2, 16_000, 1, 1024), (576, 1536, 10, 9, 3, 49_152, 2, 128)
CHECKPOINT = {"grad_checkpoint": True}
CASES = {
    "small": Case(*SMALL),
    "wide MLP": Case(*WIDE),
    "many layers": Case(*DEEP),
    "large vocabulary": Case(128, 512, 4, 4, 2, 49_152, 2, 256),
    "small, dora": Case(*SMALL, {"method": "dora"}),
    "small, full": Case(*SMALL, {"method": "full"}),
    "small, gradient checkpointing": Case(*SMALL, CHECKPOINT),
    "wide MLP, gradient checkpointing": Case(*WIDE, CHECKPOINT),
    "long row": Case(*LONG, fitted=False),
    "SmolLM2-135M, 10 layers": Case(*SMOL, fitted=False),
    "long row, gradient checkpointing": Case(*LONG, CHECKPOINT, fitted=False),
    "many layers, gradient checkpointing, micro-batches": Case(
        *DEEP, {**CHECKPOINT, "micro_batch_tokens": 256}, fitted=False
    ),
}


def measure(case: Case, dtype: str) -> tuple[int, int]:
    """Return estimated and measured bytes."""
    import mlx.core as mx
    from mlx_lm.models.qwen2 import Model, ModelArgs

    from mlx_distill.models.load import Student
    from mlx_distill.models.tokenize import TokenizedChat
    from mlx_distill.train.cpu_kernels import fast_layers
    from mlx_distill.train.data import Rows
    from mlx_distill.train.execution import Execution
    from mlx_distill.train.loop import Trainer
    from mlx_distill.train.lora import make_trainable
    from mlx_distill.train.memory_plan import make_plan
    from mlx_distill.train.objectives.sft import Sft
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
        "tie_word_embeddings": True,
    }
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
        settings = TrainConfig(folder, folder, folder / "adapter", epochs=1, batch_size=case.batch_size, **case.more)
        model = Model(ModelArgs.from_dict(config))
        wanted = mx.float32 if settings.method == "full" else getattr(mx, dtype)
        model.set_dtype(wanted)
        mx.eval(model.parameters())
        student = Student(folder, model, None, config, wanted)

        def rows(count: int) -> Rows:
            tokens = [tuple(draw.randrange(case.vocabulary) for _ in range(case.length)) for _ in range(count)]
            mask = tuple(index >= case.length // 4 for index in range(case.length))
            return Rows(tuple(map(str, range(count))), tuple(TokenizedChat(row, mask) for row in tokens))

        train, valid = rows(case.batch_size), rows(1)
        execution = Execution(device.streams(), cast_adapters=wanted.size == 2)
        adapter_config = make_trainable(student, settings, cast_adapters=execution.cast_adapters)
        sft = Sft(settings, student)
        plan = make_plan(sft, train.chats, execution, device.prepare().usable_bytes)
        step = TrainStep(sft, train, plan.micro_batch_tokens, execution)
        with cpu.shared_cores(len(execution.streams)), fast_layers(student):
            result = Trainer(step, valid, plan, adapter_config, TimeBudget(0), StopRequest(), ignore).train()
    del step, sft, student, model
    mx.clear_cache()
    print(plan.estimate, f"measured {result.peak_bytes / 1e6:.1f} MB", file=sys.stderr, flush=True)
    return result.estimated_bytes, result.peak_bytes


def main() -> int:
    """Print a line for each case and the worst one. Return 1 if an estimate is off by more than ALLOWED."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=device.DTYPES, help="compute type; default: the device's")
    parser.add_argument("--streams", choices=("1", "all"), default="all", help="on a Linux CPU: 1, or one a core")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--only", default="", help="measure cases whose name contains this")
    arguments = parser.parse_args()
    if arguments.streams == "1":
        os.environ[cpu.SWITCH] = "0"
        cpu.load_fast_blas()
    device.configure_process()
    dtype = arguments.dtype or str(device.prepare().dtype).removeprefix("mlx.core.")
    n_streams = len(device.streams())
    measured_of = {name: measure(case, dtype) for name, case in CASES.items() if arguments.only in name}
    ratios = {name: measured / estimated for name, (estimated, measured) in measured_of.items()}
    worst = max(ratios.items(), key=lambda item: abs(item[1] - 1), default=("", math.inf))
    if arguments.json:
        cases = {
            name: {
                "fitted": CASES[name].fitted,
                "estimated_bytes": estimated,
                "measured_bytes": measured,
                "ratio": ratios[name],
            }
            for name, (estimated, measured) in measured_of.items()
        }
        facts = {"dtype": dtype, "streams": n_streams, "allowed": ALLOWED, "worst": worst[1], "cases": cases}
        print(json.dumps(facts, indent=2))
    else:
        print(f"{dtype}, streams: {n_streams}; * was not used for fitting")
        for name, (estimated, measured) in measured_of.items():
            sizes = f"estimated {estimated / 1e6:6.1f} MB  measured {measured / 1e6:6.1f} MB  {ratios[name]:.2f}"
            print(f"{'' if CASES[name].fitted else '*':1} {name:50} {sizes}")
        print(f"worst: {worst[1]:.2f} ({worst[0]})")
    return 0 if abs(worst[1] - 1) <= ALLOWED else 1


if __name__ == "__main__":
    sys.exit(main())
