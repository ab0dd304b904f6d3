"""The answers' figures and the judge's verdicts in words: one wording for the terminal, Markdown and the page."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from mlx_distill.compare.answer_figures import AnswerFigures, AnswerGroup, Means
from mlx_distill.compare.figures import FEWEST_FAMILIES
from mlx_distill.compare.judge import Judged, Judgement, Tally
from mlx_distill.compare.wording import INTERVAL, bounds, count, percent, points, share_of


def answers_header(names: Mapping[str, str]) -> tuple[str, ...]:
    return ("", names["base"], names["distilled"], names["teacher"], "difference", INTERVAL)


def answers_rows(figures: AnswerFigures) -> list[tuple[str, ...]]:
    """Each measure under `answers_header`; a dash where the teacher has none."""
    means, writing = figures.means, figures.writing
    rows = [
        (
            "came to an end",
            *_voices(means["finished"], percent),
            points(means["finished"].difference.value),
            bounds(means["finished"].difference, "{:+.1f}", scale=100),
        ),
        (
            "length in tokens",
            *_voices(means["length"], "{:.0f}".format),
            f"{means['length'].difference.value:+.0f}",
            bounds(means["length"].difference, "{:+.0f}"),
        ),
        (
            "repetition",
            *_voices(means["repetition"], percent),
            points(means["repetition"].difference.value),
            bounds(means["repetition"].difference, "{:+.1f}", scale=100),
        ),
    ]
    speeds = [f"{writing[side].tokens_per_second:.0f}" for side in ("base", "distilled")]
    memory = [f"{writing[side].peak_bytes / 1e9:.2f} GB" for side in ("base", "distilled")]
    return [*rows, ("tokens/s, all together", *speeds, "-", "", ""), ("peak memory", *memory, "-", "", "")]


def answers_note(figures: AnswerFigures) -> str:
    """What the table is over, and what its words mean."""
    intervals = (
        "Intervals resample families; where there is none, all families are alike."
        if figures.n_families >= FEWEST_FAMILIES
        else f"Fewer than {FEWEST_FAMILIES} families: no interval, and a difference may be chance."
    )
    return (
        f"Means over the answers to {count(figures.n_questions, 'question')} of "
        f"{count(figures.n_families, 'family', 'families')}, {figures.n_teacher} of them answered by the teacher. "
        "Repetition is the share of an answer's runs of four words that stand in it before; tokens/s and memory are of "
        f"writing all of these answers at the same time. {intervals}"
    )


ANSWER_CATEGORY_HEADER = ("category", "questions", "came to an end", "length in tokens", "repetition")


def answer_category_rows(figures: AnswerFigures) -> list[tuple[str, ...]]:
    """Both sides by category, under ANSWER_CATEGORY_HEADER."""
    return [(name, str(group.n_questions), *_both(group)) for name, group in figures.by_category.items()]


def _both(group: AnswerGroup) -> list[str]:
    forms: dict[str, Callable[[float], str]] = {"finished": percent, "length": "{:.0f}".format, "repetition": percent}
    return [f"{form(group.means[name].base)} → {form(group.means[name].distilled)}" for name, form in forms.items()]


def judge_line(judged: Judged, names: Mapping[str, str]) -> str:
    """What the judge found, in a sentence."""
    if not judged.win_rate:
        return f"{judged.judge} settled none of {count(len(judged.pairs), 'pair')} of answers."
    rate, distilled, base = judged.win_rate, names["distilled"], names["base"]
    n_settled = judged.wins + judged.ties + judged.losses
    said = (
        f"{judged.judge} preferred {distilled} in {judged.wins} and {base} in {judged.losses} of "
        f"{count(n_settled, 'pair')} of answers, {judged.ties} tied: a win rate of {percent(rate.value)}"
    )
    if rate.low is None or rate.high is None:
        return f"{said}, without an interval: {_why_no_interval(judged)}."
    even = rate.low <= 0.5 <= rate.high
    return f"{said}, {INTERVAL} {win_bounds(judged)}, which {'includes' if even else 'excludes'} an even 50 %."


def win_bounds(tally: Tally) -> str:
    """The interval of the win rate; a dash where there is none."""
    return bounds(tally.win_rate, "{:.1f}", scale=100, unit=" %") if tally.win_rate else "-"


def _why_no_interval(judged: Judged) -> str:
    if judged.n_families < FEWEST_FAMILIES:
        return f"{count(judged.n_families, 'family', 'families')} cannot say how other questions would fare"
    return "all families went the same way, and resampling them cannot say how far others would be from that"


def judge_rows(judged: Judged, names: Mapping[str, str]) -> list[tuple[str, str]]:
    """What was counted, name and value; what a reader must weigh the win rate by is among it."""
    other = judged.n_disagreements - judged.first_preferred
    rows = [
        ("judge", ", ".join(dict.fromkeys((judged.judge, *judged.models)))),
        ("pairs", f"{len(judged.pairs)}, each in both orders"),
        (f"{names['distilled']} preferred", str(judged.wins)),
        ("tied", str(judged.ties)),
        (f"{names['base']} preferred", str(judged.losses)),
        ("win rate", f"{percent(judged.win_rate.value)}, {INTERVAL} {win_bounds(judged)}" if judged.win_rate else "-"),
        (
            "orders that disagreed (tied)",
            f"{judged.n_disagreements}: the first answer preferred both times in {judged.first_preferred}, "
            f"otherwise {other}",
        ),
        ("same text (tied, not asked)", str(sum(pair.identical for pair in judged.pairs))),
        ("longer answer preferred", f"{share_of(judged.longer_preferred)} won by either"),
        (
            "length difference",
            "-"
            if judged.words_more is None
            else f"{judged.words_more:+.0f} words in the mean, {names['distilled']} minus {names['base']}",
        ),
        ("no verdict to be read", str(judged.n_unparseable)),
        ("not judged", str(judged.n_unanswered)),
    ]
    if judged.cost_usd is not None:
        rows.append(("cost of the judgements", f"{judged.cost_usd:.4f} USD"))
    return rows


JUDGE_CATEGORY_HEADER = ("category", "wins", "ties", "losses", "win rate", INTERVAL)


def judge_category_rows(judged: Judged) -> list[tuple[str, ...]]:
    """Outcomes by category, of the second side, under JUDGE_CATEGORY_HEADER."""
    return [
        (
            name,
            *map(str, (tally.wins, tally.ties, tally.losses)),
            percent(tally.win_rate.value) if tally.win_rate else "-",
            win_bounds(tally),
        )
        for name, tally in judged.by_category.items()
    ]


def judgement_words(pair: Judgement, names: Mapping[str, str]) -> str:
    """The verdict on one pair."""
    if pair.identical:
        return "same text, a tie"
    if pair.outcome == "unanswered":
        return "not judged"
    if pair.outcome == "unparseable":
        return "no verdict to be read"
    if pair.outcome == "tie":
        return "a tie" if pair.base_first == pair.distilled_first else "the two orders disagree, a tie"
    return f"{names[pair.outcome]} preferred in both orders"


def _voices(means: Means, form: Callable[[float], str]) -> tuple[str, str, str]:
    return form(means.base), form(means.distilled), "-" if means.teacher is None else form(means.teacher)
