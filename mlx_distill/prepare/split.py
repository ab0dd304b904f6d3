"""Which families are held out: whole families only, by the split they name or by a hash of their name."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from mlx_distill.errors import InputError
from mlx_distill.prepare.select import Member
from mlx_distill.records import SPLITS, Split

_NAME_SPLITS = (
    'Give the prompts of a few families "split": "valid" and "split": "test" in the prompts file and run '
    "`mlx-distill collect` (nothing is bought again), or add prompts. A share of 0 does without that split."
)


@dataclass(frozen=True)
class Assignment:
    """Where each family goes."""

    splits: Mapping[str, Split]
    moved: Mapping[str, Split]
    """Families that the hash sent to train and that were held out all the same, because a split had no row."""


def named_splits(members: Iterable[Member]) -> dict[str, Split]:
    """The split that each family names through its members; InputError where members of one name different ones."""
    named: dict[str, dict[Split, str]] = {}
    for member in members:
        if member.split:
            named.setdefault(member.family, {}).setdefault(member.split, member.id)
    torn = {family: by_split for family, by_split in named.items() if len(by_split) > 1}
    if torn:
        problems = [
            f"family {family}: " + ", ".join(f"{prompt_id} names {split}" for split, prompt_id in by_split.items())
            for family, by_split in torn.items()
        ]
        raise InputError(
            "A family is held out as a whole, but members name different splits.",
            'Give all prompts of a family the same "split", or give them families of their own.',
            problems,
        )
    return {family: next(iter(by_split)) for family, by_split in named.items()}


def assign(
    families: Iterable[str], named: Mapping[str, Split], *, valid_share: float, test_share: float, seed: int
) -> Assignment:
    """Give each family that has rows its split.

    A family's own split wins. Otherwise its place in [0, 1), a hash of seed and name, decides: below `test_share` it
    is test, below `test_share + valid_share` valid, else train; so the families that are there do not move when
    others arrive. Where the hash leaves test or valid without a family, the unnamed train family nearest to it is
    moved there. Raises InputError where a split that was asked for would still be empty.
    """
    unnamed: dict[str, float] = {}
    splits: dict[str, Split] = {}
    for family in families:
        if family in named:
            splits[family] = named[family]
        elif family not in unnamed:
            unnamed[family] = place(family, seed)
            splits[family] = _by_place(unnamed[family], valid_share, test_share)

    shares: dict[Split, float] = {"test": test_share, "valid": valid_share}
    moved: dict[str, Split] = {}
    for split, share in shares.items():
        if share == 0 or split in splits.values():
            continue
        movable = [family for family in unnamed if splits[family] == "train"]
        if movable and list(splits.values()).count("train") > 1:
            nearest = min(movable, key=lambda family: (unnamed[family], family))
            splits[nearest] = moved[nearest] = split
    missing = [split for split in SPLITS if split not in splits.values() and shares.get(split, 1.0) > 0]
    if missing:
        raise InputError(
            f"No row is left for {' and '.join(missing)}: families with usable answers: {len(splits)}.", _NAME_SPLITS
        )
    return Assignment(splits, moved)


def place(family: str, seed: int) -> float:
    """A number in [0, 1) that depends on the family's name and the seed alone."""
    digest = hashlib.sha256(f"{seed}:{family}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:6], "big") / (1 << 48)


def _by_place(value: float, valid_share: float, test_share: float) -> Split:
    if value < test_share:
        return "test"
    return "valid" if value < test_share + valid_share else "train"
