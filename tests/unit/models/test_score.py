"""Loss and token accuracy equal a simple reference for all batches, chunks and padding."""

from __future__ import annotations

import math
from pathlib import Path

import mlx.core as mx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_distill import device
from mlx_distill.models.load import Student, load_student
from mlx_distill.models.score import BATCH_TOKENS, batches_by_length, make_batches, pad, score, total
from mlx_distill.models.tokenize import TokenizedChat, render
from mlx_distill.records import Message
from tests.support.tiny import make_tiny_qwen2

ANSWERS = ["Yes.", "def f(x):\n    return x\n", "SELECT name FROM employees WHERE salary > 10;", "first " * 40]


def rows_of(student: Student) -> list[TokenizedChat]:
    return [
        render(student.tokenizer, (Message("user", f"Question {number}?"), Message("assistant", answer)))
        for number, answer in enumerate(ANSWERS)
    ]


def reference(student: Student, row: TokenizedChat) -> tuple[float, int, int]:
    """Loss sum, number right and number of tokens, from full logits of one unpadded row."""
    logits = student.model(mx.array([row.tokens]))[0].astype(mx.float32)
    loss, right, count = 0.0, 0, 0
    for index in range(1, len(row.tokens)):
        if row.mask[index]:
            before = logits[index - 1]
            loss += (mx.logsumexp(before) - before[row.tokens[index]]).item()
            right += int(mx.argmax(before).item() == row.tokens[index])
            count += 1
    return loss, right, count


@pytest.mark.parametrize("tied", [True, False])
def test_scores_equal_a_plain_reference(tmp_path: Path, tied: bool) -> None:
    student = load_student(make_tiny_qwen2(tmp_path / "m", tied=tied))
    rows = rows_of(student)
    result = score(student, rows, batch_tokens=200, chunk_bytes=4 * 400 * 16)  # many batches and chunks
    for got, row in zip(result.rows, rows, strict=True):
        loss, right, count = reference(student, row)
        assert math.isclose(got.loss_sum, loss, rel_tol=1e-5)
        assert (got.n_correct, got.n_tokens) == (right, count)
    assert math.isclose(result.loss, sum(row.loss_sum for row in result.rows) / result.n_tokens)
    assert result.n_rows == len(rows)


def test_bfloat16_losses_are_near_float32_losses(tiny_student: Path) -> None:
    exact = load_student(tiny_student, dtype=mx.float32)
    rough = load_student(tiny_student, dtype=mx.bfloat16)
    assert math.isclose(score(exact, rows_of(exact)).loss, score(rough, rows_of(rough)).loss, rel_tol=2**-7)


def test_padding_never_reaches_a_score(tiny_student: Path) -> None:
    student = load_student(tiny_student)
    rows = rows_of(student)
    alone = [score(student, [row]).rows[0].loss_sum for row in rows]
    together = [row.loss_sum for row in score(student, rows).rows]
    assert together == pytest.approx(alone, rel=1e-5)


def test_a_batch_holds_exactly_the_supervised_tokens() -> None:
    row = TokenizedChat((5, 6, 7, 8, 9), (False, False, True, True, False))
    other = TokenizedChat((1, 2), (False, True))
    batch = pad([row, other], multiple=4)
    assert batch.inputs.tolist() == [[5, 6, 7, 0], [1, 0, 0, 0]]
    assert batch.targets.tolist() == [7, 8, 2]
    assert batch.positions.tolist() == [1, 2, 4]
    assert batch.tokens_of_row == (2, 1)


@given(st.lists(st.integers(1, 300), max_size=60), st.integers(1, 2000))
def test_batches_by_length_keep_the_budget(lengths: list[int], budget: int) -> None:
    groups = batches_by_length(lengths, budget)
    assert sorted(index for group in groups for index in group) == list(range(len(lengths)))
    for group in groups:
        assert len(group) == 1 or len(group) * max(lengths[index] for index in group) <= budget


@given(st.lists(st.integers(1, 300), max_size=60))
def test_batches_share_all_rows_among_the_streams(lengths: list[int]) -> None:
    groups = make_batches(lengths)
    assert sorted(index for group in groups for index in group) == list(range(len(lengths)))
    n_streams = len(device.streams())
    assert len(groups) >= min(n_streams, len(lengths))
    for group in groups:
        assert (len(group) - 1) * max(lengths[index] for index in group) <= BATCH_TOKENS


def test_nothing_to_score_is_not_a_number() -> None:
    assert math.isnan(total([]).loss)
