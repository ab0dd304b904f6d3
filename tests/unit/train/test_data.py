"""Batches: little padding, few shapes, every row once."""

from __future__ import annotations

import random

from mlx_distill.config import default_of
from mlx_distill.train import TrainConfig
from mlx_distill.train.data import epoch_batches, micro_batches
from mlx_distill.train.execution import Execution
from mlx_distill.train.memory_plan import MAX_TOKENS

MULTIPLE = Execution(()).length_multiple
SAMPLE_LENGTHS = [
    *(280, 260, 250, 238, 216, 237, 254, 216, 255, 198, 247, 214, 242, 238, 277, 246, 241, 252, 280, 220, 251, 256),
    *(244, 211, 222, 212, 178, 270, 224, 223, 230, 253, 241, 237, 185, 219, 233, 206, 215, 218, 220, 257, 267, 247),
    *(250, 253, 274, 260, 223, 247, 254, 260, 259, 277, 275, 201, 195, 214, 202, 189, 193, 197, 195, 195, 216),
]
"""Tokens of each training row of the embedded sample."""


def padded(length: int) -> int:
    return -(-length // MULTIPLE) * MULTIPLE


def test_an_epoch_has_every_row_once_and_repeats_by_its_seed() -> None:
    batches = epoch_batches(SAMPLE_LENGTHS, 4, 7, 2)
    assert sorted(row for batch in batches for row in batch) == list(range(len(SAMPLE_LENGTHS)))
    assert sorted({len(batch) for batch in batches}) == [1, 4]
    assert batches == epoch_batches(SAMPLE_LENGTHS, 4, 7, 2)
    assert batches != epoch_batches(SAMPLE_LENGTHS, 4, 8, 2)
    assert batches != epoch_batches(SAMPLE_LENGTHS, 4, 7, 3)


def test_micro_batches_fill_the_streams_within_the_token_limit() -> None:
    lengths = [10, 50, 30, 20, 400]
    assert micro_batches(lengths, [0, 1, 2, 3], 4096, 2) == [[0, 3], [2, 1]]
    assert micro_batches(lengths, [0, 1, 2, 3], 60, 1) == [[0, 3], [2], [1]]
    assert micro_batches(lengths, [4], 60, 8) == [[4]]


def test_padding_of_the_sample_is_below_five_percent() -> None:
    batch_size = default_of(TrainConfig, "batch_size")
    for n_streams in (1, 2):
        for epoch in range(10):
            real = computed = 0
            for batch in epoch_batches(SAMPLE_LENGTHS, batch_size, 0, epoch):
                for rows in micro_batches(SAMPLE_LENGTHS, batch, MAX_TOKENS, n_streams):
                    inputs = [SAMPLE_LENGTHS[row] - 1 for row in rows]  # the last token is only a target
                    real += sum(inputs)
                    computed += padded(max(inputs)) * len(rows)
            assert 1 - real / computed < 0.05


def test_batches_have_few_shapes() -> None:
    draw = random.Random(3)
    lengths = [draw.randint(20, 300) for _ in range(200)]
    shapes = {
        (len(rows), padded(max(lengths[row] for row in rows)))
        for epoch in range(50)
        for batch in epoch_batches(lengths, 4, 0, epoch)
        for rows in micro_batches(lengths, batch, MAX_TOKENS, 2)
    }
    assert len(shapes) <= 2 * (300 // MULTIPLE + 1)
