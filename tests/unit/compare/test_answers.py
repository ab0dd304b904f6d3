"""Prompts of a comparison, and figures of the answers."""

from __future__ import annotations

import pytest

from mlx_distill.compare.metrics.completion import completion
from mlx_distill.compare.prompts import build_prompts, sample_rows
from mlx_distill.records import Example, Prompt
from mlx_distill.similarity import repetition
from tests.support.comparing import ROWS, SYSTEM, example
from tests.support.reports import make_answer, make_answered, make_comparison


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("", 0.0),
        ("one two three", 0.0),
        ("one two three four five", 0.0),
        ("a b c d a b c d", 0.2),  # the last of five runs occurs earlier
        ("go on " * 50, 0.9794),  # 2 of 97 runs are new
    ],
)
def test_repetition_is_the_share_of_repeated_runs(text: str, share: float) -> None:
    assert repetition(text.split()) == pytest.approx(share, abs=1e-4)


def test_sampled_rows_come_from_many_families() -> None:
    rows = [Example.from_json(example(*row)) for row in ROWS]
    for seed in range(20):
        assert len({row.family for row in sample_rows(rows, 5, seed)}) == 5
    assert sample_rows(rows, 3, 1) == sample_rows(rows, 3, 1)
    assert len({tuple(row.id for row in sample_rows(rows, 3, seed)) for seed in range(20)}) > 1
    assert sample_rows(rows, 99, 0) == rows
    assert sample_rows(rows, 0, 0) == []


def test_prompts_have_unique_ids_and_their_own_messages() -> None:
    row = Example.from_json(
        {**example("queue", "concepts", "What is a queue?", "First in.", system="Rhyme."), "id": "a"}
    )
    first, *others = build_prompts([Prompt("Ask", "a")], [row, row], SYSTEM)
    assert [prompt.id for prompt in (first, *others)] == ["a", "a (2)", "a (3)"]
    assert [message.content for message in first.messages] == [SYSTEM, "Ask"]
    assert [message.content for message in others[0].messages] == ["Rhyme.", "What is a queue?"]
    assert (others[0].text, others[0].teacher_answer, others[0].family) == ("What is a queue?", "First in.", "queue")


def test_completion_shows_means_with_intervals_over_families() -> None:
    answers = [
        make_answered(
            make_answer("go on " * 20, finished=False, n_tokens=64),
            make_answer("It ends.", finished=number != 3, n_tokens=10 + number),
            make_answer("Four words are here", taught=True, n_tokens=5) if number < 3 else None,
            name=f"q{number}",
            family=f"f{number % 6}",
        )
        for number in range(12)
    ]
    table = completion(make_comparison(answers=answers))
    assert table.columns[:3] == ("base", "distilled", "teacher")
    rows = table.rows
    assert [cell.text for cell in rows["finished"][:3]] == ["0.0 %", "91.7 %", "100.0 %"]
    assert [cell.value for cell in rows["length in tokens"][:3]] == [64.0, 15.5, 5.0]
    difference = rows["length in tokens"][3]
    assert difference.value == pytest.approx(-48.5)
    assert difference.low is not None and difference.high is not None
    assert difference.low < -48.5 < difference.high
    assert rows["repetition"][3].low is None  # all families are equal
    assert [cell.text for cell in rows["tokens/s"]] == ["50", "50", "-", "-"]
    assert "12 prompts in 6 families; the teacher answered 3" in table.note
    assert "0.0 % of the answers of base and 91.7 % of those of distilled" in table.finding
