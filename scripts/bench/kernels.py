"""Count the GPU kernels that the optimizer part of a training step launches: MLX's own functions, and ours.

    python scripts/bench/kernels.py [--layers 24] [--json]

The optimizer part is: divide by the number of tokens, clip the gradients, AdamW. `plain` calls MLX's functions for
them one after another; `eager` and `compiled` are the two forms of `train/step.py`. The graph is MLX's own
(mx.export_to_dot), for LoRA on all seven linear layers of a model like Qwen2.5-0.5B; the matrices are tiny, because
their size does not change the graph. Operations that only change the view of an array launch no kernel. A
concatenation launches one for each input, a sum over a large array two. Nothing here is a measured time.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from mlx.utils import tree_flatten, tree_map

from mlx_distill.train.step import UpdateFunction, compiled_update, eager_update

VIEWS = (
    "Broadcast",
    "Squeeze",
    "Reshape",
    "Flatten",
    "Unflatten",
    "Transpose",
    "ExpandDims",
    "Depends",
    "StopGradient",
)
LINEAR_LAYERS = 7
ALLOWED = 0.1
"""The compiled part may launch this fraction of the kernels of the plain one."""


def adapters(n_layers: int) -> nn.Module:
    """Return the trained tensors of a model: two matrices for each linear layer."""
    model = nn.Module()
    names = [f"{kind}{index}" for index in range(LINEAR_LAYERS) for kind in ("lora_a", "lora_b")]
    model.layers = [{name: mx.ones((8, 8)) for name in names} for _ in range(n_layers)]
    return model


def count_kernels(outputs: list[mx.array]) -> Counter[str]:
    """Return the kernels in the graph of some arrays, by the name of the primitive."""
    graph = io.StringIO()
    mx.export_to_dot(graph, *outputs)
    names = dict(re.findall(r'(\d+) \[label\s*="([^"]+)", shape=rectangle', graph.getvalue()))
    inputs = Counter(re.findall(r'"[^"]+" -> (\d+)', graph.getvalue()))
    kernels: Counter[str] = Counter()
    for node, name in names.items():
        if name not in VIEWS:
            kernels["Compiled" if name.startswith("Compiled") else name] += inputs[node] if name == "Concatenate" else 1
    return kernels


def kernels_of_update(n_layers: int, make: Callable[[nn.Module, optim.Optimizer], UpdateFunction]) -> Counter[str]:
    """Return the kernels of one update of adapters on `n_layers` layers."""
    model, optimizer = adapters(n_layers), optim.AdamW(1e-3, bias_correction=True)
    optimizer.init(model.trainable_parameters())
    gradients = tree_map(mx.ones_like, model.trainable_parameters())
    mx.eval(model.state, optimizer.state, gradients)
    norm = make(model, optimizer)(gradients, mx.array(100.0))
    return count_kernels([norm, *(value for _, value in tree_flatten([model.parameters(), optimizer.state]))])


def plain_update(model: nn.Module, optimizer: optim.Optimizer) -> UpdateFunction:
    """Make the update of MLX's own functions."""

    def update(gradients: Any, n_supervised: mx.array) -> mx.array:
        norm: mx.array
        gradients, norm = optim.clip_grad_norm(tree_map(lambda value: value / n_supervised, gradients), 1.0)
        optimizer.update(model, gradients)
        return norm

    return update


def main() -> int:
    """Print the counts. Return 1 if the compiled one is more than ALLOWED of the plain one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=24, help="layers of the model")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    counts = {
        "plain": kernels_of_update(arguments.layers, plain_update),
        **{
            name: kernels_of_update(arguments.layers, partial(make, max_norm=1.0, sum_at_once=True))
            for name, make in (("eager", eager_update), ("compiled", compiled_update))
        },
    }
    fraction = counts["compiled"].total() / counts["plain"].total()
    if arguments.json:
        totals = {name: {"total": kernels.total(), **kernels} for name, kernels in counts.items()}
        print(json.dumps({"layers": arguments.layers, "allowed": ALLOWED, "fraction": fraction, **totals}, indent=2))
    else:
        for name, kernels in counts.items():
            parts = ", ".join(f"{count} {kind}" for kind, count in kernels.most_common())
            print(f"{name:9} {kernels.total():6} kernels: {parts}")
        print(f"compiled / plain: {fraction:.1%} (allowed: {ALLOWED:.0%})")
    return 0 if fraction <= ALLOWED else 1


if __name__ == "__main__":
    sys.exit(main())
