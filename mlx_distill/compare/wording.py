"""Figures and answers in words: one wording for the terminal, Markdown and the page."""

from __future__ import annotations

from collections.abc import Mapping

from mlx_distill.compare.answers import StudentAnswer, TeacherAnswer
from mlx_distill.compare.code import HABITS, VOICES, BlockCheck, CodeFindings, Share
from mlx_distill.compare.figures import CONFIDENCE, FEWEST_FAMILIES, Bounded, HeldOut, Measured
from mlx_distill.compare.vocabulary import Vocabulary

INTERVAL = f"{CONFIDENCE:.0%} interval".replace("%", " %")


def figure_lines(measured: Measured) -> list[tuple[str, str, str, str, str]]:
    """(figure, base, distilled, difference, interval of the difference), ready to be shown."""
    base, distilled, difference = measured.base, measured.distilled, measured.difference
    relative = f" ({100 * difference.loss.value / base.loss:+.1f} %)" if base.loss else ""
    return [
        (
            "loss",
            f"{base.loss:.3f}",
            f"{distilled.loss:.3f}",
            f"{difference.loss.value:+.3f}{relative}",
            loss_bounds(measured),
        ),
        (
            "perplexity",
            f"{base.perplexity:.2f}",
            f"{distilled.perplexity:.2f}",
            f"{difference.perplexity.value:+.2f}",
            bounds(difference.perplexity, "{:+.2f}"),
        ),
        (
            "token accuracy",
            percent(base.token_accuracy),
            percent(distilled.token_accuracy),
            points(difference.token_accuracy.value),
            accuracy_bounds(measured),
        ),
    ]


def loss_bounds(measured: Measured) -> str:
    """The interval of the loss's difference; `-` where there is none."""
    return bounds(measured.difference.loss, "{:+.3f}")


def accuracy_bounds(measured: Measured) -> str:
    """The interval of the token accuracy's difference in points; `-` where there is none."""
    return bounds(measured.difference.token_accuracy, "{:+.1f}", scale=100)


def scope(measured: Measured) -> str:
    """What the figures are over."""
    return (
        f"Over {count(measured.n_tokens, 'answer token')} of {count(measured.n_rows, 'test row')} in "
        f"{count(measured.n_families, 'family', 'families')}, end tokens included; training sees none of them."
    )


def interval_note(measured: Measured) -> str:
    """Why there is no interval, or what it is."""
    if measured.has_interval:
        return f"{INTERVAL}: paired bootstrap over families."
    return (
        f"No interval: {count(measured.n_families, 'family', 'families')} of test rows cannot say how other prompts "
        f"would fare ({FEWEST_FAMILIES} are the fewest), and the difference itself may be chance."
    )


def state(answer: StudentAnswer | TeacherAnswer) -> str:
    """`finished, 120 tokens, 31 tokens/s`, or `cut off at the limit, 512 tokens, 31 tokens/s, 40.0 % repeated`."""
    length = count(answer.n_tokens, "token") if answer.n_tokens is not None else ""
    repeats = f"{percent(answer.repetition)} repeated" if answer.repetition else ""
    if isinstance(answer, TeacherAnswer):
        ending = "finished" if answer.finished else f"not finished: {answer.stop_reason}"
        return ", ".join(filter(None, (ending, length, repeats)))
    ending = "finished" if answer.finished else "cut off at the limit"
    return ", ".join(filter(None, (ending, length, f"{answer.tokens_per_second:.0f} tokens/s", repeats)))


def heading(name: str) -> str:
    """Base, Distilled, Teacher; a folder's name as it is."""
    return name.capitalize() if name in VOICES else name


LANGUAGES = {"python": "Python", "sql": "SQL", "java": "Java"}


def language_name(language: str) -> str:
    return LANGUAGES.get(language, language or "code")


def share_of(share: Share) -> str:
    """`2 of 3`; `-` of none."""
    return f"{share.n} of {share.of}" if share.of else "-"


def check_words(check: BlockCheck) -> str:
    """`Python parses`, `Python does not stand: line 3: invalid syntax`, `bash: not checked`."""
    name = language_name(check.language)
    if check.newer and not check.fault:
        kept = f"{name}: not checked" if check.fault is None else f"{name} parses"
        return f"{kept}; {check.newer} is newer than the compiler here" + (", not checked" if check.fault == "" else "")
    if check.fault is None:
        return f"{name}: not checked"
    if check.fault:
        return f"{name} does not stand: {check.fault}"
    if check.ran is None:
        return f"{name} parses"
    return f"{name} parses, and does not run to its end: {check.ran}" if check.ran else f"{name} parses and runs"


def code_note(code: CodeFindings) -> str:
    """How the table of code was made, and what it does not say."""
    unchecked = f" Not checked: {', '.join(map(language_name, code.unchecked))}." if code.unchecked else ""
    return (
        "A block stands if it is whole and parses, which is no proof that it is right; habits are counted in blocks "
        f"that stand. Parsed with {'; '.join(code.parsers.values())}.{unchecked} {_executed_note(code)}"
    )


def _executed_note(code: CodeFindings) -> str:
    if code.executed is None:
        return "Nothing was executed."
    return (
        "Python blocks that stand were executed, those of an answer one after another in a process of its own, with "
        f"{code.limits}; a block that only defines functions calls none of them, so running to its end proves little. "
        "SQL and Java were parsed, not executed."
    )


CATEGORY_HEADER = (
    *("category", "rows", "families", "tokens", "loss", "difference", INTERVAL),
    *("token accuracy", "difference", INTERVAL),
)
CATEGORY_NOTE = f"A category of fewer than {FEWEST_FAMILIES} families has no interval: its figures may be chance."


def category_rows(test: HeldOut) -> list[tuple[str, ...]]:
    """The figures of each category under CATEGORY_HEADER."""
    return [
        (
            name,
            *(f"{number:,}" for number in (group.n_rows, group.n_families, group.n_tokens)),
            f"{group.base.loss:.3f} → {group.distilled.loss:.3f}",
            f"{group.difference.loss.value:+.3f}",
            loss_bounds(group),
            f"{percent(group.base.token_accuracy)} → {percent(group.distilled.token_accuracy)}",
            points(group.difference.token_accuracy.value),
            accuracy_bounds(group),
        )
        for name, group in test.by_category.items()
    ]


def lacks_intervals(test: HeldOut) -> bool:
    return not all(group.has_interval for group in test.by_category.values())


def code_rows(code: CodeFindings, names: Mapping[str, str]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """The table of code: its header and its rows, a column for each who answered."""
    voices = list(next(iter(code.stands.values()), {}))
    rows = [
        (f"{language_name(language)} blocks that stand", *(share_of(shares[voice]) for voice in voices))
        for language, shares in code.stands.items()
    ]
    if code.executed is not None:
        rows.append(("Python blocks that run to their end", *(share_of(code.executed[voice]) for voice in voices)))
    rows += [
        (f"{habit} ({HABITS[habit][1]})", *(share_of(shares[voice]) for voice in voices))
        for habit, shares in code.habits.items()
    ]
    return ("", *(names[voice] for voice in voices)), rows


def vocabulary_header(names: Mapping[str, str]) -> tuple[str, ...]:
    return ("term", names["base"], names["distilled"], "teacher", "z")


def vocabulary_rows(words: Vocabulary) -> list[tuple[str, ...]]:
    """The strongest terms under `vocabulary_header`."""
    return [
        (one.term, f"{one.base:.1f}", f"{one.distilled:.1f}", f"{one.teacher:.1f}", f"{one.z:.1f}")
        for one in words.terms
    ]


def vocabulary_line(words: Vocabulary, names: Mapping[str, str]) -> str:
    """What was found, and from how much text."""
    base, distilled = names["base"], names["distilled"]
    read = (
        f"Read: {count(words.n_teacher, 'term')} of the teacher, {words.n_base:,} of {base}, "
        f"{words.n_distilled:,} of {distilled}."
    )
    if words.visible_rate is None:
        return f"{read} That is too little to tell any word of the teacher's from chance."
    limit = (
        f"{read} With so much text a term that {base} never uses stands out where it makes up "
        f"{words.visible_rate:.0f} or more of the teacher's 1,000; rarer habits stay unseen. More test prompts or "
        "longer answers show more."
    )
    examined = f"Of {count(words.n_examined, 'term')} that the teacher uses across subjects"
    if not words.n_found:
        return f"{limit} {examined}, none is the teacher's rather than {base}'s beyond chance."
    found = (
        f"{limit} {examined}, {words.n_found} set it apart from {base}; chance alone would give about "
        f"{0.025 * words.n_examined:.0f}."
    )
    if words.moved is None:
        return f"{found} Chosen by other answers than they are counted in, they do not."
    return (
        f"{found} Chosen by other answers than they are counted in, such terms make up {words.base:.1f} of 1,000 of "
        f"{base}, {words.distilled:.1f} of {distilled} and {words.teacher:.1f} of the teacher: {distilled} went "
        f"{percent(words.moved)} of the way."
    )


def count(number: int, one: str, many: str = "") -> str:
    """`1 row`, `1,200 rows`."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def points(share: float) -> str:
    """A difference of two shares in percentage points."""
    return f"{100 * share:+.1f} points"


def bounds(figure: Bounded, form: str, scale: float = 1, unit: str = "") -> str:
    """The interval, such as `-0.4 to +1.2`; `-` where there is none."""
    if figure.low is None or figure.high is None:
        return "-"
    return f"{form.format(scale * figure.low)} to {form.format(scale * figure.high)}{unit}"
