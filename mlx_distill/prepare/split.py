"""Assign whole families to splits: by the split that their prompts name, or by a hash of the family's name."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence

from mlx_distill.errors import InputError
from mlx_distill.prepare.config import Leak, PrepareConfig
from mlx_distill.prepare.rows import Row
from mlx_distill.prepare.select import CurrentPrompt
from mlx_distill.records import SPLITS, Split
from mlx_distill.similarity import OverlapIndex

_NEXT_STEP = (
    'Give the prompts of a few families "split": "valid" and "split": "test" in the prompts file and run '
    "`mlx-distill collect` (it buys no answer twice), or add prompts. A fraction of 0 leaves a split empty."
)


def named_splits(prompts: Iterable[CurrentPrompt]) -> dict[str, Split]:
    """Return the split of each family whose prompts name one. InputError if the prompts of a family disagree."""
    named: dict[str, dict[Split, str]] = {}
    for prompt in prompts:
        if prompt.split:
            named.setdefault(prompt.family, {}).setdefault(prompt.split, prompt.id)
    problems = [
        f"family {family}: " + ", ".join(f"{prompt_id} names {split}" for split, prompt_id in by_split.items())
        for family, by_split in named.items()
        if len(by_split) > 1
    ]
    if problems:
        raise InputError(
            "A family is held out as a whole, but its prompts name different splits.",
            'Give all prompts of a family the same "split", or give them different families.',
            problems,
        )
    return {family: next(iter(by_split)) for family, by_split in named.items()}


def assign_splits(
    families: Iterable[str], named: Mapping[str, Split], config: PrepareConfig, rejections: Sequence[str] = ()
) -> tuple[dict[str, Split], dict[str, Split]]:
    """Return the split of each family that has rows, and the families that moved out of train.

    A named split wins. Otherwise the family's hash position decides: below `test_fraction` it goes to test, below
    `test_fraction + valid_fraction` to valid, else to train. Therefore new families never move old ones. If test or
    valid stays empty, the train family with the lowest position moves there. InputError if a split is still empty; it
    lists the rejections.
    """
    fractions: dict[Split, float] = {"test": config.test_fraction, "valid": config.valid_fraction}
    positions: dict[str, float] = {}
    splits: dict[str, Split] = {}
    for family in dict.fromkeys(families):
        if family in named:
            splits[family] = named[family]
            continue
        position = positions[family] = hash_position(family, config.seed)
        held_out: Split = "test" if position < config.test_fraction else "valid"
        splits[family] = held_out if position < config.test_fraction + config.valid_fraction else "train"

    moved: dict[str, Split] = {}
    for split, fraction in fractions.items():
        if fraction == 0 or split in splits.values():
            continue
        movable = [family for family in positions if splits[family] == "train"]
        if movable and list(splits.values()).count("train") > 1:
            nearest = min(movable, key=lambda family: (positions[family], family))
            splits[nearest] = moved[nearest] = split
    empty = [split for split in SPLITS if split not in splits.values() and fractions.get(split, 1.0) > 0]
    if empty:
        raise InputError(
            f"No rows are left for {' and '.join(empty)}. Families with usable answers: {len(splits)}.",
            _NEXT_STEP,
            rejections,
        )
    return splits, moved


def hash_position(family: str, seed: int) -> float:
    """Return a number in [0, 1) that depends only on the family's name and the seed."""
    digest = hashlib.sha256(f"{seed}:{family}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:6], "big") / (1 << 48)


def find_leaks(train: Sequence[Row], held_out: Sequence[Row], threshold: float) -> list[Leak]:
    """Return the held-out prompts that a train prompt nearly repeats, each with the first such train prompt.

    The index forgets a prompt once it is found: otherwise prompts made from one template would take quadratic time.
    """
    index = OverlapIndex(((row.example.id, row.prompt_text) for row in held_out), threshold)
    return [
        Leak(match.key, row.example.id, round(match.similarity, 4))
        for row in train
        for match in index.find(row.prompt_text, remove=True)
    ]
