"""The teacher's answers next to the students', or the reason why there are none."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from mlx_distill.compare.config import CompareConfig, CompareResult
from mlx_distill.compare.run import run
from mlx_distill.events import Event, Warning
from mlx_distill.models.context import ContextConfig
from tests.support.comparing import PROMPTS, ROWS, make_config, write_lines


def recording(file: Path, texts: list[str]) -> Path:
    """A journal with one answer to each of the first test prompts."""
    prompts = zip(PROMPTS, texts, strict=False)
    messages = {name: ([{"role": "user", "content": prompt}], text) for (name, _, prompt), text in prompts}
    return write_lines(file, [{"prompt_id": name, "messages": m, "answer": a} for name, (m, a) in messages.items()])


def shown(result: CompareResult) -> list[str | None]:
    """The teacher's answer to each prompt."""
    return [one.teacher.text if one.teacher else None for one in result.report.answers]


@pytest.fixture
def config(tiny_student: Path, tmp_path: Path) -> CompareConfig:
    teacher = recording(tmp_path / "teacher.jsonl", ["Compare heights.", "Use a queue."])
    return make_config(tiny_student, tmp_path, teacher=f"recorded:{teacher}", test_rows=0, max_tokens=4)


def test_the_teacher_is_shown_and_asked_once(config: CompareConfig, tmp_path: Path) -> None:
    first = run(config)
    assert shown(first) == ["Compare heights.", "Use a queue."]
    assert first.report.warnings == ()
    page = first.markdown_file.read_text(encoding="utf-8")
    assert re.search(r"\*\*teacher\*\* \(finished, \d+ tokens\)\n\n```text\nCompare heights\.\n```", page)
    journal = config.data / "test_answers.jsonl"
    kept = journal.read_bytes()
    by_id = {record["prompt_id"]: record for record in map(json.loads, kept.splitlines())}
    for name, _, text in PROMPTS:
        system, user = by_id[name]["messages"]
        own = config.teacher_context.system
        assert (by_id[name]["max_tokens"], system["content"], user["content"]) == (4, own, text)
    (tmp_path / "teacher.jsonl").unlink()
    assert shown(run(config)) == shown(first)
    assert journal.read_bytes() == kept


def test_student_teaches_with_its_context(tiny_student: Path, tmp_path: Path) -> None:
    prompts = [{"id": "a", "prompt": "Compare heights?", "context": "Trees are tall."}]
    test_prompts = write_lines(tmp_path / "with_context.jsonl", prompts)
    base = make_config(tiny_student, tmp_path, teacher="self", test_rows=0, max_tokens=4)
    result = run(base.replace(test_prompts=test_prompts, teacher_context=ContextConfig("Be brief.")))

    [record] = map(json.loads, (base.data / "test_answers.jsonl").read_text().splitlines())
    assert [message["content"] for message in record["messages"]] == [
        "Be brief.",
        "Trees are tall.\n\nCompare heights?",
    ]
    assert record["teacher"] == f"self:{tiny_student.name}"
    [answers] = result.report.answers
    assert answers.teacher and answers.teacher.text == record["answer"]


def test_a_prompt_missing_from_the_recording_is_a_warning(config: CompareConfig, tmp_path: Path) -> None:
    events: list[Event] = []
    short = recording(tmp_path / "short.jsonl", ["Compare heights."])
    result = run(config.replace(teacher=f"recorded:{short}"), events.append)
    assert shown(result) == ["Compare heights.", None]
    [warning] = result.report.warnings
    assert "no answer to 1 of 2 test prompts (pool: " in warning and Warning(warning) in events


@pytest.mark.parametrize(
    ("teacher", "says"),
    [
        ("anthropic:claude-sonnet-4-6", "ANTHROPIC_API_KEY"),
        ("recorded:nowhere.jsonl", "nowhere.jsonl: no such file"),
        ("oracle:delphi", "'oracle' is not one of"),
    ],
)
def test_trouble_with_the_teacher_is_only_a_warning(
    config: CompareConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, teacher: str, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    alone = run(config.replace(teacher=""))
    assert not (config.data / "test_answers.jsonl").exists()
    assert "| Teacher | left out |" in alone.markdown_file.read_text(encoding="utf-8")
    result = run(config.replace(teacher=teacher))
    [warning] = result.report.warnings
    assert says in warning and "--no-teacher" in warning
    assert result.report.tables["held_out"] == alone.report.tables["held_out"]
    assert [one.b.text for one in result.report.answers] == [one.b.text for one in alone.report.answers]
    assert shown(result) == [None, None]


def test_prompts_of_test_rows_have_the_teachers_answer(config: CompareConfig) -> None:
    result = run(config.replace(test_rows=4))
    asked, rows = result.report.answers[: len(PROMPTS)], result.report.answers[len(PROMPTS) :]
    assert {one.origin for one in asked} == {"test prompt"} and {one.origin for one in rows} == {"test row"}
    held = {question: (family, answer) for family, _, question, answer in ROWS}
    assert len({one.family for one in rows}) == 4  # as many families as there is room for
    for one in rows:
        assert one.teacher and one.teacher.n_tokens
        assert (one.family, one.teacher.text) == held[one.prompt]
    assert "6 prompts in 6 families; the teacher answered 6" in result.report.tables["completion"].note
    journal = (config.data / "test_answers.jsonl").read_text().splitlines()
    assert len(journal) == len(PROMPTS), "a row's answer is not bought again"
    assert shown(run(config.replace(test_rows=4, teacher=""))) == [None] * 6
