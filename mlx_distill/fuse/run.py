"""`fuse`: add the adapter into the base, write a standalone model folder, and verify it before it is published."""

from __future__ import annotations

import dataclasses
import time

from mlx_distill.errors import InputError, MissingError
from mlx_distill.events import Note, Report, ignore
from mlx_distill.fuse import model_card, verify, weights
from mlx_distill.fuse.config import FuseConfig, FuseResult
from mlx_distill.records import Example
from mlx_distill.storage.atomic import is_inside, new_folder
from mlx_distill.storage.files import TEST
from mlx_distill.storage.jsonl import read_jsonl


def run(config: FuseConfig, report: Report = ignore) -> FuseResult:
    """Fuse, verify, and move the result to its place. An error leaves nothing there.

    Raises MissingError if model, adapter or test rows are missing, InputError if they do not fit or the output exists,
    VerificationError if the fused model does not do what the adapter does.
    """
    started = time.monotonic()
    for name, folder in (("model", config.model), ("adapter", config.adapter), ("data", config.data)):
        if is_inside(folder, config.out):
            raise InputError(
                f"{config.out}: the fused model cannot replace the {name} folder {folder}.",
                "Choose another output with --out.",
            )
    examples = _test_examples(config)
    with new_folder(config.out, replace=config.force) as scratch:
        report(Note("Adding the adapter to the weights in float32 ..."))
        fused = weights.write_fused(config.model, config.adapter, scratch, config.q_bits, config.q_group_size)
        if fused.dequantized:
            kind = f"quantised again to {config.q_bits} bits" if config.q_bits else fused.dtype
            report(Note(f"The base is quantised. It was dequantised, and the fused model is {kind}."))
        check = verify.check_fused(scratch, config.model, config.adapter, examples, report)
        result = FuseResult(
            path=config.out,
            adapter=fused.adapter,
            dtype=fused.dtype,
            dequantized=fused.dequantized,
            q_bits=config.q_bits,
            n_layers=fused.n_layers,
            **dataclasses.asdict(check),
            size_bytes=sum(file.stat().st_size for file in scratch.glob("*.safetensors")),
            seconds=round(time.monotonic() - started, 2),
        )
        model_card.write(scratch, config, result)
    return result


def _test_examples(config: FuseConfig) -> list[Example]:
    """Read `check_rows` test rows with even gaps (all families and categories have their part), or all if it is 0."""
    prepare = "Make test rows with `mlx-distill prepare`, or name the folder that has them with --data."
    examples = read_jsonl(config.data / TEST, Example.from_json, prepare)
    if not examples:
        raise MissingError(f"{config.data / TEST} has no rows, so the fused model could not be verified.", prepare)
    count = min(config.check_rows or len(examples), len(examples))
    return [examples[index * len(examples) // count] for index in range(count)]
