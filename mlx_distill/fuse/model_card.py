"""The model card of a fused model: its parts, its training, and its measured scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mlx_distill import __version__
from mlx_distill.errors import DistillError
from mlx_distill.fuse.config import FuseConfig, FuseResult
from mlx_distill.models.adapter import read_adapter_config
from mlx_distill.models.provenance import Provenance
from mlx_distill.records import TeacherRecord
from mlx_distill.storage.atomic import write_text
from mlx_distill.storage.files import TEACHER_DATA, TRAIN
from mlx_distill.storage.jsonl import each_line, read_jsonl
from mlx_distill.training_run import TrainingRun

_SETTINGS = ("epochs", "batch_size", "learning_rate", "schedule", "rank", "alpha", "max_length", "seed")

_CARD = """\
---
{base_model}library_name: mlx
pipeline_tag: text-generation
tags:
- mlx
- distillation
- lora
---

# {name}

A small student that learned from a larger model's answers, made with mlx-distill {version}:
a {kind} adapter added into its base in float32 and {rounded}.

{parts}

## Scores

Over the {r.n_tokens} answer tokens (end tokens included) of {r.n_rows} held-out rows.

| | loss | token accuracy |
|---|---|---|
| base | {r.base_loss:.3f} | {r.base_accuracy:.1%} |
| adapter | {r.adapter_loss:.3f} | {r.adapter_accuracy:.1%} |
| this model | {r.fused_loss:.3f} | {r.fused_accuracy:.1%} |

Mean KL(adapter ‖ this model) {r.kl:.2g} nats per token; KL(adapter ‖ base) {r.kl_base:.2g}.

The licence of the base holds for this model. The teacher's terms of use may hold, too.
"""


def write(folder: Path, config: FuseConfig, result: FuseResult) -> None:
    """Write README.md with a Hugging Face card header into `folder`. Unknown facts are left out."""
    base = Provenance.load(config.model)
    hub_id = base.source if base and base.kind == "hub" else ""
    kind = {"lora": "LoRA", "dora": "DoRA"}[read_adapter_config(config.adapter).get("fine_tune_type", "lora")]
    teachers, training, n_train = _teachers(config.data), _training(config.adapter), _count(config.data / TRAIN)
    precision = f"{result.dtype}, dequantised" if result.dequantized else result.dtype
    parts = [
        f"- Base: {hub_id or config.model.resolve().name} ({precision})",
        f"- Teacher: {', '.join(teachers)}" if teachers else "",
        f"- Data: {n_train} training rows" if n_train else "",
        f"- Training: {kind}, {', '.join(f'{name} {value}' for name, value in training)}" if training else "",
    ]
    text = _CARD.format(
        base_model=f"base_model: {hub_id}\n" if hub_id else "",
        name=config.out.name,
        version=__version__,
        kind=kind,
        rounded=f"quantised to {result.q_bits} bits" if result.q_bits else "rounded once",
        parts="\n".join(filter(None, parts)),
        r=result,
    )
    write_text(folder / "README.md", text)


def _teachers(data: Path) -> list[str]:
    try:
        records = read_jsonl(data / TEACHER_DATA, TeacherRecord.from_json)
    except DistillError:
        return []
    return sorted({record.model or record.teacher for record in records})


def _training(adapter: Path) -> list[tuple[str, Any]]:
    """Return the progress of the training and its settings, in the card's order."""
    run = TrainingRun.load(adapter)
    if not run or not {"best_step", "steps", "epochs"} <= run.result.keys():
        return []
    done = [("best step", f"{run.result['best_step']} of {run.result['steps']}"), ("epochs done", run.result["epochs"])]
    return [*done, *((name, run.settings[name]) for name in _SETTINGS if name in run.settings)]


def _count(file: Path) -> int:
    try:
        return sum(1 for _ in each_line(file))
    except DistillError:
        return 0
