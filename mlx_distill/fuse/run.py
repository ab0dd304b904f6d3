"""`fuse`: the adapter added into the base, written as a standalone model folder and checked before it counts."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from mlx_distill import device
from mlx_distill.config import Config, doc
from mlx_distill.errors import InputError, MissingError
from mlx_distill.events import Note, Report, ignore
from mlx_distill.fuse.check import Check
from mlx_distill.models.quantization import check_quantization
from mlx_distill.records import Example
from mlx_distill.storage.atomic import new_folder
from mlx_distill.storage.jsonl import read_jsonl


class FuseConfig(Config, frozen=True):
    """What is fused into what."""

    model: Annotated[Path, doc("the base: an MLX model folder")]
    adapter: Annotated[Path, doc("the adapter folder to add to it")]
    data: Annotated[Path, doc("folder with test.jsonl, on whose rows the result is checked")]
    out: Annotated[Path, doc("folder that the fused model is written to")]
    q_bits: Annotated[int, doc("quantise the result to 4 or 8 bits; not quantised unless given")] | None = None
    q_group_size: Annotated[int, doc("weights that share a scale, where quantised: 32, 64 or 128")] = 64
    check_rows: Annotated[int, doc("check on this many test rows, spread evenly; 0 means all", ge=0)] = 0
    force: Annotated[bool, doc("replace the output folder where it exists")] = False

    def check(self) -> None:
        check_quantization(self.q_bits, self.q_group_size)


@dataclass(frozen=True, kw_only=True)
class FuseResult(Check):
    """The fused model, and how close it is to the adapter."""

    path: Path
    adapter: str
    """Its folder, and which moment of training it is."""
    dtype: str
    """The type of its weights: the base's own. Where it is quantised, of the scales and of what stays whole."""
    dequantized: bool
    """True where the base was quantised: the adapter was added to its dequantised weights."""
    q_bits: int | None
    """Bits a weight where the fused model is quantised."""
    n_layers: int
    """Layers that the adapter changed."""
    size_bytes: int
    seconds: float


def run(config: FuseConfig, report: Report = ignore) -> FuseResult:
    """Fuse, check, and put the result in its place; on any error nothing is left there.

    Raises MissingError where model, adapter or test rows are missing, InputError where they do not fit each other or
    the output exists, VerificationError where the fused model does not do what the adapter does.
    """
    started = time.monotonic()
    _check_places(config)
    examples = _spread(_test_examples(config.data), config.check_rows)
    with new_folder(config.out, replace=config.force) as scratch:
        device.prepare()
        from mlx_distill.fuse import model_card, weights
        from mlx_distill.fuse import model_files as files
        from mlx_distill.fuse import verify as verification

        reference = verification.measure_adapter(config.model, config.adapter, examples, report)
        report(Note("Adding the adapter to the weights in float32 ..."))
        written = weights.write_fused(config.model, config.adapter, scratch, config.q_bits, config.q_group_size)
        if written.dequantized:
            kind = f"quantised to {config.q_bits} bits anew" if config.q_bits else written.dtype
            report(Note(f"The base is quantised; it was dequantised, and the fused model is {kind}."))
        files.copy_companions(config.model, scratch, dtype=written.dtype, quantization=written.quantization)
        check = verification.check(scratch, reference, report)
        size_bytes = sum(file.stat().st_size for file in scratch.glob("*.safetensors"))
        result = FuseResult(
            path=config.out,
            adapter=reference.origin,
            dtype=written.dtype,
            dequantized=written.dequantized,
            q_bits=config.q_bits,
            n_layers=written.n_layers,
            **vars(check),
            size_bytes=size_bytes,
            seconds=round(time.monotonic() - started, 2),
        )
        model_card.write(scratch, config, result)
    return result


def _check_places(config: FuseConfig) -> None:
    """The output must not be or hold what it is made from: taking its place would destroy that."""
    out = config.out.resolve()
    for name, folder in (("model", config.model), ("adapter", config.adapter), ("data", config.data)):
        source = folder.resolve()
        if out == source or out in source.parents:
            raise InputError(
                f"{config.out}: the fused model cannot take the place of the {name} folder {folder}.",
                "Choose another output with --out.",
            )


def _test_examples(data: Path) -> list[Example]:
    prepare = "Make test rows with `mlx-distill prepare`, or name the folder that has them with --data."
    examples = read_jsonl(data / "test.jsonl", Example.from_json, prepare)
    if not examples:
        raise MissingError(f"{data / 'test.jsonl'} has no rows, so the fused model could not be checked.", prepare)
    return examples


def _spread(examples: list[Example], count: int) -> list[Example]:
    """`count` examples with even gaps, so that all families and categories have their part; all where it is 0."""
    if not 0 < count < len(examples):
        return examples
    return [examples[index * len(examples) // count] for index in range(count)]
