"""Prompt files: what they may hold, and that every fault is named at once."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from mlx_distill.collect.prompts import read_prompts
from mlx_distill.errors import InputError, MissingError
from mlx_distill.records import Prompt
from mlx_distill.storage.package_data import package_data_path


def prompt_file(folder: Path, *rows: Any, name: str = "prompts.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def faults(path: Path) -> list[str]:
    with pytest.raises(InputError) as raised:
        read_prompts(path)
    return list(raised.value.problems)


def test_a_prompt_needs_nothing_but_its_text(tmp_path: Path) -> None:
    [prompt] = read_prompts(prompt_file(tmp_path, {"prompt": "What is a queue?"}))
    assert (prompt.text, prompt.family, prompt.category, prompt.split) == (
        "What is a queue?",
        prompt.id,
        "general",
        None,
    )
    assert prompt.id == "what-is-a-queue-6a648321d52c"
    long = {"prompt": "Explain the very long word Donaudampfschifffahrtsgesellschaft and others. 日本語"}
    assert read_prompts(prompt_file(tmp_path, long))[0].id.startswith("explain-the-very-long-word-")


def test_variations_join_family_split_and_category(tmp_path: Path) -> None:
    base = {"id": "queue", "prompt": "Queue?", "category": "python", "split": "valid"}
    variations = ["Two queues?", {"prompt": "A queue in Java?", "id": "queue-java", "category": "java"}, "Three?"]
    prompts = read_prompts(prompt_file(tmp_path, {**base, "variations": variations}, {"id": "b", "prompt": "B"}))
    assert prompts == [
        Prompt("Queue?", "queue", "queue", "python", "valid"),
        Prompt("Two queues?", "queue-v1", "queue", "python", "valid"),
        Prompt("A queue in Java?", "queue-java", "queue", "java", "valid"),
        Prompt("Three?", "queue-v3", "queue", "python", "valid"),
        Prompt("B", "b", "b", "general", None),
    ]


def test_a_split_named_once_holds_for_the_whole_family(tmp_path: Path) -> None:
    rows = [{"id": "a", "prompt": "A"}, {"id": "a2", "prompt": "A2", "family": "a", "split": "test"}]
    assert [prompt.split for prompt in read_prompts(prompt_file(tmp_path, *rows))] == ["test", "test"]


def test_plain_text_holds_one_prompt_a_line(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes("\ufeffWas ist 你好?\r\n\r\n  # not a comment \n".encode())
    first, second = read_prompts(path)
    assert (first.text, second.text) == ("Was ist 你好?", "# not a comment")
    assert first.id != second.id


def test_the_same_line_has_the_same_id_wherever_it_stands(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("One\nTwo\n")
    before = {prompt.text: prompt.id for prompt in read_prompts(path)}
    path.write_text("Zero\nTwo\nOne\n")
    after = {prompt.text: prompt.id for prompt in read_prompts(path)}
    assert before.items() <= after.items()


def test_all_faults_of_a_file_are_named_with_their_lines(tmp_path: Path) -> None:
    path = prompt_file(
        tmp_path,
        {"id": "a", "prompt": "A"},
        {"id": "b"},
        {"id": "c", "prompt": "  "},
        ["prompt"],
        {"id": "a", "prompt": "Another"},
        {"id": "d", "prompt": "D", "split": "dev"},
        {"id": "e", "prompt": "E", "variations": "text"},
        {"id": "f", "prompt": "F", "variations": ["", {"text": "G"}, 3, {"prompt": "H", "family": "other"}]},
        {"id": "g", "prompt": "G", "family": "g", "split": "train", "variations": ["G1"]},
        {"id": "h", "prompt": "H", "family": "g", "split": "test"},
        {"id": "g-v1", "prompt": "taken"},
        {"id": 7, "prompt": "H"},
    )
    with path.open("a") as file:
        file.write('{"prompt": \n')
    found = faults(path)
    expected = [
        (2, '"prompt" is missing'),
        (3, '"prompt" is empty'),
        (4, "expected object"),
        (5, "the id 'a' is already in use"),
        (6, '"split"'),
        (7, '"variations" must be a list'),
        (8, 'variation 1: "prompt" is empty; variation 2: "prompt" is missing; variation 3: it must be'),
        (10, "the family 'g' is in test here and in train above"),
        (11, "the id 'g-v1' is already in use"),
        (12, '"id": expected str'),
        (13, "not valid JSON"),
    ]
    assert len(found) == len(expected)
    for problem, (line, said) in zip(found, expected, strict=True):
        assert problem.startswith(f"prompts.jsonl:{line}: ")
        assert said in problem
    assert "variation 4: its family is 'other', its base's is 'f'" in found[6]


def test_a_repeated_line_of_plain_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("One\nTwo\nOne\n")
    assert faults(path) == ["prompts.txt:3: repeats line 1"]


@pytest.mark.parametrize("name", ["prompts.jsonl", "prompts.txt"])
def test_a_file_without_a_prompt_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("\n  \n")
    with pytest.raises(InputError, match="no prompt in this file"):
        read_prompts(tmp_path / name)


def test_a_missing_file_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(MissingError) as raised:
        read_prompts(tmp_path / "none.jsonl")
    assert "mlx-distill init" in raised.value.next_step


def test_the_shipped_prompts_are_read_whole() -> None:
    prompts = read_prompts(package_data_path("prompts.jsonl"))
    assert len(prompts) == 104
    assert sum(prompt.id == prompt.family for prompt in prompts) == 32
    assert {prompt.split for prompt in prompts} == {"train", "valid", "test"}


def test_a_misspelt_field_is_refused_with_the_one_that_was_meant(tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text('{"prompt": "a", "familiy": "x"}\n{"prompt": "b", "note": "a field of one\'s own"}\n')
    with pytest.raises(InputError) as error:
        read_prompts(file)
    assert error.value.problems == ("p.jsonl:1: unknown field 'familiy'; did you mean 'family'?",)


def test_json_lines_under_a_plain_files_name_are_no_prompts(tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_text('Explain {"a": 1}.\n{not json}\n{"prompt": "Explain queues.", "category": "python"}\n')
    with pytest.raises(InputError, match=r"mine\.txt:3: this line is a JSON object") as raised:
        read_prompts(file)
    assert raised.value.next_step == "If it contains JSON lines, rename it to mine.jsonl."
    file.write_text('Explain {"a": 1}.\n{not json}\n')
    assert [prompt.text for prompt in read_prompts(file)] == ['Explain {"a": 1}.', "{not json}"]


def test_half_a_character_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "Fine"}\n{"prompt": "What is \\ud83d?"}\n{"prompt": "Why?", "id": "\\udc00"}\n')
    problems = faults(path)
    assert [problem.split(":")[1] for problem in problems] == ["2", "3"]
    assert all("half of a character" in problem for problem in problems)


def test_a_very_long_prompt_is_named_in_no_time(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("a word and another " * 50_000)
    began = time.process_time()
    assert read_prompts(path)[0].id.startswith("a-word-and-another-a-word-and-")
    assert time.process_time() - began < 2.0
