"""Figures of the answers themselves: whether they came to an end, how long they are, how much they repeat.

finished    share of answers that end by themselves, before the limit
length      tokens of the student's tokenizer, without an end token
repetition  share of an answer's runs of four words that stand in it before
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from mlx_distill.compare.answers import PromptAnswers, StudentAnswer, TeacherAnswer, Writing
from mlx_distill.compare.figures import Bounded, bounded_mean

Answer = StudentAnswer | TeacherAnswer

MEASURES: Mapping[str, Callable[[Answer], float]] = {
    "finished": lambda answer: float(answer.finished),
    "length": lambda answer: float(answer.n_tokens or 0),
    "repetition": lambda answer: answer.repetition,
}


@dataclass(frozen=True)
class Means:
    """One measure of everybody's answers."""

    base: float
    distilled: float
    teacher: float | None
    """Over the answers that there are of the teacher; None where there are none."""
    difference: Bounded
    """Distilled minus base, on the same questions."""


@dataclass(frozen=True)
class AnswerGroup:
    """All measures over some questions."""

    n_questions: int
    n_families: int
    n_teacher: int
    """Answers of the teacher."""
    means: Mapping[str, Means]
    """By the names in MEASURES."""


@dataclass(frozen=True)
class AnswerFigures(AnswerGroup):
    """All questions, the same by category, and how fast and with how much memory the answers were written."""

    by_category: Mapping[str, AnswerGroup]
    writing: Mapping[str, Writing]
    """Of `base` and `distilled`."""


def answer_figures(answers: Sequence[PromptAnswers], writing: Mapping[str, Writing], seed: int) -> AnswerFigures:
    """The figures over all questions and by category, categories in the order in which they first appear."""
    categories = dict.fromkeys(one.category for one in answers)
    by_category = {name: _measured([one for one in answers if one.category == name], seed) for name in categories}
    return AnswerFigures(**vars(_measured(answers, seed)), by_category=by_category, writing=writing)


def _measured(answers: Sequence[PromptAnswers], seed: int) -> AnswerGroup:
    taught = [one.teacher for one in answers if one.teacher]
    means = {}
    for name, measure in MEASURES.items():
        pairs = [(measure(one.base), measure(one.distilled)) for one in answers]
        means[name] = Means(
            base=sum(base for base, _ in pairs) / len(pairs),
            distilled=sum(distilled for _, distilled in pairs) / len(pairs),
            teacher=sum(map(measure, taught)) / len(taught) if taught else None,
            difference=bounded_mean(
                [(one.family or one.id, after - before) for one, (before, after) in zip(answers, pairs, strict=True)],
                seed,
            ),
        )
    n_families = len({one.family or one.id for one in answers})
    return AnswerGroup(len(answers), n_families, len(taught), means)
