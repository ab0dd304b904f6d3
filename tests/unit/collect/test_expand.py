"""expand: variations of base prompts, asked once, parsed, without near copies, into a larger prompt file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mlx_distill.cli import main
from mlx_distill.collect.expand import ExpandConfig, ExpandResult, parse_variations, run
from mlx_distill.collect.prompts import read_prompts
from mlx_distill.errors import InputError, TeacherError
from mlx_distill.records import TeacherRecord, build_messages

QUEUE = {"id": "queue", "prompt": "Write a queue in Python.", "category": "python", "split": "train"}
OLD = {"id": "queue-v1", "prompt": "A ring buffer for the last ten readings?", "family": "queue", "category": "python"}
JOIN = {"id": "join", "prompt": "How do I join two tables?", "category": "sql"}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    rows = [QUEUE, OLD, JOIN]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def teach(folder: Path, answers: dict[str, str], n: int = 3, stop_reason: str = "end_turn") -> None:
    """Record what the teacher says when it is asked for variations of a prompt."""
    rows = [
        {
            "messages": [{"role": "user", "content": f"Write {n} variations of this prompt:\n\n{prompt}"}],
            "answer": answer,
            "stop_reason": stop_reason,
        }
        for prompt, answer in answers.items()
    ]
    (folder / "teacher.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def expand(folder: Path, **settings: Any) -> ExpandResult:
    return run(
        ExpandConfig(
            data=folder / "data",
            teacher=f"recorded:{folder / 'teacher.jsonl'}",
            prompts=folder / "prompts.jsonl",
            **settings,
        )
    )


VARIATIONS = {
    str(QUEUE["prompt"]): '["A queue that two threads share?", "Jobs with priorities?", "Undo in an editor?"]',
    str(
        JOIN["prompt"]
    ): 'Here:\n```json\n["Orders without a customer?", "Latest price of each item?", "Self joins?"]\n```',
}


def test_variations_join_their_base_in_family_category_and_split(project: Path) -> None:
    teach(project, VARIATIONS)
    result = expand(project)
    assert (result.n_bases, result.n_variations, result.n_prompts) == (2, 6, 9)
    assert result.path == project / "prompts.expanded.jsonl"
    prompts = read_prompts(result.path)
    assert [prompt.id for prompt in prompts] == [
        "queue",
        "queue-v1",
        "queue-v2",
        "queue-v3",
        "queue-v4",
        "join",
        "join-v1",
        "join-v2",
        "join-v3",
    ]
    new = prompts[2]
    assert (new.text, new.family, new.category, new.split) == (
        "A queue that two threads share?",
        "queue",
        "python",
        "train",
    )


def test_a_rerun_asks_nothing_and_writes_the_same_file(project: Path) -> None:
    teach(project, VARIATIONS)
    before = expand(project).path.read_bytes()
    (project / "teacher.jsonl").unlink()
    assert expand(project).path.read_bytes() == before
    assert len((project / "data" / "expand.jsonl").read_text().splitlines()) == 2


def test_output_may_be_the_prompt_file(project: Path) -> None:
    teach(project, VARIATIONS)
    out = project / "prompts.jsonl"
    expand(project, out=out)
    before = out.read_bytes()
    result = expand(project, out=out)
    assert (result.n_variations, result.n_near_copies) == (0, 6)
    assert out.read_bytes() == before


def test_near_copies_of_any_prompt_are_left_out(project: Path) -> None:
    copies = [
        "write a QUEUE in python",
        "Write a queue in Python, please.",
        "How do I join two tables",
        "A heap of jobs?",
    ]
    teach(project, {str(QUEUE["prompt"]): json.dumps(copies), str(JOIN["prompt"]): '["A heap of jobs!"]'})
    result = expand(project)
    assert (result.n_variations, result.n_near_copies) == (1, 4)
    assert [prompt.text for prompt in read_prompts(result.path) if prompt.id == "queue-v2"] == ["A heap of jobs?"]


def test_base_without_variations_is_named(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    teach(project, {str(QUEUE["prompt"]): "I would rather not.", str(JOIN["prompt"]): VARIATIONS[str(JOIN["prompt"])]})
    teacher, prompts = f"recorded:{project / 'teacher.jsonl'}", str(project / "prompts.jsonl")
    with pytest.raises(SystemExit) as ended:
        main(["expand", "--teacher", teacher, "--prompts", prompts, "--data", str(project / "data")])
    printed = capsys.readouterr()
    assert ended.value.code == 1
    assert "3 variations of 2 base prompts" in printed.out
    new = project / "prompts.expanded.jsonl"
    assert f"mlx-distill collect --prompts {new} --teacher {teacher} --out {project / 'data'}" in printed.out
    assert "3 of 6 variations were taken." in printed.err
    assert "queue: its answer contains no JSON list" in printed.err


def test_nothing_is_written_where_no_base_got_variations(project: Path) -> None:
    teach(project, VARIATIONS, stop_reason="max_tokens")
    with pytest.raises(TeacherError, match="gave no variations") as raised:
        expand(project)
    assert raised.value.problems[0] == "queue: its answer is not complete (max_tokens)"
    assert not (project / "prompts.expanded.jsonl").exists()


def test_a_file_of_variations_only_cannot_be_expanded(project: Path) -> None:
    (project / "prompts.jsonl").write_text(json.dumps(OLD))
    with pytest.raises(InputError, match="no base prompt"):
        expand(project)


def said(text: str) -> TeacherRecord:
    return TeacherRecord(messages=build_messages("Vary."), answer=text)


@pytest.mark.parametrize(
    ("text", "texts"),
    [
        ('["a", " b "]', ["a", "b"]),
        ('Sure:\n```json\n["a [1]", "b"]\n```\nDone.', ["a [1]", "b"]),
        ('["a", 3, "", null]', ["a"]),
    ],
)
def test_a_json_list_is_found_in_an_answer(text: str, texts: list[str]) -> None:
    assert parse_variations(said(text)) == texts


@pytest.mark.parametrize("text", ["1. a\n2. b", '["a", ', "[]", "[1]", "] ["])
def test_an_answer_without_a_list_of_texts_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="its answer contains no"):
        parse_variations(said(text))


@pytest.mark.parametrize("n", [0, 51])
def test_the_number_of_variations_has_bounds(tmp_path: Path, n: int) -> None:
    with pytest.raises(ValueError, match="variations"):
        ExpandConfig(data=tmp_path, teacher="recorded:sample", variations=n)


def test_half_a_character_is_no_variation() -> None:
    assert parse_variations(said('["Whole", "half \\ud83d"]')) == ["Whole"]


def test_no_more_variations_are_taken_than_were_asked_for(project: Path) -> None:
    many = ["A heap of jobs?", "Sort a list in place.", "Write a queue in Python.", "Read a file line by line."]
    teach(project, {str(QUEUE["prompt"]): json.dumps(many), str(JOIN["prompt"]): '["Group rows by month."]'}, n=2)
    assert expand(project, variations=2).n_variations == 3
