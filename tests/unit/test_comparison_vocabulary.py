"""The teacher's terms: found where they are, told to be too few where there is too little text."""

from __future__ import annotations

import math
import random
import statistics

from mlx_distill.compare.answers import PromptAnswers, StudentAnswer
from mlx_distill.compare.vocabulary import PRIOR_TERMS, log_odds, terms_of, vocabulary
from mlx_distill.compare.wording import vocabulary_line
from mlx_distill.records import Example, Message

COMMON = [f"w{letter * 2}" for letter in "abcdefghijklmnopqrst"]


def said(words: list[str], n: int, seed: int) -> str:
    rng = random.Random(seed)
    return "\n".join(" ".join(rng.choices(words, k=10)) for _ in range(n // 10))


def row(name: str, text: str) -> Example:
    return Example(name, name, "python", (Message("user", "?"), Message("assistant", text)))


def rows(words: list[str], n_families: int = 10) -> list[Example]:
    return [row(f"f{number}", said(words, 300, number)) for number in range(n_families)]


def answered(base: str, distilled: str, n_prompts: int = 4) -> list[PromptAnswers]:
    """The texts, cut into answers to some prompts."""

    def pieces(text: str) -> list[StudentAnswer]:
        lines = text.split("\n")
        parts = ("\n".join(lines[number::n_prompts]) for number in range(n_prompts))
        return [StudentAnswer(part, finished=True, n_tokens=9, tokens_per_second=9.0) for part in parts]

    pairs = zip(pieces(base), pieces(distilled), strict=True)
    return [PromptAnswers(f"p{n}", "python", "?", first, second, None) for n, (first, second) in enumerate(pairs)]


def test_a_term_of_the_teacher_alone_is_found_and_the_way_to_it_measured() -> None:
    habit, half = [*COMMON, *["contextmanager"] * 4], [*COMMON, *["contextmanager"] * 2]
    found = vocabulary(rows(habit), answered(said(COMMON, 2000, 1), said(half, 2000, 2)))
    assert found.terms[0].term == "contextmanager"
    assert found.terms[0].base == 0
    assert found.moved is not None
    assert 0.3 < found.moved < 0.8


def test_alike_texts_have_hardly_more_terms_than_chance() -> None:
    found = vocabulary(rows(COMMON), answered(said(COMMON, 2000, 1), said(COMMON, 2000, 2)))
    assert found.n_examined == len(COMMON)
    assert found.n_found <= 2


def test_how_rare_a_habit_may_be_to_be_found_is_told_and_falls_with_more_text() -> None:
    taught = rows([*COMMON, "contextmanager"])
    little = vocabulary(taught, answered(said(COMMON, 100, 1), said(COMMON, 100, 2)))
    much = vocabulary(taught, answered(said(COMMON, 3000, 1), said(COMMON, 3000, 2)))
    assert little.visible_rate is not None
    assert much.visible_rate is not None
    assert "contextmanager" not in {term.term for term in little.terms}
    rate = 1000 / (len(COMMON) + 1)
    assert much.visible_rate < rate < little.visible_rate
    assert "contextmanager" in {term.term for term in much.terms}
    names = {"base": "base", "distilled": "distilled"}
    assert "100 of base" in vocabulary_line(little, names)
    assert f"makes up {little.visible_rate:.0f} or more" in vocabulary_line(little, names)


def test_without_text_nothing_is_found_and_that_is_said() -> None:
    for found in (vocabulary((), answered("a", "b")), vocabulary(rows(COMMON), answered("", ""))):
        assert (found.terms, found.moved) == ((), None)
        assert "too little" in vocabulary_line(found, {"base": "base", "distilled": "distilled"})


def test_a_second_sample_of_base_has_not_moved() -> None:
    """What base lacks by chance chooses the terms; were they counted in the same answers, any others would move."""
    rare = [f"r{letter * 3}" for letter in "abcdefghijklmnopqrst"]
    ways = []
    for trial in range(20):
        taught = rows([*COMMON * 3, *rare], n_families=30)
        own, again = (said([*COMMON * 3, *rare], 800, 1000 * trial + number) for number in (100, 200))
        found = vocabulary(taught, answered(own, again, n_prompts=16))
        ways.append(found.distilled - found.base)
    assert abs(statistics.mean(ways)) < 2 * statistics.stdev(ways) / math.sqrt(len(ways))


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
