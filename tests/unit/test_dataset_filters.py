"""Each filter names what is wrong and leaves sound answers alone."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_distill.prepare.dedup import near_duplicates
from mlx_distill.prepare.filters import Duplicates, FilterConfig, broken_code, control_token, identity_phrase
from mlx_distill.records import build_messages
from tests.support.dataset_records import record


def test_the_first_python_block_that_does_not_parse_is_named() -> None:
    answer = "```python\nx = 1\n```\n```sql\nSELEC 1\n```\n```py\nx = (\n```\n"
    assert broken_code(answer).startswith("code block 3 (python), line 1: '(' was never closed")
    assert broken_code("```\nnot python at all (\n```") == ""


@pytest.mark.parametrize(
    "answer",
    [
        "As an AI language model, I cannot do this.",
        "Well, as an AI I would.",
        "I am Claude, and",
        "I'm an AI assistant",
        "I’m ChatGPT.",
        "I was made by Anthropic.",
    ],
)
def test_a_teacher_speaking_of_itself_is_noticed(answer: str) -> None:
    assert identity_phrase(answer)


@pytest.mark.parametrize(
    "answer",
    [
        "Think of it as an AI-powered search.",
        "I am sure that Claude Shannon wrote it.",
        "The api is built as an airtight box.",
        "Llama is a model; call it with a prompt.",
    ],
)
def test_talk_about_other_things_is_no_identity_phrase(answer: str) -> None:
    assert identity_phrase(answer) == ""


def test_a_control_token_is_found_in_any_message() -> None:
    tokens = ["<|im_end|>", "<|im_start|>"]
    messages = build_messages("What does <|im_end|> do?", "Be brief.")
    assert control_token(messages, tokens) == "the user message holds <|im_end|>"
    assert control_token(build_messages("What does |im_end| do?"), tokens) == ""


def test_a_prompt_is_a_duplicate_up_to_case_spaces_and_unicode_form() -> None:
    duplicates = Duplicates()
    assert duplicates.same_as(record("Explain a Café  queue.", "one", id="a")) == ""
    assert duplicates.same_as(record("explain a cafe\u0301 queue. ", "two", id="b", system="Be brief.")) == (
        "asks the same as a"
    )
    assert duplicates.same_as(record("Explain a café stack.", "one", id="c")) == ""


def test_a_text_with_one_word_changed_nearly_repeats_the_earlier_one() -> None:
    text = "A queue hands out what came first, a stack hands out what came last: so choose by the order you need."
    texts = [text, text.replace("choose", "pick"), text + " Done.", "Another text about queues and about stacks, too."]
    found = near_duplicates(texts, 0.7)
    assert set(found) == {1, 2}
    assert {each.of for each in found.values()} == {0}
    assert all(0.7 <= each.likeness < 1 for each in found.values())
    assert near_duplicates(texts, 1.0) == {}


def test_texts_of_a_word_or_two_have_no_runs_and_repeat_nothing() -> None:
    assert near_duplicates(["", "", "Yes.", "Yes.", "Yes, it is.", "Yes, it is."], 0.8).keys() == {5}


@settings(deadline=None)  # time is no part of what holds
@given(
    st.lists(st.lists(st.sampled_from("abcd"), max_size=12), max_size=12), st.sampled_from([0.3, 0.5, 0.7, 0.8, 1.0])
)
def test_what_is_found_is_what_comparing_every_pair_finds(words: list[list[str]], threshold: float) -> None:
    texts = [" ".join(each) for each in words]
    runs = [{tuple(each[at : at + 3]) for at in range(len(each) - 2)} for each in words]
    expected: dict[int, float] = {}
    for place, own in enumerate(runs):
        kept = [other for other in range(place) if other not in expected]
        likeness = max((len(own & runs[o]) / len(own | runs[o]) for o in kept if own | runs[o]), default=0.0)
        if own and likeness >= threshold:
            expected[place] = likeness
    found = near_duplicates(texts, threshold)
    assert {place: each.likeness for place, each in found.items()} == expected


def test_ten_thousand_texts_are_compared_in_seconds() -> None:
    dice = random.Random(0)
    texts = [" ".join(f"w{dice.randrange(2000)}" for _ in range(60)) for _ in range(10_000)]
    assert near_duplicates([*texts, texts[17] + " end"], 0.8)[10_000].of == 17


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"stop_reasons": ()}, "stop_reasons is empty"),
        ({"shortest_answer": 0}, "shortest_answer must be at least 1"),
        ({"shortest_answer": 5, "longest_answer": 4}, "longest_answer is 4, below"),
        ({"near_duplicate": 1.1}, "near_duplicate must be between 0 and 1"),
    ],
)
def test_a_gate_that_nothing_could_pass_is_refused(settings: dict[str, object], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        FilterConfig(**settings)  # type: ignore[arg-type]
