"""The trained weights: a low-rank update of each linear layer (LoRA, DoRA), or all weights."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.tuner.lora import LoRALinear
from mlx_lm.tuner.utils import linear_to_lora_layers

from mlx_distill.errors import InputError
from mlx_distill.models.load import Student
from mlx_distill.train.config import TrainConfig


def make_trainable(student: Student, config: TrainConfig, *, cast_adapters: bool = False) -> dict[str, Any]:
    """Freeze all but the trained weights; new layers are seeded. Return the adapter's config in mlx-lm's format.

    `cast_adapters`: see `Execution`. The weights themselves stay float32, for the optimizer and the files.
    Raises InputError for an unknown target layer, and for full training of a quantised model.
    """
    parameters = None  # mlx-lm's value for full training
    if config.method == "full":
        if student.quantized:
            raise InputError(
                f"{student.path} is quantised: its weights cannot be trained.",
                "Train a low-rank update of it with --method lora, or name a model that is not quantised.",
            )
        student.model.unfreeze()
    else:
        parameters = _add_low_rank_layers(student, config)
        if cast_adapters:
            for module in student.model.modules():
                if type(module) is LoRALinear:  # DoRA needs exact matrices for its norm
                    module.__class__ = CastLoRALinear
    if config.grad_checkpoint:
        _checkpoint_layers(student.model.layers)
    mx.eval(student.model.trainable_parameters())
    return {
        "fine_tune_type": config.method,
        "model": str(config.model),
        "num_layers": len(student.model.layers),
        "lora_parameters": parameters,
        "alpha": config.alpha,
        "seed": config.seed,
    }


class CastLoRALinear(LoRALinear):  # type: ignore[misc] # mlx-lm has no types
    """mlx-lm's layer, computed in the type of the activations.

    mlx-lm casts 16-bit activations to float32 instead and keeps that copy for the backward pass: a quarter of the
    memory of all activations.
    """

    def __call__(self, x: mx.array) -> mx.array:
        low_rank: mx.array = (self.dropout(x) @ self.lora_a.astype(x.dtype)) @ self.lora_b.astype(x.dtype)
        output: mx.array = self.linear(x) + self.scale * low_rank
        return output


def _add_low_rank_layers(student: Student, config: TrainConfig) -> dict[str, Any]:
    """Wrap the target layers. Return rank, scale, dropout and keys as mlx-lm writes them."""
    parameters: dict[str, Any] = {"rank": config.rank, "scale": config.scale, "dropout": config.dropout}
    layers = student.model.layers
    if config.targets:
        linear = (nn.Linear, nn.QuantizedLinear)
        known = {name for name, module in layers[0].named_modules() if isinstance(module, linear)}
        unknown = [target for target in config.targets if target not in known]
        if unknown:
            raise InputError(
                f"targets: {config.model} has no layer {', '.join(unknown)}.",
                f"Choose from {', '.join(sorted(known))}.",
            )
        parameters["keys"] = list(config.targets)
    student.model.freeze()
    mx.random.seed(config.seed)
    linear_to_lora_layers(student.model, len(layers), dict(parameters), use_dora=config.method == "dora")
    return parameters


def _checkpoint_layers(layers: list[nn.Module]) -> None:
    """Make these layers recompute their activations in the backward pass instead of keeping them.

    mlx-lm's grad_checkpoint changes the class for the whole process; this changes the given layers only. And here the
    backward pass finishes one layer before it recomputes the next: a layer is recomputed when the gradient of its
    output is known, and passes on the gradient of its input after those of its weights. Otherwise a graph that is
    evaluated breadth first, as on several CPU streams, recomputes all layers before it drops one, and saves nothing.
    """
    plain = type(layers[0])

    class Checkpointed(plain):  # type: ignore[valid-type, misc] # the architecture is known at run time only
        def __call__(self, states: mx.array, *rest: Any, **named: Any) -> mx.array:
            before = tree_flatten(self.trainable_parameters())
            names = [name for name, _ in before]

            def compute(*inputs: mx.array) -> mx.array:
                self.update(tree_unflatten(list(zip(names, inputs[1:], strict=True))))
                output: mx.array = super(Checkpointed, self).__call__(inputs[0], *rest, **named)
                self.update(tree_unflatten(before))
                return output

            function = mx.custom_function(compute)

            @function.vjp
            def _(inputs: tuple[mx.array, ...], slope: mx.array, _output: mx.array) -> tuple[mx.array, ...]:
                _, gradients = mx.vjp(compute, mx.depends(list(inputs), [slope]), [slope])
                below = mx.depends(gradients[:1], gradients[1:]) if gradients[1:] else gradients[:1]
                return (*below, *gradients[1:])

            output: Any = function(states, *(value for _, value in before))
            return output  # type: ignore[no-any-return]

    for layer in layers:
        layer.__class__ = Checkpointed
