"""The terms that set the teacher apart from model a, and how far model b moved toward them.

Log-odds ratio with an informative Dirichlet prior: Monroe, Colaresi & Quinn, "Fightin' Words: Lexical Feature Selection
and Evaluation for Identifying the Content of Political Conflict", Political Analysis 16(4), 2008, equations 16 and 22.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from mlx_distill.compare.models import Comparison
from mlx_distill.compare.table import Table, number
from mlx_distill.formatting import format_percent, plural
from mlx_distill.records import Example

MIN_FAMILIES = 3
FAMILY_SHARE = 0.2
"""A term is examined if the teacher uses it in this share of its families. Others belong to one subject."""
PRIOR_TERMS = 500.0
"""Weight of the prior, as in the paper: all texts together, as if this many terms of them were read. It also replaces a
minimum amount of text: if little text was read, the prior outweighs it and nothing is found."""
THRESHOLD = 1.96
"""Standard errors beyond which a term is the teacher's, as in the paper. Chance puts 2.5 % of the terms there."""
MAX_TERMS = 20

_TERM = re.compile(r"[^\W\d_]{2,}|->|\"\"\"|@")


def vocabulary(data: Comparison) -> Table | None:
    """Compare the terms of the training answers with those of both models; None without training rows."""
    by_family = _terms_by_family(data.train_rows)
    if not by_family:
        return None
    teacher = sum(by_family.values(), Counter[str]())
    a_texts, b_texts = ([count_terms(answer.text) for answer in answers] for _, answers in data.answers_by_name[:2])
    a, b = sum(a_texts, Counter[str]()), sum(b_texts, Counter[str]())
    spread = Counter(term for terms in by_family.values() for term in terms)
    fewest = max(MIN_FAMILIES, FAMILY_SHARE * len(by_family))
    common = sorted(term for term, n_families in spread.items() if n_families >= fewest)
    scores = log_odds(teacher, a, teacher + a + b, common)
    found = sorted((term for term in common if scores[term] > THRESHOLD), key=lambda term: (-scores[term], term))
    rate_of_a, rate_of_b, rate_of_teacher = leave_one_out_rates(teacher, a_texts, b_texts, common)

    def rate(counts: Counter[str], term: str) -> float:
        return 1000 * counts[term] / max(1, counts.total())

    finding = ""
    if rate_of_teacher > rate_of_a:
        way = format_percent((rate_of_b - rate_of_a) / (rate_of_teacher - rate_of_a))
        finding = (
            f"Terms that set the teacher apart from {data.a.name} make up {rate_of_a:.1f} of 1,000 terms of "
            f"{data.a.name}, {rate_of_b:.1f} of {data.b.name} and {rate_of_teacher:.1f} of the teacher: "
            f"{data.b.name} moved {way} of the way."
        )
    return Table(
        id="vocabulary",
        title="Vocabulary",
        columns=(data.a.name, data.b.name, "teacher", "z"),
        rows={
            term: (
                *(number(rate(counts, term), "{:.1f}") for counts in (a, b, teacher)),
                number(scores[term], "{:.1f}"),
            )
            for term in found[:MAX_TERMS]
        },
        note=(
            f"Terms per 1,000 that the teacher uses more than {data.a.name}: {len(found)} of "
            f"{plural(len(common), 'term')} that it uses in a fifth of its families; chance alone gives about "
            f"{0.025 * len(common):.0f}. Read: {plural(teacher.total(), 'term')} of the teacher's training answers, "
            f"{a.total():,} of {data.a.name}, {b.total():,} of {data.b.name}; with little text only frequent terms are "
            "found. z: log-odds in standard errors, with an informative Dirichlet prior (Monroe et al. 2008). The "
            "answers are to other prompts than the teacher's, so part of a difference may come from the subject. How "
            "far the terms moved is counted in each answer for terms that were chosen without it."
        ),
        finding=finding,
    )


def _terms_by_family(rows: Sequence[Example]) -> dict[str, Counter[str]]:
    by_family: dict[str, Counter[str]] = {}
    for row in rows:
        said = "\n".join(message.content for message in row.messages if message.role == "assistant")
        by_family.setdefault(row.family, Counter()).update(count_terms(said))
    return by_family


def leave_one_out_rates(
    teacher: Counter[str], a_texts: Sequence[Counter[str]], b_texts: Sequence[Counter[str]], common: Sequence[str]
) -> tuple[float, float, float]:
    """Return how often a, b and the teacher use the teacher's terms, per 1,000 terms.

    The terms are chosen for each answer from the other answers. Otherwise a second sample of a itself would seem to
    have moved: it has more of the terms that the first sample lacks by chance.
    """
    a, b = sum(a_texts, Counter[str]()), sum(b_texts, Counter[str]())
    counted_a = counted_b = counted_teacher = 0.0
    for own, other in zip(a_texts, b_texts, strict=True):
        rest = a - own
        scores = log_odds(teacher, rest, teacher + rest + (b - other), common)
        chosen = [term for term in common if scores[term] > THRESHOLD]
        counted_a += sum(own[term] for term in chosen)
        counted_b += sum(other[term] for term in chosen)
        counted_teacher += own.total() * sum(teacher[term] for term in chosen) / max(1, teacher.total())
    n_a, n_b = max(1, a.total()), max(1, b.total())
    return 1000 * counted_a / n_a, 1000 * counted_b / n_b, 1000 * counted_teacher / n_a


def count_terms(text: str) -> Counter[str]:
    """Count words in lower case (and the parts of names in code) and a few signs. A repeated line counts once."""
    lines = dict.fromkeys(line.strip() for line in text.split("\n"))
    return Counter(match.group().lower() for line in lines for match in _TERM.finditer(line))


def log_odds(
    one: Mapping[str, float], other: Mapping[str, float], background: Mapping[str, float], terms: Iterable[str]
) -> dict[str, float]:
    """Return each term's log-odds of `one` against `other` in standard errors; `background` shapes the prior."""
    n_one, n_other, n_background = sum(one.values()), sum(other.values()), sum(background.values())
    scores = {}
    for term in terms:
        prior = PRIOR_TERMS * background[term] / n_background
        in_one, in_other = one.get(term, 0) + prior, other.get(term, 0) + prior
        odds_one, odds_other = in_one / (n_one + PRIOR_TERMS - in_one), in_other / (n_other + PRIOR_TERMS - in_other)
        scores[term] = (math.log(odds_one) - math.log(odds_other)) / math.sqrt(1 / in_one + 1 / in_other)
    return scores
