"""What is asked, and the figures of what is answered."""

from __future__ import annotations

import pytest

from mlx_distill.compare.answer_figures import answer_figures
from mlx_distill.compare.answer_wording import answers_note, answers_rows
from mlx_distill.compare.answers import PromptAnswers, StudentAnswer, TeacherAnswer, Writing, repetition
from mlx_distill.compare.figures import bounded_mean
from mlx_distill.compare.questions import questions_of, sample_rows
from mlx_distill.records import Example, Prompt
from tests.support.comparing import ROWS, SYSTEM, example


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("", 0.0),
        ("one two three", 0.0),
        ("one two three four five", 0.0),
        ("a b c d a b c d", 0.2),  # of five runs the last was said before
        ("go on " * 50, 0.9794),  # two runs are new, 95 are not
    ],
)
def test_repetition_is_the_share_of_runs_of_four_words_said_before(text: str, share: float) -> None:
    assert repetition(text) == pytest.approx(share, abs=1e-4)


def test_a_sample_of_rows_takes_every_family_before_it_takes_one_twice() -> None:
    rows = [Example.from_json(example(*row)) for row in ROWS]
    for seed in range(20):
        assert len({row.family for row in sample_rows(rows, 5, seed)}) == 5
    assert sample_rows(rows, 3, 1) == sample_rows(rows, 3, 1)
    assert len({tuple(row.id for row in sample_rows(rows, 3, seed)) for seed in range(20)}) > 1
    assert sample_rows(rows, 99, 0) == rows
    assert sample_rows(rows, 0, 0) == []


def test_every_question_has_an_id_of_its_own_and_the_messages_of_its_row() -> None:
    row = Example.from_json(
        {**example("queue", "concepts", "What is a queue?", "First in.", system="Rhyme."), "id": "a"}
    )
    first, *others = questions_of([Prompt("a", "Ask", "a")], [row, row], SYSTEM)
    assert [question.id for question in (first, *others)] == ["a", "a (2)", "a (3)"]
    assert [message.content for message in first.messages] == [SYSTEM, "Ask"]
    assert [message.content for message in others[0].messages] == ["Rhyme.", "What is a queue?"]
    assert (others[0].text, others[0].held, others[0].family) == ("What is a queue?", "First in.", "queue")


def answered(name: str, family: str, base: StudentAnswer, distilled: StudentAnswer, taught: bool) -> PromptAnswers:
    teacher = TeacherAnswer("Four words are here", True, "end_turn", "m", n_tokens=5) if taught else None
    return PromptAnswers(name, "sql" if family == "f0" else "python", "?", base, distilled, teacher, family=family)


def test_the_figures_of_answers_are_plain_means_with_intervals_over_families() -> None:
    given = [
        answered(
            f"q{number}",
            f"f{number % 6}",
            StudentAnswer("go on " * 20, False, 64, 9.0),
            StudentAnswer("It ends.", number != 3, 10 + number, 9.0),
            taught=number < 3,
        )
        for number in range(12)
    ]
    writing = {"base": Writing(768, 9.6, 80.0, 10**9), "distilled": Writing(186, 3.1, 60.0, 10**9)}
    figures = answer_figures(given, writing, seed=0)
    assert (figures.n_questions, figures.n_families, figures.n_teacher) == (12, 6, 3)
    finished, length = figures.means["finished"], figures.means["length"]
    assert (finished.base, finished.teacher) == (0.0, 1.0)
    assert finished.distilled == pytest.approx(11 / 12)
    assert (length.base, length.distilled, length.teacher) == (64.0, 15.5, 5.0)
    assert length.difference.value == pytest.approx(-48.5)
    assert length.difference.low is not None
    assert length.difference.low < -48.5 < (length.difference.high or 0)
    assert figures.means["repetition"].difference.low is None  # every family is alike
    assert {name: group.n_questions for name, group in figures.by_category.items()} == {"sql": 2, "python": 10}
    assert figures.by_category["sql"].means["length"].difference.low is None
    rows = {row[0]: row[1:] for row in answers_rows(figures)}
    assert rows["came to an end"][:4] == ("0.0 %", "91.7 %", "100.0 %", "+91.7 points")
    assert rows["tokens/s, all together"][:3] == ("80", "60", "-")
    assert "12 questions of 6 families, 3 of them answered by the teacher" in answers_note(figures)


def test_the_interval_of_a_mean_covers_a_known_one_in_about_95_of_100_trials() -> None:
    import numpy as np

    random = np.random.default_rng(5)
    covered = 0
    for trial in range(100):
        values = []
        for family in range(12):
            lean = random.normal(0.6, 0.15)  # families differ; wins within one are alike
            values += [(f"f{family}", float(random.random() < lean)) for _ in range(3)]
        found = bounded_mean(values, trial)
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= 0.6 <= found.high
    assert 90 <= covered <= 99
