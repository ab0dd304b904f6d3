"""Small data sets and adapters for tests."""

from __future__ import annotations

import json
import random
from pathlib import Path

from mlx_distill.records import Example, Message

SYSTEM = "You are a helpful assistant."
WORDS = "queue stack text words python function returns number name salary employees first last came out".split()


def make_rows(folder: Path, *, train: int = 10, valid: int = 3, test: int = 4, seed: int = 1) -> Path:
    """Write train, valid and test rows of different lengths that a tiny model can learn something from."""
    draw = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in (("train", train), ("valid", valid), ("test", test)):
        lines = []
        for number in range(count):
            words = draw.choices(WORDS, k=draw.randint(3, 12))
            example = Example(
                id=f"{split}-{number}",
                family=f"{split}-{number // 2}",
                category="python" if number % 2 else "sql",
                messages=(
                    Message("system", SYSTEM),
                    Message("user", f"Write {' '.join(words[:3])}."),
                    Message("assistant", f"def {words[0]}():\n    return {' '.join(words)}\n"),
                ),
            )
            lines.append(json.dumps(example.to_json()) + "\n")
        (folder / f"{split}.jsonl").write_text("".join(lines))
    return folder


def make_adapter(folder: Path, model: Path, *, strength: float = 0.05, rank: int = 4, seed: int = 3) -> Path:
    """Write an adapter of random weights that changes what the model says; `strength` 0 changes nothing."""
    import mlx.core as mx
    from mlx.utils import tree_flatten, tree_map

    from mlx_distill.students.loading import load_student
    from mlx_distill.training import TrainConfig
    from mlx_distill.training.checkpoint import save_adapter
    from mlx_distill.training.loop import add_lora

    student = load_student(model)
    config = add_lora(
        student, TrainConfig(model=model, data=folder, adapter=folder, rank=rank, alpha=2.0 * rank, seed=seed)
    )
    weights = tree_map(lambda value: strength * mx.random.normal(value.shape), student.model.trainable_parameters())
    student.model.load_weights(tree_flatten(weights), strict=False)
    save_adapter(folder, student.model, config)
    return folder
