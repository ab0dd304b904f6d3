"""The teacher's answers beside the student's, or the reason why there are none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mlx_distill.compare.config import CompareConfig
from mlx_distill.compare.run import run
from mlx_distill.events import Event, Warning
from tests.support.comparing import PROMPTS, ROWS, make_config, write_lines


def recording(file: Path, texts: list[str]) -> Path:
    """A journal with one answer to each of the first test prompts."""
    rows = [
        {
            "prompt_id": name,
            "messages": [{"role": "user", "content": text}],
            "answer": answer,
            "stop_reason": "end_turn",
        }
        for (name, _, text), answer in zip(PROMPTS, texts, strict=False)
    ]
    return write_lines(file, rows)


@pytest.fixture
def config(tiny_student: Path, tmp_path: Path) -> CompareConfig:
    teacher = recording(tmp_path / "teacher.jsonl", ["Compare heights.", "Use a queue."])
    return make_config(tiny_student, tmp_path, teacher=f"recorded:{teacher}", test_rows=0, max_tokens=4)


def test_the_teacher_stands_beside_the_student_and_is_asked_once(config: CompareConfig, tmp_path: Path) -> None:
    first = run(config)
    assert [answers.teacher.text for answers in first.answers if answers.teacher] == [
        "Compare heights.",
        "Use a queue.",
    ]
    assert first.cautions == ()
    page = first.markdown.read_text(encoding="utf-8")
    n_tokens = first.answers[0].teacher.n_tokens if first.answers[0].teacher else None
    assert f"**Teacher** (finished, {n_tokens} tokens)\n\n```text\nCompare heights.\n```" in page
    journal = config.data / "test_answers.jsonl"
    kept = journal.read_bytes()
    (tmp_path / "teacher.jsonl").unlink()
    again = run(config)
    assert [answers.teacher for answers in again.answers] == [answers.teacher for answers in first.answers]
    assert journal.read_bytes() == kept


def test_the_teacher_is_asked_what_the_student_is_asked(config: CompareConfig) -> None:
    run(config)
    asked = [json.loads(line) for line in (config.data / "test_answers.jsonl").read_text().splitlines()]
    by_id = {record["prompt_id"]: record for record in asked}
    for name, _, text in PROMPTS:
        assert by_id[name]["max_tokens"] == 4
        assert by_id[name]["messages"] == [
            {"role": "system", "content": config.system},
            {"role": "user", "content": text},
        ]


def test_a_prompt_that_the_recording_lacks_costs_that_answer_alone(config: CompareConfig, tmp_path: Path) -> None:
    events: list[Event] = []
    short = recording(tmp_path / "short.jsonl", ["Compare heights."])
    result = run(config.replace(teacher=f"recorded:{short}"), events.append)
    assert [answers.teacher is None for answers in result.answers] == [False, True]
    assert len(result.cautions) == 1
    assert "no answer to 1 of 2 test prompts (pool: " in result.cautions[0]
    assert Warning(result.cautions[0]) in events


@pytest.mark.parametrize(
    ("teacher", "says"),
    [
        ("anthropic:claude-sonnet-4-6", "ANTHROPIC_API_KEY"),
        ("recorded:nowhere.jsonl", "nowhere.jsonl: there is no such file"),
        ("oracle:delphi", "'oracle' is not one of"),
        ("oracle", "is not one of"),
    ],
)
def test_a_teacher_that_cannot_be_asked_loses_nothing_else(
    config: CompareConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, teacher: str, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    alone = run(config.replace(teacher=""))
    result = run(config.replace(teacher=teacher))
    assert len(result.cautions) == 1
    assert says in result.cautions[0]
    assert "--no-teacher" in result.cautions[0]
    assert result.test == alone.test
    assert [answers.distilled.text for answers in result.answers] == [
        answers.distilled.text for answers in alone.answers
    ]
    assert all(answers.teacher is None for answers in result.answers)
    assert "no-teacher" in result.markdown.read_text(encoding="utf-8")
    assert json.loads(result.report.read_text(encoding="utf-8"))["cautions"] == list(result.cautions)


def test_without_a_teacher_no_journal_is_made(config: CompareConfig) -> None:
    result = run(config.replace(teacher=""))
    assert not (config.data / "test_answers.jsonl").exists()
    assert all(answers.teacher is None for answers in result.answers)
    assert "| Teacher beside the answers | left out |" in result.markdown.read_text(encoding="utf-8")


def test_questions_of_test_rows_are_answered_beside_the_prompts_and_hold_the_teachers_answer(
    config: CompareConfig,
) -> None:
    result = run(config.replace(test_rows=4))
    rows = [one for one in result.answers if one.origin == "test row"]
    assert [one.origin for one in result.answers[: len(PROMPTS)]] == ["test prompt"] * len(PROMPTS)
    held = {question: (family, answer) for family, _, question, answer in ROWS}
    assert len({one.family for one in rows}) == 4  # as many families as there is room for
    for one in rows:
        assert one.teacher is not None
        assert (one.family, one.teacher.text) == held[one.prompt]
        assert one.teacher.n_tokens
    assert result.answer_figures.n_questions == 6
    assert result.answer_figures.n_teacher == 6
    asked = (config.data / "test_answers.jsonl").read_text().splitlines()
    assert len(asked) == len(PROMPTS)  # a row's answer is not bought again
    left_out = run(config.replace(test_rows=4, teacher=""))
    assert all(one.teacher is None for one in left_out.answers)
    assert left_out.answer_figures.means["length"].teacher is None
