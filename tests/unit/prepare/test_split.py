"""Splits: families are held out as a whole, and they stay in their split."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_distill.errors import InputError
from mlx_distill.prepare import PrepareConfig
from mlx_distill.prepare.select import CurrentPrompt
from mlx_distill.prepare.split import assign_splits, hash_position, named_splits
from mlx_distill.records import SPLITS, Split

MANY = [f"family-{number}" for number in range(2000)]
Splits = dict[str, Split]


def assign(families: Iterable[str], named: Mapping[str, Split] | None = None, **settings: Any) -> tuple[Splits, Splits]:
    return assign_splits(families, named or {}, PrepareConfig(data=Path("data"), model=Path("model"), **settings))


def prompt(id: str, family: str, split: Split | None) -> CurrentPrompt:
    return CurrentPrompt("key", id, family, "general", split)


def test_family_takes_the_split_that_any_prompt_names() -> None:
    prompts = [prompt("a1", "a", None), prompt("a2", "a", "test"), prompt("b", "b", None), prompt("a3", "a", "test")]
    assert named_splits(prompts) == {"a": "test"}


def test_prompts_of_a_family_must_not_name_two_splits() -> None:
    prompts = [prompt("a1", "a", "train"), prompt("a2", "a", "test"), prompt("b1", "b", "valid")]
    with pytest.raises(InputError) as caught:
        named_splits([*prompts, prompt("b2", "b", "test")])
    assert caught.value.problems == (
        "family a: a1 names train, a2 names test",
        "family b: b1 names valid, b2 names test",
    )


def test_fractions_hold_over_many_families() -> None:
    splits = list(assign(MANY, test_fraction=0.2)[0].values())
    assert splits.count("valid") / len(MANY) == pytest.approx(0.1, abs=0.02)
    assert splits.count("test") / len(MANY) == pytest.approx(0.2, abs=0.02)


def test_new_prompts_move_no_family() -> None:
    before, moved = assign(MANY[:200])
    after, _ = assign(MANY)
    assert not moved
    assert {family: after[family] for family in MANY[:200]} == before


def test_position_of_a_family_is_the_same_in_every_release() -> None:
    assert hash_position("lru-cache", 0) == pytest.approx(0.948061682453865)
    assert hash_position("lru-cache", 1) != hash_position("lru-cache", 0)


def test_named_split_overrides_the_hash() -> None:
    splits, _ = assign(MANY[:200], dict.fromkeys(MANY[:50], "valid"))
    assert {splits[family] for family in MANY[:50]} == {"valid"}


@settings(max_examples=40, deadline=None)
@given(st.sets(st.text(min_size=1), min_size=3, max_size=30), st.integers(0, 5))
def test_three_families_fill_every_split(families: set[str], seed: int) -> None:
    positions = {family: hash_position(family, seed) for family in families}
    try:
        splits, moved = assign(sorted(families), seed=seed)
    except InputError:
        assert sum(position >= 0.2 for position in positions.values()) < 3  # the hash left too few for train
        return
    assert set(splits.values()) == set(SPLITS)
    assert set(splits) == families
    for family in families - set(moved):
        by_hash = "test" if positions[family] < 0.1 else "valid" if positions[family] < 0.2 else "train"
        assert splits[family] == by_hash


def test_too_few_families_are_refused_with_advice() -> None:
    with pytest.raises(InputError, match=r'(?s)valid\. Families with usable answers: 2\..*"split": "valid"'):
        assign(["a", "b"], {"a": "train", "b": "test"})


def test_fraction_of_zero_leaves_a_split_empty() -> None:
    assert set(assign(["a", "b"], valid_fraction=0.0, test_fraction=0.0)[0].values()) == {"train"}
