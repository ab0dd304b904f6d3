"""Which weights are trained: a low-rank update beside each linear layer (LoRA, DoRA), or all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.tuner.utils import linear_to_lora_layers

from mlx_distill.errors import InputError
from mlx_distill.models.load import Student
from mlx_distill.train.config import TrainConfig

LINEAR = (nn.Linear, nn.QuantizedLinear)


def make_trainable(student: Student, config: TrainConfig) -> dict[str, Any]:
    """Freeze the student but for what is trained (new layers are seeded); returns the adapter's config in mlx-lm's
    format.

    InputError where a target is no layer of the model, or all weights of a quantised model are to be trained.
    """
    parameters = None  # what mlx-lm writes where all weights are trained
    if config.method == "full":
        _unfreeze(student)
    else:
        parameters = _add_low_rank_layers(student, config)
    mx.eval(student.model.trainable_parameters())
    return {
        "fine_tune_type": config.method,
        "model": str(config.model),
        "num_layers": len(student.model.layers),
        "lora_parameters": parameters,
        "alpha": config.alpha,
        "seed": config.seed,
    }


def _unfreeze(student: Student) -> None:
    if student.quantized:
        raise InputError(
            f"{student.path} is quantised: its weights cannot be trained.",
            "Train a low-rank update of it with --method lora, or name a model that is not quantised.",
        )
    student.model.unfreeze()


def _add_low_rank_layers(student: Student, config: TrainConfig) -> dict[str, Any]:
    parameters: dict[str, Any] = {"rank": config.rank, "scale": config.scale, "dropout": config.dropout}
    if config.targets:
        known = {name for name, module in student.model.layers[0].named_modules() if isinstance(module, LINEAR)}
        unknown = [target for target in config.targets if target not in known]
        if unknown:
            raise InputError(
                f"targets: {', '.join(unknown)} is no layer of {config.model}.",
                f"Choose from {', '.join(sorted(known))}.",
            )
        parameters["keys"] = list(config.targets)
    student.model.freeze()
    mx.random.seed(config.seed)
    linear_to_lora_layers(student.model, len(student.model.layers), dict(parameters), use_dora=config.method == "dora")
    return parameters


@contextmanager
def checkpointed_layers(student: Student, wanted: bool) -> Iterator[None]:
    """Within the block, where `wanted`, a layer's activations are computed again in the backward pass, not kept.

    Like mlx-lm's grad_checkpoint it changes the class of the layers, here until the block ends. Unlike there, one layer
    waits for the other: the second computation for the gradient from above, the gradient that goes below for those of
    the weights. A graph that is evaluated breadth first, as on several CPU streams, would otherwise compute all layers
    again before it drops one, and save nothing.
    """
    kind = type(student.model.layers[0])
    plain = kind.__call__
    if wanted:
        kind.__call__ = _checkpointed(plain)
    try:
        yield
    finally:
        kind.__call__ = plain


def _checkpointed(call: Callable[..., mx.array]) -> Callable[..., mx.array]:
    """A layer's call, (layer, states, ...) to states, that keeps its inputs alone for the backward pass."""

    def checkpointed(layer: nn.Module, states: mx.array, *rest: Any, **named: Any) -> mx.array:
        before = tree_flatten(layer.trainable_parameters())
        names = [name for name, _ in before]

        def compute(*inputs: mx.array) -> mx.array:
            layer.update(tree_unflatten(list(zip(names, inputs[1:], strict=True))))
            made = call(layer, inputs[0], *rest, **named)
            layer.update(tree_unflatten(before))
            return made

        function = mx.custom_function(compute)

        @function.vjp
        def _(inputs: tuple[mx.array, ...], slope: mx.array, _made: mx.array) -> tuple[mx.array, ...]:
            _, gradients = mx.vjp(compute, mx.depends(list(inputs), [slope]), [slope])
            below = mx.depends(gradients[:1], gradients[1:]) if gradients[1:] else gradients[:1]
            return (*below, *gradients[1:])

        made: Any = function(states, *(value for _, value in before))
        return made  # type: ignore[no-any-return]

    return checkpointed
