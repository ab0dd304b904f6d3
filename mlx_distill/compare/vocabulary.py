"""The terms that set the teacher apart from the base, and how far the distilled student moved toward them.

Log-odds ratio with an informative Dirichlet prior: Monroe, Colaresi & Quinn, "Fightin' Words: Lexical Feature Selection
and Evaluation for Identifying the Content of Political Conflict", Political Analysis 16(4), 2008, equations 16 and 22.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from mlx_distill.compare.answers import PromptAnswers
from mlx_distill.records import Example

FEWEST_FAMILIES = 3
FAMILY_SHARE = 0.2
"""A term counts as the teacher's habit where it is in answers to this share of its families: others are the subject."""
PRIOR_TERMS = 500.0
"""Weight of the prior, the paper's: the vocabulary of all three together, as if this many terms had been read of it.
It also takes the place of a least amount of text: where little is read, the prior outweighs it and nothing stands out.
"""
THRESHOLD = 1.96
"""Standard errors beyond which a term is the teacher's, as in the paper: chance puts 2.5 % of terms there."""
MOST_TERMS = 20

_TERM = re.compile(r"[^\W\d_]{2,}|->|\"\"\"|@")


@dataclass(frozen=True)
class Term:
    """One term that is the teacher's more than the base's; rates are per 1,000 terms."""

    term: str
    z: float
    """Log-odds of teacher against base, in standard errors."""
    base: float
    distilled: float
    teacher: float


@dataclass(frozen=True)
class Vocabulary:
    """What was found."""

    n_base: int
    n_distilled: int
    n_teacher: int
    """Terms read of each. The teacher's are its answers in train.jsonl, the others' their answers to the prompts."""
    n_examined: int
    """Terms common enough to be a habit, each of them tested."""
    terms: tuple[Term, ...]
    """The strongest first, at most 20."""
    n_found: int
    """All terms beyond 1.96 standard errors; chance alone would put 2.5 % of those examined there."""
    visible_rate: float | None
    """Of the teacher, per 1,000 terms: a term that base never uses is found from this rate on, given how much was
    read. None where nothing could be found at all."""
    base: float
    distilled: float
    teacher: float
    """Rate of the terms that are found without the answer that they are counted in, all together, per 1,000 terms."""

    @property
    def moved(self) -> float | None:
        """How much of the way from base to teacher the distilled student went, all terms together; None without any."""
        return (self.distilled - self.base) / (self.teacher - self.base) if self.teacher > self.base else None


def vocabulary(rows: Sequence[Example], answers: Sequence[PromptAnswers]) -> Vocabulary:
    """The teacher's terms in the rows that were trained on, against the students' in their answers."""
    by_family: dict[str, Counter[str]] = {}
    for row in rows:
        said = "\n".join(message.content for message in row.messages if message.role == "assistant")
        by_family.setdefault(row.family, Counter()).update(terms_of(said))
    teacher = sum(by_family.values(), Counter())
    of_base = [terms_of(one.base.text) for one in answers]
    of_distilled = [terms_of(one.distilled.text) for one in answers]
    base, distilled = sum(of_base, Counter[str]()), sum(of_distilled, Counter[str]())

    spread = Counter(term for found in by_family.values() for term in found)
    fewest = max(FEWEST_FAMILIES, FAMILY_SHARE * len(by_family))
    habits = sorted(term for term, n_families in spread.items() if n_families >= fewest)
    scores = log_odds(teacher, base, teacher + base + distilled, habits)
    found = sorted((term for term in habits if scores[term] > THRESHOLD), key=lambda term: (-scores[term], term))

    def rate(counts: Counter[str], terms: Iterable[str]) -> float:
        return 1000 * sum(counts[term] for term in terms) / max(1, counts.total())

    return Vocabulary(
        n_base=base.total(),
        n_distilled=distilled.total(),
        n_teacher=teacher.total(),
        n_examined=len(habits),
        terms=tuple(
            Term(term, scores[term], rate(base, [term]), rate(distilled, [term]), rate(teacher, [term]))
            for term in found[:MOST_TERMS]
        ),
        n_found=len(found),
        visible_rate=_visible_rate(teacher.total(), base.total()),
        **_rates_by_other_answers(teacher, of_base, of_distilled, habits),
    )


def _rates_by_other_answers(
    teacher: Counter[str],
    of_base: Sequence[Counter[str]],
    of_distilled: Sequence[Counter[str]],
    habits: Sequence[str],
) -> dict[str, float]:
    """How often each uses the teacher's terms, per 1,000; what is looked for in an answer is chosen without it.

    Base's answers choose the terms, and what they lack by chance any other answers would have more of: counted where
    they were chosen, a second sample of base itself would seem to have moved.
    """
    base, distilled = sum(of_base, Counter[str]()), sum(of_distilled, Counter[str]())
    counted = dict.fromkeys(("base", "distilled", "teacher"), 0.0)
    for own, beside in zip(of_base, of_distilled, strict=True):
        rest = base - own
        scores = log_odds(teacher, rest, teacher + rest + (distilled - beside), habits)
        chosen = [term for term in habits if scores[term] > THRESHOLD]
        counted["base"] += sum(own[term] for term in chosen)
        counted["distilled"] += sum(beside[term] for term in chosen)
        counted["teacher"] += own.total() * sum(teacher[term] for term in chosen) / max(1, teacher.total())
    totals = {"base": base.total(), "distilled": distilled.total(), "teacher": base.total()}
    return {voice: 1000 * n / max(1, totals[voice]) for voice, n in counted.items()}


def _visible_rate(n_teacher: int, n_base: int) -> float | None:
    """The lowest rate of the teacher's, per 1,000, at which a term that base never uses is beyond the threshold."""
    for per_mille in range(1, 1000) if n_teacher else ():
        n = n_teacher * per_mille / 1000
        teacher, base = {"it": n, "other": n_teacher - n}, {"other": float(n_base)}
        together = {"it": n, "other": n_teacher - n + n_base}
        if log_odds(teacher, base, together, ["it"])["it"] > THRESHOLD:
            return float(per_mille)
    return None


def terms_of(text: str) -> Counter[str]:
    """Words in lower case (of a name in code, its parts) and a few signs of code; a line said again counts once."""
    lines = dict.fromkeys(line.strip() for line in text.split("\n"))
    return Counter(match.group().lower() for line in lines for match in _TERM.finditer(line))


def log_odds(
    one: Mapping[str, float], other: Mapping[str, float], background: Mapping[str, float], terms: Iterable[str]
) -> dict[str, float]:
    """Each term's log-odds of `one` against `other` in standard errors; `background` shapes the prior."""
    n_one, n_other, n_background = sum(one.values()), sum(other.values()), sum(background.values())
    scores = {}
    for term in terms:
        prior = PRIOR_TERMS * background[term] / n_background
        of_one, of_other = one.get(term, 0) + prior, other.get(term, 0) + prior
        difference = math.log(of_one / (n_one + PRIOR_TERMS - of_one)) - math.log(
            of_other / (n_other + PRIOR_TERMS - of_other)
        )
        scores[term] = difference / math.sqrt(1 / of_one + 1 / of_other)
    return scores
