"""Train with torch + PEFT for train.py: `torch_peft.py SETTINGS`, in a Python with torch, peft and transformers.

A plain loop: model, PEFT's LoRA on all linear layers, the model's own loss over labels, AdamW. The rows come as tokens
and masks. The adapter is written in mlx-lm's format, so one scorer scores all.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

IGNORED = -100
"""The label that the losses of transformers ignore."""
Row = tuple[list[int], list[bool]]


def main(settings: dict[str, Any]) -> None:
    torch.manual_seed(settings["seed"])
    base = AutoModelForCausalLM.from_pretrained(settings["model"], dtype=torch.float32)
    rank = settings["rank"]
    model = get_peft_model(
        base, LoraConfig(r=rank, lora_alpha=settings["scale"] * rank, target_modules="all-linear", lora_dropout=0.0)
    )
    rows = json.loads(Path(settings["data"], "tokens.json").read_text())
    optimizer = torch.optim.AdamW(
        [weight for weight in model.parameters() if weight.requires_grad],
        lr=settings["learning_rate"],
        weight_decay=settings["weight_decay"],
    )
    print("valid loss", validate(model, rows["valid"]))
    draw = random.Random(settings["seed"])
    size, done = settings["batch_size"], 0
    for _ in range(settings["epochs"]):
        order = draw.sample(range(len(rows["train"])), len(rows["train"]))
        for start in range(0, len(order), size):
            model.train()
            loss = model(**batch([rows["train"][index] for index in order[start : start + size]])).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            done += 1
            print("update", done, "loss", loss.item(), flush=True)
    print("valid loss", validate(model, rows["valid"]))
    save(model, Path(settings["adapter"]), rank, settings["scale"])


def batch(rows: list[Row]) -> dict[str, torch.Tensor]:
    """Pad rows to the longest one. Only supervised tokens have labels."""
    length = max(len(tokens) for tokens, _ in rows)
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    labels = torch.full((len(rows), length), IGNORED)
    attention = torch.zeros(len(rows), length, dtype=torch.long)
    for number, (tokens, mask) in enumerate(rows):
        ids[number, : len(tokens)] = torch.tensor(tokens)
        attention[number, : len(tokens)] = 1
        kept = [token if supervised else IGNORED for token, supervised in zip(tokens, mask, strict=True)]
        labels[number, : len(tokens)] = torch.tensor(kept)
    return {"input_ids": ids, "attention_mask": attention, "labels": labels}


def validate(model: torch.nn.Module, rows: list[Row]) -> float:
    model.eval()
    with torch.no_grad():
        return float(model(**batch(rows)).loss)


def save(model: torch.nn.Module, folder: Path, rank: int, scale: float) -> None:
    """Write the adapter in mlx-lm's format. PEFT's (rank, inputs) and (outputs, rank) are transposed."""
    weights = {}
    for name, weight in model.named_parameters():
        if ".lora_A." in name or ".lora_B." in name:
            layer = name.removeprefix("base_model.model.").split(".lora_")[0]
            kind = "lora_a" if ".lora_A." in name else "lora_b"
            weights[f"{layer}.{kind}"] = weight.detach().T.contiguous()
    folder.mkdir(parents=True)
    save_file(weights, folder / "adapters.safetensors", metadata={"format": "mlx"})
    parameters = {"rank": rank, "scale": scale, "dropout": 0.0}
    config = {"fine_tune_type": "lora", "num_layers": model.config.num_hidden_layers, "lora_parameters": parameters}
    (folder / "adapter_config.json").write_text(json.dumps(config))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
