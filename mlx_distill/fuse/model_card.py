"""The model card of a fused model: what it is made of, how, and what was measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_distill import __version__
from mlx_distill.errors import DistillError
from mlx_distill.models.adapter import read_adapter_config
from mlx_distill.models.provenance import Provenance
from mlx_distill.records import TeacherRecord
from mlx_distill.storage.atomic import write_text
from mlx_distill.storage.jsonl import each_line, read_jsonl

if TYPE_CHECKING:
    from mlx_distill.fuse.run import FuseConfig, FuseResult

_KINDS = {"lora": "LoRA", "dora": "DoRA"}
_SETTINGS = ("epochs", "batch_size", "learning_rate", "schedule", "rank", "alpha", "max_length", "seed")


def write(folder: Path, config: FuseConfig, result: FuseResult) -> None:
    """Write README.md with a Hugging Face card header into `folder`; what is not known is left out."""
    teachers = _teachers(config.data)
    training = _training_settings(config.adapter)
    n_train = _count_rows(config.data / "train.jsonl")
    base = Provenance.load(config.model)
    hub_id = base.source if base and base.kind == "hub" else ""
    precision = f"{result.dtype}, dequantised" if result.dequantized else result.dtype
    kind = _KINDS[read_adapter_config(config.adapter).get("fine_tune_type", "lora")]
    rounded = f"quantised to {result.q_bits} bits" if result.q_bits else "rounded once"
    made_of = [
        f"- Base: {hub_id or config.model.resolve().name} ({precision})",
        *([f"- Teacher: {', '.join(teachers)}"] if teachers else []),
        *([f"- Data: {n_train} training rows"] if n_train else []),
        *([f"- Training: {kind}, {', '.join(f'{name} {value}' for name, value in training)}"] if training else []),
    ]
    lines = [
        "---",
        *([f"base_model: {hub_id}"] if hub_id else []),
        "library_name: mlx",
        "pipeline_tag: text-generation",
        "tags:",
        "- mlx",
        "- distillation",
        "- lora",
        "---",
        "",
        f"# {config.out.name}",
        "",
        f"A small student taught by a larger model's answers, made with mlx-distill {__version__}:",
        f"a {kind} adapter added into its base in float32 and {rounded}.",
        "",
        *made_of,
        "",
        "## Scores",
        "",
        f"Over the {result.n_tokens} answer tokens (end tokens included) of {result.n_rows} held-out rows.",
        "",
        "| | loss | token accuracy |",
        "|---|---|---|",
        f"| base | {result.base_loss:.3f} | {result.base_accuracy:.1%} |",
        f"| adapter | {result.adapter_loss:.3f} | {result.adapter_accuracy:.1%} |",
        f"| this model | {result.fused_loss:.3f} | {result.fused_accuracy:.1%} |",
        "",
        f"Mean KL(adapter ‖ this model) {result.kl:.2g} nats a token; KL(adapter ‖ base) {result.kl_base:.2g}.",
        "",
        "The base's licence holds for this model, and so may the teacher's terms of use.",
    ]
    write_text(folder / "README.md", "\n".join(lines) + "\n")


def _teachers(data: Path) -> list[str]:
    """Who answered, from the journal of answers; nobody where it is missing or cannot be read."""
    try:
        records = read_jsonl(data / "teacher_data.jsonl", TeacherRecord.from_json)
    except DistillError:
        return []
    return sorted({record.model or record.teacher for record in records})


def _training_settings(adapter: Path) -> list[tuple[str, Any]]:
    """How far the training went, and the settings it saved beside the adapter, in the card's order."""
    try:
        run = json.loads((adapter / "run.json").read_text(encoding="utf-8"))
        saved, result = run["settings"], run["result"]
        done = [("best step", f"{result['best_step']} of {result['steps']}"), ("epochs done", result["epochs"])]
        return [*done, *((name, saved[name]) for name in _SETTINGS if name in saved)]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _count_rows(file: Path) -> int:
    try:
        return sum(1 for _ in each_line(file))
    except DistillError:
        return 0
