"""Compare texts by word trigrams: near-duplicates (MinHash), and overlap with protected texts (contamination).

Different texts about one subject share words and word pairs, but few trigrams. Case and punctuation do not count.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from rensa import RMinHash, RMinHashLSH

NGRAM_WORDS = 3
REPETITION_ITEMS = 4
"""Words or tokens of a phrase that counts as repeated."""
MAX_CANDIDATES = 100
"""Only the newest 100 candidates are compared exactly. This bounds the time for rows made from one template."""
BAND_MATCH, MAX_MISSED = 0.3, 0.01
"""Probabilities that one band agrees, and that the pair is missed, for a pair exactly at the threshold."""

_CJK = "\u3040-\u30ff\u3400-\u9fff"
_WORD = re.compile(f"[{_CJK}]|[^\\W{_CJK}]+")
"""A word. Each Chinese or Japanese character is a word, because no spaces separate them."""


def normalize(text: str) -> str:
    """Return the text for an exact match: NFKC, case folded, runs of white space as one space."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


@lru_cache(maxsize=512)
def ngrams(text: str) -> frozenset[str]:
    """Return the set of word trigrams. A text of one or two words is one n-gram; a text without words has none."""
    words = _WORD.findall(normalize(text))
    n_runs = max(len(words) - NGRAM_WORDS + 1, min(len(words), 1))
    return frozenset(" ".join(words[start : start + NGRAM_WORDS]) for start in range(n_runs))


def repetition(items: Sequence[Hashable]) -> float:
    """Return the fraction of a sequence's 4-grams that occur earlier in it; 0 for a shorter one."""
    found = [tuple(items[start : start + REPETITION_ITEMS]) for start in range(len(items) - REPETITION_ITEMS + 1)]
    return 1 - len(set(found)) / len(found) if found else 0.0


@dataclass(frozen=True)
class Match:
    """A stored text that is similar to the given text."""

    key: str
    similarity: float
    """From 0 to 1: the Jaccard index or the overlap."""


class NearDuplicateIndex:
    """Finds the stored text that is most similar to a text, if their similarity reaches the threshold.

    The measure is the Jaccard index: trigrams in both texts, divided by trigrams in either. Seeded MinHash signatures
    in bands give the candidates (Leskovec, Rajaraman, Ullman, "Mining of Massive Datasets", 3.4), and the exact index
    decides: each match is correct, and about MAX_MISSED of the pairs at the threshold are missed, far fewer above it.
    """

    def __init__(self, threshold: float) -> None:
        """Build an empty index. `threshold` is above 0 and at most 1."""
        self.threshold = threshold
        similarity = min(threshold, 0.99)  # the logarithms have no value for 1
        n_rows = min(max(round(math.log(BAND_MATCH) / math.log(similarity)), 1), 16)
        n_bands = math.ceil(math.log(MAX_MISSED) / math.log(1 - similarity**n_rows))
        self._n_hashes = n_bands * n_rows
        self._bands = RMinHashLSH(threshold, self._n_hashes, n_bands)
        self._stored: list[tuple[str, str]] = []

    def find(self, text: str) -> Match | None:
        """Return the most similar stored text (the first of equally similar ones), or None."""
        own = ngrams(text)
        candidates = sorted(self._bands.query(self._signature(own)))[-MAX_CANDIDATES:] if own else []
        best = None
        for key, other in (self._stored[position] for position in candidates):
            n_shared = len(own & ngrams(other))
            similarity = n_shared / (len(own) + len(ngrams(other)) - n_shared)
            if similarity >= self.threshold and (best is None or similarity > best.similarity):
                best = Match(key, similarity)
        return best

    def add(self, key: str, text: str) -> None:
        """Store a text. A text without words is never found."""
        if ngrams(text):
            self._bands.insert(len(self._stored), self._signature(ngrams(text)))
            self._stored.append((key, text))

    def _signature(self, own: frozenset[str]) -> RMinHash:
        return RMinHash.from_token_sets([own], self._n_hashes, seed=0)[0]


class OverlapIndex:
    """Finds the protected texts that a text repeats, in whole or in part: the measure of contamination.

    The overlap is the share of the protected text's trigrams that the other text contains, however long that is. PaLM
    (Chowdhery et al. 2022) calls a test item contaminated from 70 % of its 8-grams; prompts of 10 to 20 words need
    trigrams, because one changed word destroys most 8-grams of a text so short. The result is exact.
    """

    def __init__(self, texts: Iterable[tuple[str, str]], min_overlap: float = 0.0) -> None:
        """Store (key, text) pairs."""
        self.min_overlap = min_overlap
        self._stored = [(key, ngrams(text)) for key, text in texts]
        n_texts = Counter(ngram for _, own in self._stored for ngram in own)
        self._positions: dict[str, set[int]] = defaultdict(set)
        """The stored texts that each indexed trigram finds."""
        for position, (_, own) in enumerate(self._stored):
            # A match misses at most `n_missed` trigrams of the text, so one of any n_missed + 1 finds it. The rarest
            # ones find the fewest other texts.
            n_missed = math.floor((1 - min_overlap) * len(own) + 1e-9)
            rarest_first = sorted(own, key=lambda ngram: (n_texts[ngram], ngram))
            for ngram in rarest_first[: n_missed + 1]:
                self._positions[ngram].add(position)

    def find(self, text: str, *, remove: bool = False) -> list[Match]:
        """Return the protected texts whose overlap is above 0 and at least `min_overlap`. `remove` forgets them."""
        found = ngrams(text)
        matches = []
        for position in sorted(set().union(*(self._positions[ngram] for ngram in found & self._positions.keys()))):
            key, own = self._stored[position]
            overlap = len(own & found) / len(own)
            if overlap >= self.min_overlap:
                matches.append(Match(key, overlap))
                if remove:
                    for ngram in own & self._positions.keys():
                        self._positions[ngram].discard(position)
        return matches
