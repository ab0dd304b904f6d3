"""The teacher's terms: found where they are, told to be too few where there is too little text."""

from __future__ import annotations

import math
import random

from mlx_distill.comparison.answers import PromptAnswers, StudentAnswer
from mlx_distill.comparison.vocabulary import PRIOR_TERMS, log_odds, terms_of, vocabulary
from mlx_distill.records import Example, Message

COMMON = [f"w{letter * 2}" for letter in "abcdefghijklmnopqrst"]


def said(words: list[str], n: int, seed: int) -> str:
    rng = random.Random(seed)
    return "\n".join(" ".join(rng.choices(words, k=10)) for _ in range(n // 10))


def row(name: str, text: str) -> Example:
    return Example(name, name, "python", (Message("user", "?"), Message("assistant", text)))


def rows(words: list[str], n_families: int = 10) -> list[Example]:
    return [row(f"f{number}", said(words, 300, number)) for number in range(n_families)]


def answered(base: str, distilled: str) -> list[PromptAnswers]:
    first, second = (
        StudentAnswer(text, finished=True, n_tokens=9, tokens_per_second=9.0) for text in (base, distilled)
    )
    return [PromptAnswers("p", "python", "?", first, second, None)]


def test_a_term_of_the_teacher_alone_is_found_and_the_way_to_it_measured() -> None:
    habit, half = [*COMMON, *["contextmanager"] * 4], [*COMMON, *["contextmanager"] * 2]
    found = vocabulary(rows(habit), answered(said(COMMON, 2000, 1), said(half, 2000, 2)))
    assert found.too_little == ""
    assert found.terms[0].term == "contextmanager"
    assert found.terms[0].base == 0
    assert found.moved is not None
    assert 0.3 < found.moved < 0.8


def test_alike_texts_have_hardly_more_terms_than_chance() -> None:
    found = vocabulary(rows(COMMON), answered(said(COMMON, 2000, 1), said(COMMON, 2000, 2)))
    assert found.n_examined == len(COMMON)
    assert found.n_found <= 2


def test_too_little_text_is_told_plainly() -> None:
    found = vocabulary(rows([*COMMON, "contextmanager"]), answered("Few words.", "Few words."))
    assert "Too little text" in found.too_little
    assert "2 of base" in found.too_little
    assert found.terms == ()
    assert found.moved is None
    assert vocabulary((), answered("a", "b")).too_little


def test_a_word_of_one_subject_is_no_habit() -> None:
    taught = [*rows(COMMON), row("zoo", "\n".join(f"zebra {word}" for word in COMMON * 20))]
    found = vocabulary(taught, answered(said(COMMON, 2000, 1), said(COMMON, 2000, 2)))
    assert "zebra" not in {term.term for term in found.terms}


def test_terms_are_words_parts_of_names_and_signs_and_repeated_lines_count_once() -> None:
    text = "def read_lines() -> int:\ndef read_lines() -> int:\n"
    assert terms_of(text) == dict.fromkeys(("def", "read", "lines", "->", "int"), 1)


def test_log_odds_equal_the_formula_written_out() -> None:
    one, other, together = {"a": 8, "b": 2}, {"a": 1, "b": 9}, {"a": 9, "b": 11}
    prior = PRIOR_TERMS * 9 / 20
    left = (8 + prior) / (10 + PRIOR_TERMS - 8 - prior)
    right = (1 + prior) / (10 + PRIOR_TERMS - 1 - prior)
    expected = (math.log(left) - math.log(right)) / math.sqrt(1 / (8 + prior) + 1 / (1 + prior))
    assert math.isclose(log_odds(one, other, together, ["a"])["a"], expected)
