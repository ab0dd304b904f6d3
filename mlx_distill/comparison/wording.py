"""Figures and answers in words: one wording for the terminal, Markdown and whatever page comes later."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from mlx_distill.comparison.answers import StudentAnswer, TeacherAnswer
from mlx_distill.comparison.figures import CONFIDENCE, FEWEST_FAMILIES, Change, Measured

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
            _bounds(difference.perplexity, "{:+.2f}"),
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
    return _bounds(measured.difference.loss, "{:+.3f}")


def accuracy_bounds(measured: Measured) -> str:
    """The interval of the token accuracy's difference in points; `-` where there is none."""
    return _bounds(measured.difference.token_accuracy, "{:+.1f}", scale=100)


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
    """`finished, 120 tokens, 31 tokens/s`, or `cut off at the limit, ...`."""
    if isinstance(answer, TeacherAnswer):
        return "finished" if answer.finished else f"not finished: {answer.stop_reason}"
    ending = "finished" if answer.finished else "cut off at the limit"
    return f"{ending}, {count(answer.n_tokens, 'token')}, {answer.tokens_per_second:.0f} tokens/s"


def command(settings: Mapping[str, Any]) -> str:
    """The command line that makes the same comparison again."""
    words = ["mlx-distill", "compare"]
    for name, value in settings.items():
        if name == "teacher" and not value:
            words.append("--no-teacher")
        else:
            words += [f"--{name.replace('_', '-')}", str(value)]
    return shlex.join(words)


def count(number: int, one: str, many: str = "") -> str:
    """`1 row`, `1,200 rows`."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def points(share: float) -> str:
    """A difference of two shares in percentage points."""
    return f"{100 * share:+.1f} points"


def millions(number: int) -> str:
    """`1.76M`, `494M`: parameters as people write them."""
    return f"{number / 1e6:.3g}M" if number < 1e9 else f"{number / 1e9:.3g}B"


def _bounds(change: Change, form: str, scale: float = 1) -> str:
    if change.low is None or change.high is None:
        return "-"
    return f"{form.format(scale * change.low)} to {form.format(scale * change.high)}"
