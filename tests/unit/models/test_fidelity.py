"""Fidelity equals a plain computation of the definitions, and is perfect for the teacher itself."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mlx_distill.models.adapter import load_adapter
from mlx_distill.models.context import TeacherContext
from mlx_distill.models.fidelity import measure_fidelity, token_fidelities
from mlx_distill.models.load import Student, load_student
from mlx_distill.models.local_teacher import LocalTeacher, open_local_teacher
from mlx_distill.models.tokenize import TokenizedChat, render
from mlx_distill.records import Message, Messages
from tests.support.adapters import make_adapter
from tests.support.tiny import make_tiny_qwen2

CHATS: list[Messages] = [
    (Message("user", f"Question {number}?"), Message("assistant", "def f(x):\n    return x\n" * number))
    for number in range(1, 6)
]
CONTEXT = TeacherContext("Answer in rhyme.")


@pytest.fixture
def student(tiny_student: Path) -> Student:
    return load_student(tiny_student, dtype=mx.float32)


def rows_of(teacher: LocalTeacher, student: Student) -> tuple[list[TokenizedChat], list[TokenizedChat]]:
    rows = [render(student.tokenizer, chat) for chat in CHATS]
    return rows, [teacher.view(row, chat) for row, chat in zip(rows, CHATS, strict=True)]


def probabilities(model: Student, row: TokenizedChat) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    logits = np.array(model.model(mx.array([row.tokens]))[0].astype(mx.float32), dtype=np.float64)[:, :400]
    found = np.exp(logits - logits.max(axis=-1, keepdims=True))
    places = [index - 1 for index, counts in enumerate(row.mask) if counts]
    return np.asarray((found / found.sum(axis=-1, keepdims=True))[places])


def test_figures_equal_the_definitions(tmp_path: Path, student: Student) -> None:
    folder = make_tiny_qwen2(tmp_path / "teacher", seed=8, hidden=128, dtype="float32")
    teacher = open_local_teacher(f"mlx:{folder}", student, CONTEXT)
    rows, views = rows_of(teacher, student)
    for found, row, view in zip(measure_fidelity(student, teacher, rows, views), rows, views, strict=True):
        p, q = probabilities(teacher.model, view), probabilities(student, row)
        assert found.n_tokens == len(p) == len(q)
        assert found.kl == pytest.approx((p * np.log(p / q)).sum(), rel=1e-4)
        assert found.reverse_kl == pytest.approx((q * np.log(q / p)).sum(), rel=1e-4)
        assert found.acceptance == pytest.approx((1 - np.abs(p - q).sum(axis=-1) / 2).sum(), rel=1e-4)
        assert found.n_agreed == (p.argmax(axis=-1) == q.argmax(axis=-1)).sum()


def test_the_teacher_itself_is_perfect(student: Student) -> None:
    teacher = open_local_teacher("self", student, TeacherContext())
    rows, views = rows_of(teacher, student)
    for found in measure_fidelity(student, teacher, rows, views):
        assert found.kl == pytest.approx(0, abs=1e-6 * found.n_tokens)
        assert found.reverse_kl == pytest.approx(0, abs=1e-6 * found.n_tokens)
        assert found.acceptance == pytest.approx(found.n_tokens, rel=1e-5)
        assert found.n_agreed == found.n_tokens


def test_self_is_the_student_without_its_adapter(tmp_path: Path, tiny_student: Path, student: Student) -> None:
    adapter = load_adapter(student, make_adapter(tiny_student, tmp_path / "adapter"))
    teacher = open_local_teacher("self", student, TeacherContext())
    rows, views = rows_of(teacher, student)
    adapted = measure_fidelity(student, teacher, rows, views)
    assert adapter.enabled and all(found.kl > 1e-3 for found in adapted)
    adapter.enabled = False
    assert all(abs(found.kl) < 1e-5 for found in measure_fidelity(student, teacher, rows, views))
    adapter.enabled = True
    assert measure_fidelity(student, teacher, rows, views) == adapted


def test_chunks_change_nothing() -> None:
    mx.random.seed(3)
    ours, theirs = mx.random.normal((50, 77)) * 3, mx.random.normal((50, 77)) * 3
    whole = token_fidelities(lambda x: x, ours, lambda x: x, theirs, 77)
    assert mx.array_equal(token_fidelities(lambda x: x, ours, lambda x: x, theirs, 77, chunk_bytes=1), whole)
    assert whole.shape == (50, 4)
