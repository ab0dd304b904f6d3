#!/usr/bin/env python3
"""Compare the peak memory of one training step with this project's loss and with a plain one, in separate processes.

    python scripts/bench/loss_memory.py [--loss kd] [--json]

`--loss sft` compares the cross-entropy with mlx-lm's. `--loss kd` compares the forward KL divergence from a teacher's
whole distribution with the plain formula, which holds the logits of both sides. The teacher has a head of its own.

The model has the shape of Qwen2.5-0.5B with random weights and two layers, so the vocabulary of 151,936 dominates. Both
sides take one LoRA step (loss, gradients, AdamW) in float32 on the same batch of 4 x 512 tokens, all supervised.
mlx-lm's step is compiled, as its trainer compiles it, and so is the plain formula. The figure is
`mx.get_peak_memory()`, weights included.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from mlx_distill import device

SIDES = {"sft": ("mlx-distill", "mlx-lm"), "kd": ("mlx-distill", "both logits")}
TARGET = 0.35
WIDTH = 896
SHAPE = {
    "model_type": "qwen2",
    "hidden_size": WIDTH,
    "intermediate_size": 4864,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "vocab_size": 151_936,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1_000_000.0,
    "tie_word_embeddings": True,
}
MIB = 1 << 20


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--length", type=int, default=512, help="tokens of a row")
    parser.add_argument("--vocabulary", type=int, default=SHAPE["vocab_size"])
    parser.add_argument("--loss", choices=SIDES, default="sft")
    parser.add_argument("--only", help="take the step of one side in this process")
    options = parser.parse_args()
    if options.only:
        print(json.dumps(step(options.only, options)))
        return 0
    shape = [f"--{name}={getattr(options, name)}" for name in ("loss", "layers", "rows", "length", "vocabulary")]
    sides = {side: _in_a_process([f"--only={side}", *shape]) for side in SIDES[options.loss]}
    ours, theirs = (figures["peak_bytes"] for figures in sides.values())
    result = {
        "loss": options.loss,
        "machine": device.prepare().kind,
        "rows": options.rows,
        "length": options.length,
        "vocabulary": options.vocabulary,
        "layers": options.layers,
        "sides": sides,
        "ratio": round(ours / theirs, 3),
        "target": TARGET,
        "versions": device.versions(),
    }
    if options.json:
        print(json.dumps(result, indent=2))
        return 0
    print(
        f"One step of {options.rows} x {options.length} tokens, {options.vocabulary:,} words, float32, {options.loss}:"
    )
    for side, figures in sides.items():
        weights = figures["weight_bytes"] / MIB
        print(
            f"  {side:12} peak {figures['peak_bytes'] / MIB:7,.0f} MiB (weights {weights:,.0f}), loss {figures['loss']}"
        )
    print(f"  ratio        {result['ratio']} (to reach: {TARGET} or less)")
    return 0


def _in_a_process(arguments: list[str]) -> dict[str, Any]:
    command = [sys.executable, str(Path(__file__).resolve()), *arguments]
    figures: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return figures


def step(side: str, options: argparse.Namespace) -> dict[str, Any]:
    """Take one step and return its peak memory, the bytes of the weights, and the loss of a token."""
    device.configure_process()
    import mlx.core as mx
    import mlx.nn as nn
    import mlx.optimizers as optim
    from mlx.utils import tree_flatten
    from mlx_lm.models.qwen2 import Model, ModelArgs
    from mlx_lm.tuner.trainer import default_loss
    from mlx_lm.tuner.utils import linear_to_lora_layers

    from mlx_distill.models.load import Student
    from mlx_distill.models.score import Batch, pad
    from mlx_distill.models.tokenize import TokenizedChat
    from mlx_distill.train.divergences import Divergence, Sides, TeacherHead, sum_divergence
    from mlx_distill.train.objectives.sft import sft_loss

    config = {**SHAPE, "num_hidden_layers": options.layers, "vocab_size": options.vocabulary}
    mx.random.seed(0)
    model = Model(ModelArgs.from_dict(config))
    model.freeze()
    linear_to_lora_layers(model, options.layers, {"rank": 8, "scale": 4.0, "dropout": 0.0})
    optimizer = optim.AdamW(learning_rate=5e-4, bias_correction=True)
    optimizer.init(model.trainable_parameters())
    tokens = mx.random.randint(0, options.vocabulary, (options.rows, options.length + 1))
    mx.eval(model.parameters(), optimizer.state, tokens)
    weight_bytes = sum(value.nbytes for _, value in tree_flatten(model.parameters()))
    n_supervised = options.rows * options.length

    mask = (False, *[True] * options.length)
    batch = pad([TokenizedChat(tuple(row), mask) for row in tokens.tolist()])  # type: ignore[union-attr, arg-type]
    student = Student(Path(), model, None, config, mx.float32)  # a step needs no tokenizer
    teacher_weights = mx.random.normal((options.vocabulary, WIDTH)) / 30
    teacher_hidden = mx.random.normal((n_supervised, WIDTH))
    if options.loss == "kd":
        mx.eval(teacher_weights, teacher_hidden)
        weight_bytes += teacher_weights.nbytes
    teacher = TeacherHead(lambda hidden: hidden @ teacher_weights.T, teacher_hidden)

    def chunked(batch: Batch) -> tuple[mx.array, mx.array]:
        if options.loss == "sft":
            return sft_loss(student, batch)
        hidden = batch.gather(student.hidden(batch.inputs))
        losses = sum_divergence(Divergence(), Sides(student.head, hidden, batch.targets, teacher, options.vocabulary))
        return losses.loss, losses.correct

    def plain() -> mx.array:
        """Compute the forward KL divergence a token from the logits of all tokens."""
        hidden = batch.gather(student.hidden(batch.inputs))
        logits, teacher_logits = student.head(hidden), teacher.head(teacher_hidden)
        logs, teacher_logs = (
            values - mx.logsumexp(values, axis=-1, keepdims=True) for values in (logits, teacher_logits)
        )
        divergences: mx.array = (mx.exp(teacher_logs) * (teacher_logs - logs)).sum(axis=-1)
        loss: mx.array = divergences.sum() / n_supervised
        return loss

    def with_all_logits(tokens: mx.array, spans: mx.array) -> Any:
        """Take a step that holds the logits of all tokens."""
        if options.loss == "sft":
            (loss, _), gradients = nn.value_and_grad(model, default_loss)(model, tokens, spans)
        else:
            loss_and_gradients: Any = nn.value_and_grad(model, plain)
            loss, gradients = loss_and_gradients()
        optimizer.update(model, gradients)
        return loss

    def take() -> Any:
        if side == "mlx-distill":
            (loss, _), gradients = nn.value_and_grad(model, chunked)(batch)
            optimizer.update(model, gradients)
            return loss / n_supervised
        spans = mx.array([[1, options.length]] * options.rows)
        state = [model.state, optimizer.state]
        compiled: Any = mx.compile(with_all_logits, inputs=state, outputs=state)
        return compiled(tokens, spans)

    mx.reset_peak_memory()
    loss = take()
    mx.eval(loss, model.trainable_parameters(), optimizer.state)
    return {"peak_bytes": mx.get_peak_memory(), "weight_bytes": weight_bytes, "loss": round(float(loss.item()), 4)}


if __name__ == "__main__":
    sys.exit(main())
