"""What stands out, in sentences that are made from the figures and say no more than they do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mlx_distill.comparison.answer_figures import AnswerFigures
from mlx_distill.comparison.answer_wording import NAMES, judge_line
from mlx_distill.comparison.code import CodeFindings, Share
from mlx_distill.comparison.figures import FEWEST_FAMILIES, HeldOut, Measured
from mlx_distill.comparison.history import Course
from mlx_distill.comparison.judge import Judged
from mlx_distill.comparison.vocabulary import Vocabulary
from mlx_distill.comparison.wording import count, language_name, loss_bounds, percent, share_of


def observe(
    test: HeldOut,
    answers: AnswerFigures,
    code: CodeFindings,
    words: Vocabulary,
    judged: Judged | None,
    course: Course | None,
) -> tuple[str, ...]:
    """The observations, the held-out rows first."""
    return (
        _overall(test),
        *_categories(test),
        *_endings(answers),
        *_stands(code),
        *_habits(code),
        *_words(words),
        *([judge_line(judged, NAMES)] if judged else ()),
        *(_training(course.settings, course.result) if course else ()),
    )


def _overall(test: HeldOut) -> str:
    change, base = test.difference.loss, test.base.loss
    moved = f"{base:.3f} to {test.distilled.loss:.3f}"
    relative = f" ({100 * change.value / base:+.1f} %)" if base else ""
    if change.value == 0:
        return f"Loss on held-out rows is the same before and after: {base:.3f}."
    said = f"Loss on held-out rows {'fell' if change.value < 0 else 'rose'} from {moved}{relative}"
    if change.low is None or change.high is None:
        return f"{said}; {count(test.n_families, 'family', 'families')} are too few to say whether that is chance."
    if change.low <= 0 <= change.high:
        return f"{said}; the interval of the difference ({loss_bounds(test)}) includes zero, so it may be chance."
    return f"{said}; the interval of the difference ({loss_bounds(test)}) excludes zero."


def _categories(test: HeldOut) -> Iterator[str]:
    groups = test.by_category
    if len(groups) < 2:
        return

    def relative(group: Measured) -> float:
        return group.difference.loss.value / group.base.loss if group.base.loss else 0.0

    order = sorted(groups, key=lambda name: relative(groups[name]))
    least, most = order[-1], order[0]
    if relative(groups[most]) >= 0 or relative(groups[most]) == relative(groups[least]):
        return
    said = (
        f"By category, loss fell most in {most} ({100 * relative(groups[most]):+.1f} %) and moved least toward the "
        f"teacher in {least} ({100 * relative(groups[least]):+.1f} %)"
    )
    if groups[most].has_interval and groups[least].has_interval:
        yield f"{said}; the intervals are {loss_bounds(groups[most])} and {loss_bounds(groups[least])}."
    else:
        yield f"{said}; with fewer than {FEWEST_FAMILIES} families in a category, this order may be chance."


def _endings(answers: AnswerFigures) -> Iterator[str]:
    """What changed in how answers end, run on and repeat themselves."""
    finished, length, repetition = (answers.means[name] for name in ("finished", "length", "repetition"))
    n = answers.n_questions
    yield (
        f"Of {count(n, 'answer')} each, {finished.base * n:.0f} of base and {finished.distilled * n:.0f} of distilled "
        f"came to an end before the limit; they are {length.base:.0f} and {length.distilled:.0f} tokens long in the "
        f"mean, and {percent(repetition.base)} and {percent(repetition.distilled)} of their runs of four words repeat."
    )


def _stands(code: CodeFindings) -> Iterator[str]:
    for language, shares in code.stands.items():
        yield f"{language_name(language)} blocks that are whole and parse: {_by_voice(shares)}."


def _habits(code: CodeFindings) -> Iterator[str]:
    """Those where the share of distilled differs from that of base."""

    def part(share: Share) -> float | None:
        return share.n / share.of if share.of else None

    moved = {
        habit: shares
        for habit, shares in code.habits.items()
        if None not in (parts := (part(shares["base"]), part(shares["distilled"]))) and parts[0] != parts[1]
    }
    for habit, shares in moved.items():
        yield f"{habit[0].upper()}{habit[1:]} in code that parses: {_by_voice(shares)}."
    if code.habits and not moved:
        yield "In the code that parses, distilled shows no structural habit more or less often than base does."


def _by_voice(shares: Mapping[str, Share]) -> str:
    return ", ".join(f"{voice} {share_of(share)}" for voice, share in shares.items())


def _words(words: Vocabulary) -> Iterator[str]:
    if words.moved is None:
        return
    yield (
        f"The {count(words.n_found, 'term')} that set the teacher apart from base make up {words.base:.1f} of 1,000 "
        f"terms of base, {words.distilled:.1f} of distilled and {words.teacher:.1f} of the teacher: distilled went "
        f"{percent(words.moved)} of the way."
    )


def _training(settings: Mapping[str, Any], result: Mapping[str, Any]) -> Iterator[str]:
    if result.get("stopped") == "time budget" and {"epochs", "steps"} <= result.keys():
        yield (
            f"Training stopped at its time budget after {result['epochs']} of {settings.get('epochs', '?')} epochs "
            f"({count(result['steps'], 'step')}): these figures are of a student that has not seen all of it."
        )
