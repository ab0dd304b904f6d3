"""Similarity of texts in word trigrams: near-duplicates by MinHash, and overlap with protected texts.

Word trigrams ("shingles") are the usual compromise: different texts on one subject share words and word pairs, but few
runs of three words. Case, punctuation and the Unicode form do not count.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

from rensa import RMinHash, RMinHashLSH

NGRAM_WORDS = 3
MAX_CANDIDATES = 100
"""Verify at most this many candidates (the newest) of a text, so that rows made from one template stay cheap."""
BAND_MATCH = 0.3
"""Aim for this probability that a pair at the threshold agrees in one band. Higher values give more candidates."""
MAX_MISSED = 0.01
"""Maximum probability that MinHash misses a pair exactly at the threshold. It falls fast above the threshold."""

_CJK = "\u3040-\u30ff\u3400-\u9fff"
_WORD = re.compile(f"[{_CJK}]|[^\\W{_CJK}]+")
"""A word; each Chinese or Japanese character is a word, because no spaces separate them."""


def normalize(text: str) -> str:
    """Return the text for an exact match: NFKC, case folded, runs of white space as one space."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


@lru_cache(maxsize=512)
def ngrams(text: str) -> frozenset[str]:
    """Return the set of word trigrams. A text of one or two words is one n-gram; a text without words has none."""
    words = _WORD.findall(unicodedata.normalize("NFKC", text).casefold())
    if 0 < len(words) < NGRAM_WORDS:
        return frozenset([" ".join(words)])
    return frozenset(" ".join(words[start : start + NGRAM_WORDS]) for start in range(len(words) - NGRAM_WORDS + 1))


@dataclass(frozen=True)
class Match:
    """A stored text that is similar to the text that was looked up."""

    key: str
    similarity: float
    """From 0 to 1: the Jaccard index or the overlap."""


class NearDuplicateIndex:
    """Finds the stored text that is most similar to a text, if their similarity reaches the threshold.

    The measure is the Jaccard index: trigrams in both texts, divided by trigrams in either. MinHash signatures in bands
    (locality-sensitive hashing; Leskovec, Rajaraman, Ullman, "Mining of Massive Datasets", 3.4) give the candidates,
    and their exact Jaccard index decides. So every match is correct, and fewer than MAX_MISSED of the pairs at the
    threshold are missed. The signatures are seeded: equal calls give equal results in every process.
    """

    def __init__(self, threshold: float, seed: int = 0) -> None:
        if not 0 < threshold <= 1:
            raise ValueError("threshold must be above 0 and at most 1")
        self.threshold = threshold
        self._seed = seed
        likely = min(threshold, 0.99)  # the formulas below have no value for 1
        n_rows = min(max(round(math.log(BAND_MATCH) / math.log(likely)), 1), 16)
        n_bands = math.ceil(math.log(MAX_MISSED) / math.log(1 - likely**n_rows))
        self._n_hashes = n_bands * n_rows
        self._bands = RMinHashLSH(threshold, self._n_hashes, n_bands)
        self._stored: list[tuple[str, str]] = []

    def find(self, text: str) -> Match | None:
        """Return the most similar stored text (the first of equally similar ones), or None."""
        own = ngrams(text)
        if not own:
            return None
        candidates = sorted(self._bands.query(self._signature(own)))[-MAX_CANDIDATES:]
        matches = (Match(key, _jaccard(own, ngrams(other))) for key, other in map(self._stored.__getitem__, candidates))
        best = max(matches, key=lambda match: match.similarity, default=None)
        return best if best and best.similarity >= self.threshold else None

    def add(self, key: str, text: str) -> None:
        """Store a text."""
        own = ngrams(text)
        if own:
            self._bands.insert(len(self._stored), self._signature(own))
            self._stored.append((key, text))

    def _signature(self, own: frozenset[str]) -> RMinHash:
        signature = RMinHash(self._n_hashes, self._seed)
        signature.update(own)
        return signature


def _jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    shared = len(one & other)
    return shared / (len(one) + len(other) - shared)


class OverlapIndex:
    """Finds the protected texts that a text repeats, in whole or in part: the measure of contamination.

    The overlap is the share of the protected text's trigrams that the other text contains, however long that is. PaLM
    (Chowdhery et al. 2022) calls a test item contaminated from 70 % of its 8-grams; prompts of 10 to 20 words need
    trigrams, because one changed word destroys most 8-grams of so short a text. The result is exact.
    """

    def __init__(self, texts: Iterable[tuple[str, str]], min_overlap: float = 0.0) -> None:
        """Store (key, text) pairs."""
        self.min_overlap = min_overlap
        self._stored = [(key, ngrams(text)) for key, text in texts]
        counts = Counter(ngram for _, own in self._stored for ngram in own)
        self._holders: dict[str, list[int]] = defaultdict(list)
        for place, (_, own) in enumerate(self._stored):
            # An overlap of m of n trigrams includes one of any n - m + 1, so the rarest ones suffice to find it.
            n_needed = max(math.ceil(min_overlap * len(own) - 1e-9), 1)
            for ngram in sorted(own, key=lambda ngram: (counts[ngram], ngram))[: len(own) - n_needed + 1]:
                self._holders[ngram].append(place)

    def find(self, text: str) -> Iterator[Match]:
        """Yield each protected text whose overlap is above 0 and at least `min_overlap`."""
        found = ngrams(text)
        for place in sorted({place for ngram in found & self._holders.keys() for place in self._holders[ngram]}):
            key, own = self._stored[place]
            overlap = len(own & found) / len(own)
            if overlap >= self.min_overlap:
                yield Match(key, overlap)
