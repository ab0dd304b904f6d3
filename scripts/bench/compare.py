#!/usr/bin/env python3
"""Compare 16 prompts x 2 models in one process with `mlx_lm.generate` once per prompt and model.

    python scripts/bench/compare.py --model models/SmolLM2-135M-Instruct [--adapter adapters/NAME] [--json]

Both read a float32 copy of the model, decode greedily from the same rendered prompts, stop at the same limit and use
the fast BLAS. Time covers whole processes, including start and loading: one process of this project (the mean of
a run before and a run after) against 32 of mlx_lm.generate. `--only N` starts them for N prompts and scales the time.
Memory is the peak resident memory of a process. Without --adapter, a random adapter is used, which costs as much as a
trained one. Exits with 1 if the ratio is below 4 or if tokens differ by more than a near-tie; it lists those.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from near_ties import NEAR_TIE, parting

from mlx_distill import cpu, device
from mlx_distill.records import STUDENT_SYSTEM, Prompt, build_messages
from mlx_distill.storage.jsonl import read_jsonl
from mlx_distill.storage.package_data import package_data_path

LAUNCHER = Path(__file__).with_name("mlx_lm_generate.py")
MIN_RATIO = 4.0
MODELS = ("base", "distilled")
RANK, SCALE = 8, 4.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="an MLX model folder")
    parser.add_argument("--adapter", type=Path, help="an adapter folder; a random one is made without it")
    parser.add_argument("--prompts", type=int, default=16, help="how many of the shipped prompts  [default: 16]")
    parser.add_argument("--max-tokens", type=int, default=64, help="longest answer  [default: 64]")
    parser.add_argument("--only", type=int, metavar="N", help="start mlx_lm.generate for N of the prompts and scale")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--write-here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.write_here:
        generate_here(options)
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        result = measure(options, Path(scratch))
    print(json.dumps(result, indent=2) if options.json else describe(result))
    return 0 if result["ratio"] >= MIN_RATIO and not result["other_differences"] else 1


def measure(options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    device.configure_process()
    model = copy_as_float32(options.model, scratch / "model")
    adapter = options.adapter or random_adapter(model, scratch / "adapter")
    texts = shipped_prompts(options.prompts)
    measured = texts[:: max(len(texts) // options.only, 1)][: options.only] if options.only else texts
    own = [__file__, "--write-here", f"--model={model}", f"--adapter={adapter}"]
    own += [f"--prompts={options.prompts}", f"--max-tokens={options.max_tokens}"]

    here = [process(own, scratch)]
    there: dict[str, list[dict[str, Any]]] = {model_name: [] for model_name in MODELS}
    for number, text in enumerate(measured, start=1):
        for model_name in MODELS:
            command = [str(LAUNCHER), f"--model={model}", f"--system-prompt={STUDENT_SYSTEM}", "--prompt=-"]
            command += [f"--max-tokens={options.max_tokens}", "--temp=0"]
            command += [f"--adapter-path={adapter}"] if model_name == "distilled" else []
            there[model_name].append(process(command, scratch, text))
        print(f"mlx_lm.generate: {number} of {len(measured)} prompts", file=sys.stderr)
    here.append(process(own, scratch))

    all_there = [run for runs in there.values() for run in runs]
    scaled_by = len(texts) / len(measured)
    seconds_there = scaled_by * sum(run["seconds"] for run in all_there)
    seconds_here = sum(run["seconds"] for run in here) / len(here)
    differences = find_differences(model, adapter, here[0], there, [texts.index(text) for text in measured])
    blas = device.prepare().blas
    return {
        "machine": f"{device.cpu_name()}, {cpu.cores()} cores, {device.prepare().kind}",
        "blas": blas.name if blas else "",
        "versions": device.versions(),
        "model": str(options.model),
        "adapter": str(options.adapter) if options.adapter else f"random, rank {RANK} on all linear layers",
        "prompts": len(texts),
        "max_tokens": options.max_tokens,
        "tokens": sum(len(tokens) for model_name in MODELS for tokens in here[0][model_name]),
        "seconds_here": round(seconds_here, 2),
        "seconds_here_each": [run["seconds"] for run in here],
        "seconds_there": round(seconds_there, 2),
        "processes_there": len(all_there),
        "scaled_by": scaled_by,
        "ratio": round(seconds_there / seconds_here, 2),
        "seconds_writing_here": round(sum(run["writing_seconds"] for run in here) / len(here), 2),
        "seconds_writing_there": round(scaled_by * sum(run["writing_seconds"] for run in all_there), 2),
        "peak_bytes_here": max(run["peak_bytes"] for run in here),
        "peak_bytes_there": max(run["peak_bytes"] for run in all_there),
        "answers_compared": len(all_there),
        "near_ties": [one for one in differences if one["gap"] <= NEAR_TIE],
        "other_differences": [one for one in differences if one["gap"] > NEAR_TIE],
    }


def copy_as_float32(source: Path, out: Path) -> Path:
    """Copy the model as float32: mlx_lm.generate computes in the type of the file, and a CPU is slow in 16 bits."""
    import mlx.core as mx

    shutil.copytree(source, out)
    for file in out.glob("*.safetensors"):
        weights: Any = mx.load(str(source / file.name))
        floats = (mx.float16, mx.bfloat16)
        weights = {
            name: value.astype(mx.float32) if value.dtype in floats else value for name, value in weights.items()
        }
        mx.save_safetensors(str(file), weights, metadata={"format": "mlx"})
    return out


def random_adapter(model_folder: Path, out: Path) -> Path:
    """Make an adapter on all linear layers, small enough to keep the sentences."""
    import mlx.core as mx
    from mlx.utils import tree_flatten
    from mlx_lm.tuner.utils import linear_to_lora_layers
    from mlx_lm.utils import load_model

    model, config = load_model(model_folder, lazy=True)
    parameters = {"rank": RANK, "scale": SCALE, "dropout": 0.0}
    model.freeze()
    mx.random.seed(0)
    linear_to_lora_layers(model, config["num_hidden_layers"], parameters)
    weights = {
        name: 0.003 * mx.random.normal(value.shape) if name.endswith("lora_b") else value
        for name, value in tree_flatten(model.trainable_parameters())
    }
    out.mkdir()
    mx.save_safetensors(str(out / "adapters.safetensors"), weights)
    settings = {"fine_tune_type": "lora", "num_layers": config["num_hidden_layers"], "lora_parameters": parameters}
    (out / "adapter_config.json").write_text(json.dumps(settings))
    return out


def shipped_prompts(count: int) -> list[str]:
    """Return some of the shipped prompts, spread evenly."""
    prompts = read_jsonl(package_data_path("prompts.jsonl"), Prompt.from_json)
    return [prompts[number * len(prompts) // count].text for number in range(count)]


def process(arguments: Sequence[str], scratch: Path, text: str = "") -> dict[str, Any]:
    """Run a Python script with `text` as input. Return what it wrote, its time and its peak resident memory."""
    out, asked = scratch / "out.json", scratch / "asked.txt"
    asked.write_text(text, encoding="utf-8")
    command = [sys.executable, *arguments]
    environment = {**os.environ, device.DTYPE_VARIABLE: "float32", "BENCH_OUT": str(out)}
    started = time.perf_counter()
    with asked.open("rb") as stdin:
        child = subprocess.Popen(command, stdin=stdin, stdout=subprocess.DEVNULL, env=environment)
        _, status, usage = os.wait4(child.pid, 0)
    seconds = time.perf_counter() - started
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        sys.exit(f"{shlex.join(command)} failed with exit code {child.returncode}.")
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage(2) counts bytes on a Mac, KiB on Linux
    return {**json.loads(out.read_text()), "seconds": round(seconds, 3), "peak_bytes": usage.ru_maxrss * unit}


def generate_here(options: argparse.Namespace) -> None:
    """Write the answers as `compare` does: one copy of the base, the adapter off and on, all prompts at once."""
    device.configure_process()
    from mlx_distill.models.adapter import load_adapter
    from mlx_distill.models.generate import generate_batch
    from mlx_distill.models.load import load_student
    from mlx_distill.models.tokenize import render_prompt

    student = load_student(options.model)
    adapter = load_adapter(student, options.adapter)
    asked = [
        render_prompt(student.tokenizer, build_messages(text, STUDENT_SYSTEM))
        for text in shipped_prompts(options.prompts)
    ]
    end = student.tokenizer.eos_token_id
    found: dict[str, Any] = {"asked": asked}
    started = time.perf_counter()
    for model_name in MODELS:
        adapter.enabled = model_name == "distilled"
        completions = generate_batch(student, asked, max_tokens=options.max_tokens)
        found[model_name] = [[*one.tokens, end] if one.finished else list(one.tokens) for one in completions]
    found["writing_seconds"] = round(time.perf_counter() - started, 3)
    Path(os.environ["BENCH_OUT"]).write_text(json.dumps(found))


def find_differences(
    model: Path, adapter: Path, here: dict[str, Any], there: dict[str, list[dict[str, Any]]], which: Sequence[int]
) -> list[dict[str, Any]]:
    """Return where the answers differ."""
    from mlx_lm.utils import load

    found = []
    for model_name in MODELS:
        loaded, tokenizer = load(str(model), adapter_path=str(adapter) if model_name == "distilled" else None)[:2]
        for number, run in zip(which, there[model_name], strict=True):
            if run["asked"] != here["asked"][number]:
                sys.exit(f"Prompt {number + 1} has different tokens in the two programs, so nothing can be compared.")
            one = parting(loaded, run["asked"], here[model_name][number], run["tokens"], tokenizer.eos_token_ids)
            if one:
                tokens = {name: tokenizer.decode([getattr(one, name)]) for name in ("here", "there")}
                found.append({"model": model_name, "prompt": number + 1, **asdict(one), **tokens})
    return found


def describe(result: dict[str, Any]) -> str:
    scaled = f", measured on a part and scaled by {result['scaled_by']:g}" if result["scaled_by"] != 1 else ""
    lines = [
        f"{result['prompts']} prompts x 2 models, at most {result['max_tokens']} tokens, {result['tokens']} written, "
        f"float32; {result['machine']}, BLAS {result['blas'] or 'of the system'}",
        f"adapter: {result['adapter']}",
    ]
    for where, what in (
        ("here", "one process"),
        ("there", f"{result['processes_there']} times mlx_lm.generate{scaled}"),
    ):
        lines.append(
            f"{result[f'seconds_{where}']:7.1f} s, {result[f'seconds_writing_{where}']:.1f} s of it writing, peak "
            f"{result[f'peak_bytes_{where}'] / 1e9:.2f} GB resident: {what}"
        )
    lines += [
        f"ratio: {result['ratio']:.2f}, the minimum is {MIN_RATIO:g}",
        f"tokens: {result['answers_compared']} answers compared, {len(result['near_ties'])} differ at a near-tie "
        f"(up to {NEAR_TIE:g} between the two log-probabilities), {len(result['other_differences'])} otherwise",
    ]
    for kind in ("near_ties", "other_differences"):
        lines += [
            f"  {kind.replace('_', ' ')[:-1]}: {one['model']}, prompt {one['prompt']}, after {one['position']} tokens: "
            f"{one['here']!r} here, {one['there']!r} there, gap {one['gap']:.2e}"
            for one in result[kind]
        ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
