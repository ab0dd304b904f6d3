"""The memory plan: what it counts, what it chooses, when it refuses."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from mlx.utils import tree_flatten
from mlx_lm.utils import get_total_parameters

from mlx_distill.config import default_of
from mlx_distill.errors import MachineError
from mlx_distill.models.load import Student, load_student
from mlx_distill.models.tokenize import Rendered
from mlx_distill.train import TrainConfig
from mlx_distill.train import memory_plan as memory
from mlx_distill.train.batches import epoch_batches, micro_batches
from mlx_distill.train.lora import make_trainable
from mlx_distill.train.objectives import LENGTH_MULTIPLE

ROWS = tuple(Rendered(tuple(range(500)), (False,) * 100 + (True,) * 400) for _ in range(8))

SAMPLE_LENGTHS = [
    *(280, 260, 250, 238, 216, 237, 254, 216, 255, 198, 247, 214, 242, 238, 277, 246, 241, 252, 280, 220, 251, 256),
    *(244, 211, 222, 212, 178, 270, 224, 223, 230, 253, 241, 237, 185, 219, 233, 206, 215, 218, 220, 257, 267, 247),
    *(250, 253, 274, 260, 223, 247, 254, 260, 259, 277, 275, 201, 195, 214, 202, 189, 193, 197, 195, 195, 216),
]
"""Tokens of each training row of the embedded sample, by the sample student's tokenizer."""


@pytest.fixture
def config(tiny_student: Path, tmp_path: Path) -> TrainConfig:
    return TrainConfig(model=tiny_student, data=tmp_path, adapter=tmp_path / "adapter", batch_size=8)


@pytest.fixture
def student(config: TrainConfig) -> Student:
    return load_student(config.model)


@pytest.mark.parametrize("method", ["lora", "dora", "full"])
def test_parameters_are_counted_from_config_json(student: Student, config: TrainConfig, method: str) -> None:
    shape = memory.Shape.of(student.config)
    assert shape
    biases = sum(value.size for name, value in tree_flatten(student.model.parameters()) if name.endswith("bias"))
    assert shape.parameters == get_total_parameters(student.model) - biases
    chosen = config.replace(method=method)
    make_trainable(student, chosen)
    trained = sum(value.size for _, value in tree_flatten(student.model.trainable_parameters()))
    assert shape.trainable(chosen) == trained - (biases if method == "full" else 0)


def test_less_memory_means_smaller_pieces_and_at_last_a_refusal_with_advice(
    student: Student, config: TrainConfig
) -> None:
    roomy = memory.make_plan(student, config, ROWS, 1 << 40)
    assert roomy.micro_tokens == memory.MOST_TOKENS
    assert roomy.estimate
    tight = memory.make_plan(student, config, ROWS, int(0.6 * roomy.estimate.total / memory.SHARE))
    assert tight.estimate
    assert tight.micro_tokens < roomy.micro_tokens
    assert tight.estimate.total <= 0.6 * roomy.estimate.total
    with pytest.raises(MachineError, match="Training needs about") as error:
        memory.make_plan(student, config.replace(method="full"), ROWS, 1 << 20)
    assert "--method lora" in error.value.next_step
    assert "--grad-checkpoint" in error.value.next_step


def test_weights_that_cannot_fit_are_refused_before_they_are_loaded(student: Student, config: TrainConfig) -> None:
    memory.refuse_weights(student.config, config, 4, 1 << 30)
    with pytest.raises(MachineError, match="for the weights alone"):
        memory.refuse_weights(student.config, config, 4, 1 << 16)


def test_pieces_that_the_user_chose_are_kept_and_said_not_to_fit(student: Student, config: TrainConfig) -> None:
    plan = memory.make_plan(student, config.replace(micro_tokens=4000), ROWS, 1 << 20)
    assert plan.micro_tokens == 4000
    assert not plan.fits


def test_padding_on_the_sample_is_below_five_percent() -> None:
    for at_once in (1, 2):
        for epoch in range(10):
            real = computed = 0
            for batch in epoch_batches(SAMPLE_LENGTHS, default_of(TrainConfig, "batch_size"), 0, epoch):
                for piece in micro_batches(SAMPLE_LENGTHS, batch, memory.MOST_TOKENS, at_once):
                    inputs = [SAMPLE_LENGTHS[row] - 1 for row in piece]  # the last token is only ever a target
                    real += sum(inputs)
                    computed += -(-max(inputs) // LENGTH_MULTIPLE) * LENGTH_MULTIPLE * len(piece)
            assert 1 - real / computed < 0.05


def test_the_shapes_of_batches_are_a_bounded_set() -> None:
    draw = random.Random(3)
    lengths = [draw.randint(20, 300) for _ in range(200)]
    shapes = {
        (len(piece), -(-max(lengths[row] for row in piece) // LENGTH_MULTIPLE))
        for epoch in range(50)
        for batch in epoch_batches(lengths, 4, 0, epoch)
        for piece in micro_batches(lengths, batch, memory.MOST_TOKENS, 2)
    }
    assert len(shapes) <= 2 * (300 // LENGTH_MULTIPLE + 1)
