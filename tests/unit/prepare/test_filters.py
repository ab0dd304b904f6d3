"""Filters reject bad answers with a reason and keep good ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from mlx_distill.code_blocks import code_blocks
from mlx_distill.errors import InputError
from mlx_distill.models.load import load_tokenizer
from mlx_distill.models.tokenize import render
from mlx_distill.prepare import PrepareConfig
from mlx_distill.prepare.filters import IDENTITY_PHRASE, RowFilter, find_broken_code, protected_texts
from mlx_distill.records import TeacherRecord
from mlx_distill.storage.jsonl import read_jsonl
from mlx_distill.storage.package_data import package_data_path
from tests.support.teacher_records import record

TREE, POOL, QUERY, THREADS = (text for _, text in protected_texts(package_data_path("test_prompts.jsonl"))[:4])


@pytest.fixture
def row_filter(tmp_path: Path, tiny_student: Path) -> RowFilter:
    return RowFilter(PrepareConfig(data=tmp_path, model=tiny_student))


def keeps(row_filter: RowFilter, item: TeacherRecord) -> bool:
    row_filter.add(item)
    return bool(row_filter.rows) and row_filter.rows[-1].example.id == item.prompt_id


def reason_of(row_filter: RowFilter, item: TeacherRecord) -> tuple[str, str]:
    assert not keeps(row_filter, item)
    return row_filter.rejected[-1].reason, row_filter.rejected[-1].detail


def test_first_python_block_that_does_not_parse_is_named() -> None:
    answer = "```python\nx = 1\n```\n```sql\nSELEC 1\n```\n```py\nx = (\n```\n"
    assert find_broken_code(answer).startswith("code block 3 (python), line 1: '(' was never closed")
    assert find_broken_code("```\nnot python at all (\n```") == ""


@pytest.mark.parametrize(
    ("answer", "phrase"),
    [
        ("As an AI language model, I cannot do this.", "As an AI"),
        ("Well, as an AI I would.", "as an AI"),
        ("I am Claude, and", "I am Claude"),
        ("I'm an AI assistant", "I'm an AI"),
        ("I’m ChatGPT.", "I’m ChatGPT"),
        ("I was made by Anthropic.", "made by Anthropic"),
        ("Think of it as an AI-powered search.", ""),
        ("I am sure that Claude Shannon wrote it.", ""),
        ("The api is built as an airtight box.", ""),
        ("Llama is a model; call it with a prompt.", ""),
    ],
)
def test_identity_phrases_are_found_in_first_person_only(answer: str, phrase: str) -> None:
    found = IDENTITY_PHRASE.search(answer)
    assert (found.group() if found else "") == phrase


def test_control_token_is_found_in_any_message(row_filter: RowFilter) -> None:
    expected = ("control token", "the user message contains <|im_end|>")
    assert reason_of(row_filter, record("What does <|im_end|> do?")) == expected
    assert keeps(row_filter, record("What does |im_end| do?"))


def test_same_prompt_is_a_duplicate_whatever_its_form(row_filter: RowFilter) -> None:
    assert keeps(row_filter, record("Explain a Café  queue.", "one", id="a"))
    again = record("explain a cafe\u0301 queue. ", "two", id="b", system="Be brief.")
    assert reason_of(row_filter, again) == ("duplicate", "same prompt as a")
    assert keeps(row_filter, record("Explain a café stack.", "one", id="c"))


def test_first_of_near_duplicates_is_kept(row_filter: RowFilter) -> None:
    answer = "Use a deque: it appends and pops at both ends in constant time, where a list shifts all that follow."
    assert keeps(row_filter, record("How do I pop from the left of a list?", answer, id="first"))
    twin = record("How do I pop from the left side of a list?", f"{answer} Done.", id="second")
    assert reason_of(row_filter, twin) == ("near duplicate", "0.81 like first, dedup_threshold is 0.8")


def test_rejected_answer_does_not_exclude_its_duplicate(row_filter: RowFilter) -> None:
    broken = record("Add two numbers.", "```python\nadd(\n```", id="broken")
    assert reason_of(row_filter, broken)[0] == "code does not parse"
    assert keeps(row_filter, record("add two numbers.", "```python\nadd(1, 2)\n```", id="good"))


@pytest.mark.parametrize(
    "prompt",
    [
        TREE,
        TREE.upper().replace(".", " !"),
        TREE.replace("balanced", "symmetric"),
        f"I have an interview tomorrow. {POOL} Thanks in advance.",
        QUERY.replace("salary", "wage"),
        THREADS.replace("Explain", "Tell me").replace(", with", " with"),
    ],
)
def test_test_prompt_is_rejected_although_a_word_differs(row_filter: RowFilter, prompt: str) -> None:
    assert reason_of(row_filter, record(prompt))[0] == "contamination"


@pytest.mark.parametrize(
    "prompt",
    [
        "Write a Python function to check whether a string is a palindrome.",
        "Write a Python function to invert a binary tree.",
        "Implement an LRU cache in Python that several threads can share.",
        "Write a SQL query with window functions that ranks employees by salary within their department.",
        "Explain how to use streams in Java, with a short example.",
    ],
)
def test_other_task_in_the_same_words_is_kept(row_filter: RowFilter, prompt: str) -> None:
    assert keeps(row_filter, record(prompt))


def test_copy_of_a_known_answer_is_rejected_for_any_prompt(row_filter: RowFilter) -> None:
    answers = protected_texts(package_data_path("test_prompts.jsonl"))[4:]
    assert len(answers) == 4
    for test_id, answer in answers:
        assert code_blocks(answer)
        reason, detail = reason_of(row_filter, record("And the third one?", answer.replace("return", "yield")))
        assert reason == "contamination"
        assert detail.endswith(f"of {test_id}, contamination_threshold is 0.7")


def test_shipped_sample_is_far_from_the_test_prompts(row_filter: RowFilter) -> None:
    records = read_jsonl(package_data_path("sample") / "teacher_data.jsonl", TeacherRecord.from_json)
    assert all(keeps(row_filter, item) for item in records)
    assert row_filter.nearest is not None
    assert row_filter.nearest.likeness < 0.3  # 0.2 in the shipped sample; contamination begins at 0.7


def test_short_test_prompt_is_rejected_as_an_exact_match(tmp_path: Path, tiny_student: Path) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text('{"id": "q", "prompt": "Explain recursion"}\n')
    row_filter = RowFilter(PrepareConfig(data=tmp_path, model=tiny_student, test_prompts=file))
    assert reason_of(row_filter, record("explain  Recursion"))[0] == "contamination"
    assert keeps(row_filter, record("Explain recursion in SQL."))


def test_test_prompt_file_may_contain_answers(tmp_path: Path) -> None:
    answer = " ".join(f"word{number}" for number in range(30))
    file = tmp_path / "mine.jsonl"
    file.write_text(f'{{"id": "q", "prompt": "Sort this.", "answer": "{answer}"}}\n{{"id": "r", "prompt": "Add."}}\n')
    assert protected_texts(file) == [("q", "Sort this."), ("r", "Add."), ("q", answer)]
    file.write_text('{"prompt": "Sort this.", "answer": 3}\n')
    with pytest.raises(InputError, match=r'mine\.jsonl:1: "answer": expected str'):
        protected_texts(file)


@pytest.mark.parametrize(
    ("thinking", "answer", "learned"),
    [
        ("keep", "<think>\nHm.\n</think>\n\nUse a queue.", "<think>\nHm.\n</think>\n\nUse a queue.<|im_end|>"),
        ("drop", "Use a queue.", "Use a queue.<|im_end|>"),
        ("mask", "<think>\nHm.\n</think>\n\nUse a queue.", "Use a queue.<|im_end|>"),
    ],
)
def test_reasoning_is_kept_dropped_or_masked(
    tmp_path: Path, tiny_student: Path, thinking: Any, answer: str, learned: str
) -> None:
    row_filter = RowFilter(PrepareConfig(data=tmp_path, model=tiny_student, thinking=thinking))
    assert keeps(row_filter, record("What is first in, first out?", "<think>\nHm.\n</think>\n\nUse a queue."))
    assert keeps(row_filter, record("And last in, first out?", "Use a stack."))

    thought, plain = (row.example for row in row_filter.rows)
    assert (thought.messages[-1].content, thought.mask_thinking) == (answer, thinking == "mask")
    assert not plain.mask_thinking and row_filter.n_thoughts == 1
    tokenizer = load_tokenizer(tiny_student)
    chat = render(tokenizer, thought)
    assert tokenizer.decode([token for token, on in zip(chat.tokens, chat.mask, strict=True) if on]) == learned
    assert row_filter.rows[0].n_supervised == chat.n_supervised


@pytest.mark.parametrize("answer", ["<think>\nHm.\n</think>\n\n", "<think>\nHm, this never ends"])
def test_reasoning_without_an_answer_is_rejected(row_filter: RowFilter, answer: str) -> None:
    assert reason_of(row_filter, record("What is a queue?", answer))[0] == "no answer after the reasoning"


def test_samples_and_documents_make_rows_of_their_own(row_filter: RowFilter) -> None:
    first = record("Who lives here?", "Anna and Bert.", id="a")
    assert keeps(row_filter, first)
    assert reason_of(row_filter, structs.replace(first, prompt_id="b", answer="No one."))[0] == "duplicate"
    assert keeps(row_filter, structs.replace(first, prompt_id="a-s2", sample=1, answer="A family does."))
    asked = {"question": "Who lives here?", "context": "Cora's house."}
    other = structs.replace(first, prompt_id="c", answer="Cora alone.", **asked)
    assert keeps(row_filter, other)
    assert row_filter.rows[-1].example.context == "Cora's house."
    assert [message.content for message in row_filter.rows[-1].example.messages[1:]] == [
        "Who lives here?",
        "Cora alone.",
    ]
