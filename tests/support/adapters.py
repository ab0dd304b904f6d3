"""Adapters in mlx-lm's format with random weights, for tests that need one and no training."""

from __future__ import annotations

import json
from pathlib import Path


def make_adapter(
    model_folder: Path,
    folder: Path,
    *,
    size: float = 0.1,
    rank: int = 4,
    scale: float = 2.0,
    kind: str = "lora",
    seed: int = 11,
    moment: str = "",
) -> Path:
    """Write an adapter on all linear layers; `size` is the spread of lora_b; 0 gives an adapter without effect."""
    import mlx.core as mx
    from mlx.utils import tree_flatten
    from mlx_lm.tuner.utils import linear_to_lora_layers
    from mlx_lm.utils import load_model

    model, config = load_model(model_folder)
    parameters = {"rank": rank, "scale": scale, "dropout": 0.0}
    model.freeze()
    mx.random.seed(seed)
    linear_to_lora_layers(model, config["num_hidden_layers"], parameters, use_dora=kind == "dora")
    weights = dict(tree_flatten(model.trainable_parameters()))
    for name, value in weights.items():
        if name.endswith("lora_b"):
            weights[name] = size * mx.random.normal(value.shape)
    folder.mkdir(parents=True)
    metadata = {"format": "mlx", "moment": moment} if moment else {}
    mx.save_safetensors(str(folder / "adapters.safetensors"), weights, metadata=metadata)
    settings = {"fine_tune_type": kind, "num_layers": config["num_hidden_layers"], "lora_parameters": parameters}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


def write_test_rows(folder: Path, count: int = 6) -> Path:
    """Write a `test.jsonl` of short rows with an explicit system message; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {
            "id": f"t{number}",
            "family": f"t{number}",
            "category": "python",
            "messages": [
                {"role": "system", "content": "You are a helpful assistant."},
                {"role": "user", "content": f"Write a function that adds {number}."},
                {"role": "assistant", "content": f"def add(value: int) -> int:\n    return value + {number}\n"},
            ],
        }
        for number in range(count)
    ]
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder
