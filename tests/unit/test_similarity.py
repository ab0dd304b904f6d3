"""Similar texts: matches are correct, and few are missed."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_distill.similarity import Match, NearDuplicateIndex, OverlapIndex, ngrams, normalize

SENTENCE = "A queue hands out what came first, a stack hands out what came last: choose by the order you need."
texts = st.lists(st.sampled_from("abcd"), max_size=12).map(" ".join)


def jaccard(one: str, other: str) -> float:
    return len(ngrams(one) & ngrams(other)) / max(len(ngrams(one) | ngrams(other)), 1)


@pytest.mark.parametrize(
    "text", ["explain a caf\u00e9 queue", " Explain  a Cafe\u0301\tqueue\n", "EXPLAIN A CAFÉ QUEUE"]
)
def test_normalize_ignores_case_spaces_and_unicode_form(text: str) -> None:
    assert normalize(text) == "explain a café queue"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Is it (really) so?", {"is it really", "it really so"}),
        ("my_tree[0].left", {"my_tree 0 left"}),
        ("Yes, two", {"yes two"}),
        ("二叉树吗", {"二 叉 树", "叉 树 吗"}),
        ("?!", set()),
    ],
)
def test_ngrams_are_runs_of_three_words(text: str, expected: set[str]) -> None:
    assert ngrams(text) == expected


def test_near_duplicate_with_one_changed_word_is_found() -> None:
    index = NearDuplicateIndex(0.6)
    for key in ("first", "second"):
        index.add(key, SENTENCE)
    index.add("no words", "?!")
    changed = SENTENCE.replace("choose", "pick")
    assert index.find(changed) == Match("first", jaccard(SENTENCE, changed))
    assert index.find("A text that has nothing to do with it.") is None
    assert index.find("?!") is None


@settings(deadline=None)  # the time does not matter
@given(st.lists(texts, max_size=12), texts, st.sampled_from([0.3, 0.5, 0.8, 1.0]))
def test_every_near_duplicate_has_its_exact_similarity(stored: list[str], text: str, threshold: float) -> None:
    index = NearDuplicateIndex(threshold)
    for number, other in enumerate(stored):
        index.add(str(number), other)
    match = index.find(text)
    if match:
        assert match.similarity == jaccard(text, stored[int(match.key)]) >= threshold
    if any(jaccard(text, other) == 1.0 for other in stored):
        assert match and match.similarity == 1.0


@pytest.mark.parametrize(("threshold", "n_words", "n_changed"), [(0.5, 60, 6), (0.8, 100, 3)])
def test_few_pairs_near_the_threshold_are_missed(threshold: float, n_words: int, n_changed: int) -> None:
    draw = random.Random(0)
    index = NearDuplicateIndex(threshold)
    n_found = 0
    for number in range(500):
        words = [f"w{draw.randrange(100_000)}" for _ in range(n_words)]
        changed = list(words)
        for step in range(n_changed):
            changed[(step + 1) * n_words // (n_changed + 1)] = "changed"
        assert threshold < jaccard(" ".join(words), " ".join(changed)) < threshold + 0.06
        index.add(str(number), " ".join(words))
        match = index.find(" ".join(changed))
        n_found += bool(match and match.key == str(number))
    assert n_found >= 0.99 * 500


@settings(deadline=None)
@given(st.lists(texts, max_size=8), texts, st.sampled_from([0.0, 0.3, 0.7, 1.0]))
def test_overlap_equals_the_comparison_with_every_text(protected: list[str], text: str, min_overlap: float) -> None:
    overlaps = [len(own & ngrams(text)) / max(len(own), 1) for own in map(ngrams, protected)]
    expected = [Match(str(n), overlap) for n, overlap in enumerate(overlaps) if overlap and overlap >= min_overlap]
    index = OverlapIndex(((str(number), own) for number, own in enumerate(protected)), min_overlap)
    assert index.find(text) == index.find(text, remove=True) == expected
    assert index.find(text) == []
