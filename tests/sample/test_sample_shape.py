"""Checks the embedded sample as a whole: its counts, its splits and the form that all answers share."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from typing import Any

import pytest

from tests.conftest import REPOSITORY
from tests.sample.answers import records

CATEGORIES = {"python": 42, "sql": 20, "java": 23, "concepts": 19}
CLOSINGS = ("Cost: ", "Why: ", "Watch out: ", "Rule of thumb: ")
PLEASANTRIES = ("sure", "here is", "here's", "certainly", "of course", "absolutely")

PROMPTS: list[dict[str, Any]] = [
    json.loads(line) for line in (REPOSITORY / "data" / "prompts.jsonl").read_text(encoding="utf-8").splitlines()
]
TEXTS: dict[str, str] = {prompt_id: record["answer"] for prompt_id, record in records().items()}
FAMILIES: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
for prompt in PROMPTS:
    FAMILIES[prompt["family"]].append(prompt)


def test_there_are_32_base_prompts_and_72_variations() -> None:
    assert (len(FAMILIES), len(PROMPTS) - len(FAMILIES)) == (32, 72)
    assert Counter(prompt["category"] for prompt in PROMPTS) == CATEGORIES


def test_every_prompt_has_exactly_one_answer() -> None:
    lines = (REPOSITORY / "data" / "sample" / "teacher_data.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == len(TEXTS) == len(PROMPTS)
    assert sorted(TEXTS) == sorted(prompt["id"] for prompt in PROMPTS)


def test_no_two_prompts_or_answers_have_the_same_text() -> None:
    assert len({prompt["prompt"] for prompt in PROMPTS}) == len(PROMPTS)
    assert len(set(TEXTS.values())) == len(TEXTS)


def test_an_answer_repeats_the_fields_of_its_prompt() -> None:
    for prompt in PROMPTS:
        answer = records()[prompt["id"]]
        assert all(answer[key] == prompt[key] for key in ("family", "category", "split"))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_a_base_prompt_and_one_to_three_variations(family: str) -> None:
    base, *variations = FAMILIES[family]
    assert base["id"] == family
    assert 1 <= len(variations) <= 3
    for prompt in variations:
        assert prompt["id"].startswith(f"{family}-")
        assert (prompt["split"], prompt["category"]) == (base["split"], base["category"])


@pytest.mark.parametrize("category", CATEGORIES)
def test_every_category_has_families_in_each_split(category: str) -> None:
    splits = Counter(base["split"] for base, *_ in FAMILIES.values() if base["category"] == category)
    assert set(splits) == {"train", "valid", "test"}
    assert splits["test"] >= 2


def test_a_long_line_appears_in_at_most_a_tenth_of_the_answers() -> None:
    answers_with = Counter(
        line for text in TEXTS.values() for line in set(map(str.strip, text.splitlines())) if len(line.split()) >= 6
    )
    [(line, count)] = answers_with.most_common(1)
    assert count <= len(TEXTS) / 10, line


@pytest.mark.parametrize("prompt_id", TEXTS)
def test_an_answer_is_direct_and_complete(prompt_id: str) -> None:
    first, blank, *_, before_last, last = TEXTS[prompt_id].splitlines()
    assert not first.lower().startswith(PLEASANTRIES)
    assert first.endswith((".", ":"))
    assert blank == before_last == ""
    assert last.startswith(CLOSINGS) and last.endswith(".")


@pytest.mark.parametrize("prompt_id", TEXTS)
def test_an_answer_has_one_code_block_in_its_language(prompt_id: str) -> None:
    category = records()[prompt_id]["category"]
    fences = [line for line in TEXTS[prompt_id].splitlines() if line.startswith("```")]
    assert fences == ([] if category == "concepts" else [f"```{category}", "```"])
