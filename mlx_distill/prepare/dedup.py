"""Rows that nearly repeat an earlier one: question and answer taken together, measured in shared runs of words.

The measure is the Jaccard index of the sets of word trigrams ("shingles", Broder 1997): shared by both, over held by
either. Comparing every pair would take hours for 100,000 rows, so only rows that share one of their rarest shingles are
compared: of two rows at least `threshold` alike one such must be shared (prefix filtering, Chaudhuri et al. 2006). What
is found is exact.
"""

from __future__ import annotations

import math
import re
from array import array
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

WORDS = 3
"""Words in a run: two texts on one subject share words and pairs of them, but few runs of three."""
BUCKETS = 1 << 20
"""How often runs occur is counted by hash in so many numbers: any order finds the same, a rough one nearly as fast."""


@dataclass(frozen=True)
class NearDuplicate:
    """Which earlier text a text nearly repeats."""

    of: int
    """The earlier one's place."""
    likeness: float


def near_duplicates(texts: Sequence[str], threshold: float) -> dict[int, NearDuplicate]:
    """The places of the texts that are at least `threshold` (above 0, at most 1) like an earlier one that is kept."""
    shingles = [_shingles(text) for text in texts]
    counts = array("q", bytes(8 * BUCKETS))
    for run in (run for runs in shingles for run in runs):
        counts[run % BUCKETS] += 1
    holders: dict[int, list[int]] = defaultdict(list)
    found: dict[int, NearDuplicate] = {}
    for place, runs in enumerate(shingles):
        n_rare = len(runs) - math.ceil(threshold * len(runs) - 1e-9) + 1
        rare = sorted(runs, key=lambda run: (counts[run % BUCKETS], run))[:n_rare]
        candidates = {other for run in rare for other in holders.get(run, ())}
        own = set(runs)
        alike = [(_jaccard(own, shingles[other]), -other) for other in candidates]
        likeness, other = max(alike, default=(0.0, 0))
        if candidates and likeness >= threshold:
            found[place] = NearDuplicate(-other, likeness)
            continue
        for run in rare:
            holders[run].append(place)
    return found


def _shingles(text: str) -> array[int]:
    """Each run of words and signs once, as its hash: of integers only, and so the same in every process."""
    words = [_number(word) for word in re.findall(r"\w+|[^\w\s]", text.casefold())]
    return array("q", {hash(tuple(words[at : at + WORDS])) for at in range(len(words) - WORDS + 1)})


def _number(word: str) -> int:
    return int.from_bytes(word.encode("utf-8", "surrogatepass"), "big") % ((1 << 61) - 1)


def _jaccard(one: set[int], other: array[int]) -> float:
    shared = len(one.intersection(other))
    return shared / (len(one) + len(other) - shared)
