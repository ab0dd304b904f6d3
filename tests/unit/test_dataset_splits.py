"""Families are held out whole, and those that are there stay where they are."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_distill.errors import InputError
from mlx_distill.prepare.select import Member
from mlx_distill.prepare.split import assign, named_splits, place
from mlx_distill.records import Split

MANY = [f"family-{number}" for number in range(2000)]


def test_a_family_takes_the_split_that_any_member_names() -> None:
    members = [Member("a1", "a", None), Member("a2", "a", "test"), Member("b", "b", None), Member("a3", "a", "test")]
    assert named_splits(members) == {"a": "test"}


def test_members_that_name_different_splits_are_an_error_that_names_them() -> None:
    members = [
        Member("a1", "a", "train"),
        Member("a2", "a", "test"),
        Member("b1", "b", "valid"),
        Member("b2", "b", "test"),
    ]
    with pytest.raises(InputError) as caught:
        named_splits(members)
    assert caught.value.problems == (
        "family a: a1 names train, a2 names test",
        "family b: b1 names valid, b2 names test",
    )


def test_shares_are_met_over_many_families() -> None:
    splits = list(assign(MANY, {}, valid_share=0.1, test_share=0.2, seed=0).splits.values())
    assert abs(splits.count("valid") / len(MANY) - 0.1) < 0.02
    assert abs(splits.count("test") / len(MANY) - 0.2) < 0.02


def test_adding_prompts_moves_no_family() -> None:
    before = assign(MANY[:200], {}, valid_share=0.1, test_share=0.1, seed=0)
    after = assign(MANY, {}, valid_share=0.1, test_share=0.1, seed=0)
    assert not before.moved
    assert {family: after.splits[family] for family in MANY[:200]} == before.splits


def test_the_place_of_a_family_never_changes_between_releases() -> None:
    assert place("lru-cache", 0) == pytest.approx(0.948061682453865)
    assert place("lru-cache", 1) != place("lru-cache", 0)


def test_a_named_split_wins_over_the_hash() -> None:
    everywhere: dict[str, Split] = dict.fromkeys(MANY[:50], "valid")
    splits = assign(MANY[:200], everywhere, valid_share=0.1, test_share=0.1, seed=0).splits
    assert {splits[family] for family in MANY[:50]} == {"valid"}


@settings(max_examples=40)
@given(st.sets(st.text(min_size=1), min_size=3, max_size=30), st.integers(0, 5))
def test_three_families_or_more_fill_every_split(families: set[str], seed: int) -> None:
    shares = {"valid_share": 0.1, "test_share": 0.1}
    try:
        assignment = assign(sorted(families), {}, **shares, seed=seed)
    except InputError:
        places = [place(family, seed) for family in families]
        assert sum(value >= 0.2 for value in places) < 3  # the hash itself left too few for train
        return
    assert set(assignment.splits.values()) == {"train", "valid", "test"}
    assert set(assignment.splits) == families
    unmoved = families - set(assignment.moved)
    by_hash = {f: "test" if place(f, seed) < 0.1 else "valid" if place(f, seed) < 0.2 else "train" for f in unmoved}
    assert {family: assignment.splits[family] for family in unmoved} == by_hash


def test_too_few_families_are_an_error_that_says_what_to_do() -> None:
    with pytest.raises(InputError, match=r'(?s)valid: families with usable answers: 2.*"split": "valid"'):
        assign(["a", "b"], {"a": "train", "b": "test"}, valid_share=0.1, test_share=0.1, seed=0)


def test_a_share_of_zero_does_without_that_split() -> None:
    assignment = assign(["a", "b"], {}, valid_share=0.0, test_share=0.0, seed=0)
    assert set(assignment.splits.values()) == {"train"}
