"""The teacher's terms: found if they are there, and not if there is too little text."""

from __future__ import annotations

import math
import random
import statistics

from mlx_distill.compare.metrics.vocabulary import (
    PRIOR_TERMS,
    count_terms,
    leave_one_out_rates,
    log_odds,
    vocabulary,
)
from mlx_distill.compare.table import Table
from mlx_distill.records import Example, Message
from tests.support.reports import make_answered, make_comparison

COMMON = [f"w{letter * 2}" for letter in "abcdefghijklmnopqrst"]
HABIT = [*COMMON, *["contextmanager"] * 4]


def write(words: list[str], n: int, seed: int) -> str:
    draw = random.Random(seed)
    return "\n".join(" ".join(draw.choices(words, k=10)) for _ in range(n // 10))


def make_row(name: str, text: str) -> Example:
    return Example(messages=(Message("user", "?"), Message("assistant", text)), id=name, family=name)


def make_rows(words: list[str], n_families: int = 10) -> list[Example]:
    return [make_row(f"f{number}", write(words, 300, number)) for number in range(n_families)]


def split(text: str, n_parts: int) -> list[str]:
    """The text, cut into answers to some prompts."""
    return ["\n".join(text.split("\n")[number::n_parts]) for number in range(n_parts)]


def find(rows: list[Example], a: str, b: str) -> Table | None:
    pairs = zip(split(a, 4), split(b, 4), strict=True)
    return vocabulary(make_comparison(train_rows=rows, answers=[make_answered(*pair) for pair in pairs]))


def test_a_term_of_the_teacher_is_found_with_the_way_to_it() -> None:
    half = [*COMMON, *["contextmanager"] * 2]
    table = find(make_rows(HABIT), write(COMMON, 2000, 1), write(half, 2000, 2))
    assert table
    assert next(iter(table.rows)) == "contextmanager"
    assert table.rows["contextmanager"][0].value == 0
    moved = float(table.finding.split("distilled moved ")[1].split(" %")[0])
    assert 30 < moved < 80


def test_equal_texts_have_hardly_more_terms_than_chance() -> None:
    table = find(make_rows(COMMON), write(COMMON, 2000, 1), write(COMMON, 2000, 2))
    assert table
    assert len(table.rows) <= 2
    assert f"of {len(COMMON)} terms that it uses" in table.note


def test_a_rare_habit_needs_more_text() -> None:
    rows = make_rows([*COMMON, "contextmanager"])
    little, much = (find(rows, write(COMMON, n, 1), write(COMMON, n, 2)) for n in (100, 3000))
    assert little and much
    assert "contextmanager" not in little.rows
    assert "contextmanager" in much.rows
    assert "100 of base" in little.note


def test_without_text_nothing_is_found() -> None:
    assert find([], "a", "b") is None
    table = find(make_rows(COMMON), "", "")
    assert table
    assert (table.rows, table.finding) == ({}, "")


def test_a_second_sample_of_the_same_model_has_not_moved() -> None:
    rare = [f"r{letter * 3}" for letter in "abcdefghijklmnopqrst"]
    words, ways = [*COMMON * 3, *rare], []
    for trial in range(20):
        teacher = count_terms("\n".join(row.messages[-1].content for row in make_rows(words, n_families=30)))
        a, b = ([count_terms(part) for part in split(write(words, 800, 1000 * trial + n), 16)] for n in (100, 200))
        rates = leave_one_out_rates(teacher, a, b, sorted(teacher))
        ways.append(rates[1] - rates[0])
    assert abs(statistics.mean(ways)) < 2 * statistics.stdev(ways) / math.sqrt(len(ways))


def test_a_word_of_one_subject_is_not_a_habit() -> None:
    zoo = make_row("zoo", "\n".join(f"zebra {word}" for word in COMMON * 20))
    table = find([*make_rows(COMMON), zoo], write(COMMON, 2000, 1), write(COMMON, 2000, 2))
    assert table
    assert "zebra" not in table.rows


def test_terms_are_words_parts_of_names_and_signs() -> None:
    text = "def read_lines() -> int:\ndef read_lines() -> int:\n"  # a repeated line counts once
    assert count_terms(text) == dict.fromkeys(("def", "read", "lines", "->", "int"), 1)


def test_log_odds_equal_the_formula_written_out() -> None:
    one, other, together = {"a": 8, "b": 2}, {"a": 1, "b": 9}, {"a": 9, "b": 11}
    prior = PRIOR_TERMS * 9 / 20
    left = (8 + prior) / (10 + PRIOR_TERMS - 8 - prior)
    right = (1 + prior) / (10 + PRIOR_TERMS - 1 - prior)
    expected = (math.log(left) - math.log(right)) / math.sqrt(1 / (8 + prior) + 1 / (1 + prior))
    assert math.isclose(log_odds(one, other, together, ["a"])["a"], expected)
