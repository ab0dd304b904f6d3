"""What stands out, in sentences that are made from the figures and say no more than they do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from mlx_distill.compare.answer_figures import AnswerFigures
from mlx_distill.compare.answer_wording import judge_line
from mlx_distill.compare.code import CodeFindings, Share
from mlx_distill.compare.figures import FEWEST_FAMILIES, HeldOut, Measured
from mlx_distill.compare.history import Course
from mlx_distill.compare.judge import Judged
from mlx_distill.compare.sides import SIDES, SideFacts, names_of
from mlx_distill.compare.vocabulary import Vocabulary
from mlx_distill.compare.wording import count, language_name, loss_bounds, percent, share_of


def observe(
    test: HeldOut,
    answers: AnswerFigures,
    code: CodeFindings,
    words: Vocabulary,
    judged: Judged | None,
    sides: Mapping[str, SideFacts],
) -> tuple[str, ...]:
    """The observations, the held-out rows first."""
    names = names_of(sides)
    return (
        _overall(test, names),
        *_categories(test, names),
        *_endings(answers, names),
        *_stands(code, names),
        *_habits(code, names),
        *_words(words, names),
        *([judge_line(judged, names)] if judged else ()),
        *(said for side in sides.values() if side.course for said in _training(side.name, side.course)),
    )


def _overall(test: HeldOut, names: Mapping[str, str]) -> str:
    change, base = test.difference.loss, test.base.loss
    one, other = names["base"], names["distilled"]
    relative = f" ({100 * change.value / base:+.1f} %)" if base else ""
    if change.value == 0:
        return f"Loss on held-out rows is the same for {one} and {other}: {base:.3f}."
    if (one, other) == SIDES:
        fell = "fell" if change.value < 0 else "rose"
        said = f"Loss on held-out rows {fell} from {base:.3f} to {test.distilled.loss:.3f}{relative}"
    else:
        said = f"Loss on held-out rows is {base:.3f} for {one} and {test.distilled.loss:.3f} for {other}{relative}"
    if change.low is None or change.high is None:
        return f"{said}; {count(test.n_families, 'family', 'families')} are too few to say whether that is chance."
    if change.low <= 0 <= change.high:
        return f"{said}; the interval of the difference ({loss_bounds(test)}) includes zero, so it may be chance."
    return f"{said}; the interval of the difference ({loss_bounds(test)}) excludes zero."


def _categories(test: HeldOut, names: Mapping[str, str]) -> Iterator[str]:
    groups = test.by_category
    if len(groups) < 2:
        return

    def relative(group: Measured) -> float:
        return group.difference.loss.value / group.base.loss if group.base.loss else 0.0

    order = sorted(groups, key=lambda name: relative(groups[name]))
    least, most = order[-1], order[0]
    if relative(groups[most]) == relative(groups[least]):
        return
    most_by, least_by = (f"({100 * relative(groups[name]):+.1f} %)" for name in (most, least))
    if (names["base"], names["distilled"]) != SIDES:
        said = (
            f"By category, the loss of {names['distilled']} stands best against that of {names['base']} in {most} "
            f"{most_by} and worst in {least} {least_by}"
        )
    elif relative(groups[most]) < 0:
        said = (
            f"By category, loss fell most in {most} {most_by} and moved least toward the teacher in {least} {least_by}"
        )
    else:
        return
    if groups[most].has_interval and groups[least].has_interval:
        yield f"{said}; the intervals are {loss_bounds(groups[most])} and {loss_bounds(groups[least])}."
    else:
        yield f"{said}; with fewer than {FEWEST_FAMILIES} families in a category, this order may be chance."


def _endings(answers: AnswerFigures, names: Mapping[str, str]) -> Iterator[str]:
    """What changed in how answers end, run on and repeat themselves."""
    finished, length, repetition = (answers.means[name] for name in ("finished", "length", "repetition"))
    n = answers.n_questions
    yield (
        f"Of {count(n, 'answer')} each, {finished.base * n:.0f} of {names['base']} and {finished.distilled * n:.0f} of "
        f"{names['distilled']} came to an end before the limit; they are {length.base:.0f} and "
        f"{length.distilled:.0f} tokens long in the mean, and {percent(repetition.base)} and "
        f"{percent(repetition.distilled)} of their runs of four words repeat."
    )


def _stands(code: CodeFindings, names: Mapping[str, str]) -> Iterator[str]:
    for language, shares in code.stands.items():
        yield f"{language_name(language)} blocks that are whole and parse: {_by_voice(shares, names)}."


def _habits(code: CodeFindings, names: Mapping[str, str]) -> Iterator[str]:
    """Those where the share of distilled differs from that of base."""

    def part(share: Share) -> float | None:
        return share.n / share.of if share.of else None

    moved = {
        habit: shares
        for habit, shares in code.habits.items()
        if None not in (parts := (part(shares["base"]), part(shares["distilled"]))) and parts[0] != parts[1]
    }
    for habit, shares in moved.items():
        yield f"{habit[0].upper()}{habit[1:]} in code that parses: {_by_voice(shares, names)}."
    if code.habits and not moved:
        yield (
            f"In the code that parses, {names['distilled']} shows no structural habit more or less often than "
            f"{names['base']} does."
        )


def _by_voice(shares: Mapping[str, Share], names: Mapping[str, str]) -> str:
    return ", ".join(f"{names[voice]} {share_of(share)}" for voice, share in shares.items())


def _words(words: Vocabulary, names: Mapping[str, str]) -> Iterator[str]:
    if words.moved is None:
        return
    base, distilled = names["base"], names["distilled"]
    yield (
        f"Terms that set the teacher apart from {base}, chosen by other answers than they are counted in, make up "
        f"{words.base:.1f} of 1,000 terms of {base}, {words.distilled:.1f} of {distilled} and {words.teacher:.1f} of "
        f"the teacher: {distilled} went {percent(words.moved)} of the way."
    )


def _training(name: str, course: Course) -> Iterator[str]:
    result = course.result
    if result.get("stopped") == "time budget" and {"epochs", "steps"} <= result.keys():
        yield (
            f"Training of {name} stopped at its time budget after {result['epochs']} of "
            f"{course.settings.get('epochs', '?')} epochs ({count(result['steps'], 'step')}): these figures are of a "
            "student that has not seen all of it."
        )
