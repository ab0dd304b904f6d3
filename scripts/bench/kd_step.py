#!/usr/bin/env python3
"""Compare a training step with stored log-probabilities (kd) with a step of the cross-entropy (sft) on the same rows.

    python scripts/bench/kd_step.py [--model FOLDER] [--rows 8] [--steps 5] [--top-k 64] [--json]

The student is the sample's. The rows are written answers of the sample, the log-probabilities are random: neither time
nor memory depends on their values. Steps of both objectives alternate. The ratio is that of the median processor times:
it does not depend on how busy the machine is. On Metal it is that of the median wall-clock times.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from mlx_distill import cpu, device

TARGET = 1.3


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="the converted sample student; default: convert it")
    parser.add_argument("--rows", type=int, default=8, help="rows of a step")
    parser.add_argument("--steps", type=int, default=5, help="steps of each objective, after one that is not counted")
    parser.add_argument("--top-k", type=int, default=64)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    device.configure_process()
    with tempfile.TemporaryDirectory() as scratch:
        result = measure(Path(scratch), options)
    if options.json:
        print(json.dumps(result, indent=2))
    else:
        for name, seconds in result["seconds"].items():
            print(f"{name:4} {seconds:.2f} s a step, {result['peak_bytes'][name] / 1e6:,.0f} MB at the peak")
        print(f"ratio {result['ratio']:.2f} (to reach: {TARGET} or less)")
    return 0 if result["ratio"] <= TARGET else 1


def measure(scratch: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Take the steps; return the median times and the peaks."""
    import mlx.core as mx

    from mlx_distill.models.load import load_student
    from mlx_distill.storage import files
    from mlx_distill.storage.atomic import jsonl_text, write_text
    from mlx_distill.train import TrainConfig
    from mlx_distill.train.cpu_kernels import fast_layers
    from mlx_distill.train.data import read_rows
    from mlx_distill.train.execution import Execution
    from mlx_distill.train.lora import make_trainable
    from mlx_distill.train.objectives import OBJECTIVES
    from mlx_distill.train.step import TrainStep

    model = options.model or _convert(scratch)
    write_text(scratch / files.TRAIN, jsonl_text(row.to_json() for row in _examples(options.rows)))
    _write_random_signal(scratch, model, options.top_k)
    execution = Execution.on(device.prepare())
    steps: dict[str, Any] = {}
    for name in ("sft", "kd"):
        config = TrainConfig(model, scratch, scratch / name, objective=name, batch_size=options.rows)
        objective = OBJECTIVES[name](config, load_student(model))
        rows = read_rows(scratch / files.TRAIN, objective, 1 << 20)
        make_trainable(objective.student, config, cast_adapters=execution.cast_adapters)
        steps[name] = TrainStep(objective, rows, 4096, execution)
        steps[name].optimizer.init(objective.student.model.trainable_parameters())
    clock = time.perf_counter if device.prepare().kind == "metal" else time.process_time
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    peaks = dict.fromkeys(steps, 0)
    for number in range(options.steps + 1):
        for name, step in steps.items():
            mx.reset_peak_memory()
            before, started = mx.get_active_memory(), clock()
            with cpu.shared_cores(len(execution.streams)), fast_layers(step.student):
                step.step(range(options.rows), 1e-4, number + 1)
            if number:
                seconds[name].append(clock() - started)
            peaks[name] = max(peaks[name], mx.get_peak_memory() - before)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "machine": device.cpu_name(),
        "device": device.prepare().kind,
        "rows": options.rows,
        "tokens": sum(steps["sft"].rows.lengths),
        "top_k": options.top_k,
        "steps": options.steps,
        "seconds": medians,
        "peak_bytes": peaks,
        "ratio": medians["kd"] / medians["sft"],
        "target": TARGET,
        "versions": device.versions(),
    }


def _convert(scratch: Path) -> Path:
    from mlx_distill.convert import ConvertConfig
    from mlx_distill.convert import run as convert

    return convert.run(ConvertConfig(source="sample", out=scratch / "model")).path


def _examples(count: int) -> list[Any]:
    """Return the shortest written answers of the sample."""
    from mlx_distill.records import STUDENT_SYSTEM, Example, Message, TeacherRecord, build_messages
    from mlx_distill.storage import files
    from mlx_distill.storage.jsonl import read_jsonl
    from mlx_distill.storage.package_data import package_data_path

    records = read_jsonl(package_data_path("sample") / files.TEACHER_DATA, TeacherRecord.from_json)
    shortest = sorted(records, key=lambda record: len(record.answer))[:count]
    return [
        Example((*build_messages(record.prompt_text, STUDENT_SYSTEM), Message("assistant", record.answer)))
        for record in shortest
    ]


def _write_random_signal(data: Path, model: Path, top_k: int) -> None:
    import numpy as np

    from mlx_distill.models.load import load_tokenizer, read_config
    from mlx_distill.models.signal import SignalWriter, Source, row_key
    from mlx_distill.models.tokenize import render
    from mlx_distill.models.tokenizer_match import tokenizer_digest
    from mlx_distill.records import Example
    from mlx_distill.storage import files
    from mlx_distill.storage.jsonl import read_jsonl

    draw, tokenizer = np.random.default_rng(0), load_tokenizer(model)
    rows = [render(tokenizer, row.messages) for row in read_jsonl(data / files.TRAIN, Example.from_json)]
    vocabulary = int(read_config(model)["vocab_size"])
    source = Source("random", tokenizer_digest(tokenizer), "", "", "float32", vocabulary, top_k)
    counts = {row_key(row): row.n_supervised for row in rows}
    (data / files.LOGPROBS).mkdir()
    writer = SignalWriter(data / files.LOGPROBS, source, counts)
    for shard in writer.unfinished:
        values = {}
        for key in shard.keys:
            ids = np.stack([draw.choice(vocabulary, top_k, replace=False) for _ in range(counts[key])])
            logs = np.log(draw.dirichlet(np.full(top_k, 0.1), counts[key]) * 0.98 + 1e-9)
            values[key] = ids.astype(np.uint32), logs.astype(np.float32)
        writer.write(shard, values)
    writer.finish("random")


if __name__ == "__main__":
    sys.exit(main())
