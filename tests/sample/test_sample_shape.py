"""Checks the embedded sample as a whole: its counts, its splits and the form that all answers share."""

import json
from collections import Counter, defaultdict
from typing import Any

import pytest

from tests.sample.answers import REPO, TEACHER_DATA

BASES, VARIATIONS = 32, 72
CATEGORIES = {"python": 42, "sql": 20, "java": 23, "concepts": 19}
CLOSINGS = ("Cost: ", "Why: ", "Watch out: ", "Rule of thumb: ")
PLEASANTRIES = ("sure", "here is", "here's", "certainly", "of course", "absolutely")

Record = dict[str, Any]


def read(path: Any) -> list[Record]:
    """The records of a file with one JSON object a line."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


PROMPTS = read(REPO / "data" / "prompts.jsonl")
ANSWERS = read(TEACHER_DATA)
TEXTS = {record["prompt_id"]: record["answer"] for record in ANSWERS}


def families() -> dict[str, list[Record]]:
    """The prompts of each family in the order of the file."""
    members = defaultdict(list)
    for prompt in PROMPTS:
        members[prompt["family"]].append(prompt)
    return members


def test_there_are_32_base_prompts_and_72_variations() -> None:
    bases = [prompt for prompt in PROMPTS if prompt["id"] == prompt["family"]]
    assert (len(bases), len(PROMPTS) - len(bases)) == (BASES, VARIATIONS)
    assert Counter(prompt["category"] for prompt in PROMPTS) == CATEGORIES


def test_every_prompt_has_exactly_one_answer() -> None:
    prompt_ids = [prompt["id"] for prompt in PROMPTS]
    assert len(set(prompt_ids)) == len(prompt_ids)
    assert sorted(record["prompt_id"] for record in ANSWERS) == sorted(prompt_ids)


def test_no_two_prompts_or_answers_have_the_same_text() -> None:
    assert len({prompt["prompt"] for prompt in PROMPTS}) == len(PROMPTS)
    assert len(set(TEXTS.values())) == len(ANSWERS)


def test_an_answer_repeats_its_prompts_fields_faithfully() -> None:
    prompts = {prompt["id"]: prompt for prompt in PROMPTS}
    for record in ANSWERS:
        prompt = prompts[record["prompt_id"]]
        assert [record[key] for key in ("family", "category", "split")] == [
            prompt[key] for key in ("family", "category", "split")
        ]


def test_a_family_is_one_base_prompt_followed_by_one_to_three_variations() -> None:
    for family, (base, *variations) in families().items():
        assert base["id"] == family
        assert 1 <= len(variations) <= 3
        assert all(prompt["id"].startswith(f"{family}-") for prompt in variations)


def test_a_family_lies_in_one_split_and_one_category() -> None:
    for members in families().values():
        assert len({(prompt["split"], prompt["category"]) for prompt in members}) == 1


@pytest.mark.parametrize("category", CATEGORIES)
def test_every_category_has_at_least_two_test_families_and_one_for_validation(category: str) -> None:
    splits = Counter(base["split"] for base, *_ in families().values() if base["category"] == category)
    assert set(splits) == {"train", "valid", "test"}
    assert splits["test"] >= 2


def test_no_long_line_appears_in_more_than_a_tenth_of_the_answers() -> None:
    answers_with = Counter(
        line for text in TEXTS.values() for line in set(map(str.strip, text.splitlines())) if len(line.split()) >= 6
    )
    [(line, count)] = answers_with.most_common(1)
    assert count <= len(ANSWERS) / 10, line


@pytest.mark.parametrize("prompt_id", TEXTS)
def test_an_answer_comes_straight_to_the_point_and_ends_complete(prompt_id: str) -> None:
    first, blank, *_, before_last, last = TEXTS[prompt_id].splitlines()
    assert not first.lower().startswith(PLEASANTRIES)
    assert first.endswith((".", ":"))
    assert blank == before_last == ""
    assert last.startswith(CLOSINGS)
    assert last.endswith(".")


@pytest.mark.parametrize("prompt_id", [record["prompt_id"] for record in ANSWERS if record["category"] != "concepts"])
def test_an_answer_with_code_has_exactly_one_closed_block_in_its_language(prompt_id: str) -> None:
    text = TEXTS[prompt_id]
    category = next(record["category"] for record in ANSWERS if record["prompt_id"] == prompt_id)
    fences = [line for line in text.splitlines() if line.startswith("```")]
    assert fences == [f"```{category}", "```"]
