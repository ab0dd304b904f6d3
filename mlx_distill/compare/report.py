"""The report: everything that a comparison found. `report.json` is `Report` field by field, in this order.

field        content                                                                      struct
format       4; raised when a field changes its name or meaning                           -
created_at   UTC, ISO 8601                                                                -
machine      platform, device, kind (`metal` or `cpu`), blas, dtype                       -
versions     package to version                                                           -
a, b         the two models: name, folder, adapter, training; `b - a` in all differences  ModelInfo
teacher      the teacher whose answers are shown, or ""                                   -
collected    the teacher's answers that the student learned from, or null                 Collected
settings     of this comparison; null for the shipped test prompts                        -
tables       metric to its table: `tables.held_out.rows.loss[0].value` is the loss of a   Table
findings     one sentence per metric that shows something                                 -
warnings     what to know before believing the figures                                    -
answers      each prompt with the answers of a, b and the teacher (or null)               AnsweredPrompt
seconds      time of the whole comparison                                                 -

A cell without a figure has no `value`; one without an interval has no `low` and `high`.
"""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Any

import msgspec

from mlx_distill.code_blocks.blocks import Syntax
from mlx_distill.compare.collected import Collected
from mlx_distill.compare.prompts import Origin
from mlx_distill.compare.table import Table
from mlx_distill.formatting import format_percent, plural
from mlx_distill.training_run import TrainingRun

FORMAT = 4
LANGUAGES = {"python": "Python", "sql": "SQL", "java": "Java"}


class Execution(enum.Enum):
    """The result of running a block."""

    NOT_RUN = "not run"
    FINISHED = "finished"
    FAILED = "failed"


class CheckedBlock(msgspec.Struct, frozen=True):
    """One code block of an answer, checked."""

    language: str
    syntax: Syntax
    execution: Execution = Execution.NOT_RUN
    problem: str = ""
    """Why it does not parse, or why it failed."""

    def describe(self) -> str:
        """Return a phrase such as `Python parses` or `SQL does not parse: line 3: Expected table name`."""
        name = language_name(self.language)
        if self.syntax is Syntax.NOT_CHECKED:
            return f"{name}: not checked"
        if self.syntax is Syntax.BROKEN:
            return f"{name} does not parse: {self.problem}"
        if self.execution is Execution.FAILED:
            return f"{name} parses but fails: {self.problem}"
        return f"{name} parses and runs" if self.execution is Execution.FINISHED else f"{name} parses"


class CheckedAnswer(msgspec.Struct, frozen=True):
    """One answer of a model or of the teacher."""

    text: str
    finished: bool
    """False if the limit cut it off, or if the teacher did not complete it."""
    n_tokens: int
    """Length by the student's tokenizer, without the end token."""
    repetition: float
    """See `answers.repetition`."""
    blocks: tuple[CheckedBlock, ...] = ()
    tokens_per_second: float | None = None
    """None for the teacher. All answers of a model are written at the same time."""
    stop_reason: str = ""
    """Why the teacher did not complete it, in the provider's words."""
    model: str = ""
    """The teacher's model, in the provider's words; empty if unknown."""

    def describe(self) -> str:
        """Return a line such as `finished, 120 tokens, 31 tokens/s`."""
        state = "finished" if self.finished else f"not finished: {self.stop_reason or 'reached the token limit'}"
        speed = f"{self.tokens_per_second:.0f} tokens/s" if self.tokens_per_second is not None else ""
        repeats = f"{format_percent(self.repetition)} repeated" if self.repetition else ""
        return ", ".join(filter(None, (state, plural(self.n_tokens, "token"), speed, repeats)))


class Outcome(enum.Enum):
    """Which model the judge prefers, or why that is unknown."""

    A = "a"
    B = "b"
    TIE = "tie"
    UNCLEAR = "no clear verdict"
    UNANSWERED = "not judged"


class Judgement(msgspec.Struct, frozen=True):
    """The judge's verdict on the two answers to a prompt."""

    outcome: Outcome
    orders: tuple[Outcome, Outcome] = (Outcome.TIE, Outcome.TIE)
    """The verdict with a's answer first, and with b's answer first."""
    replies: tuple[str, ...] = ()
    """The judge's words, in the order of `orders`. Empty for equal answers: a tie without asking."""

    def describe(self, a: str, b: str) -> str:
        """Return the verdict in words; `a` and `b` are the names of the models."""
        if not self.replies:
            return "same text, a tie"
        if self.outcome is Outcome.TIE:
            return "a tie" if self.orders[0] is self.orders[1] else "the two orders disagree, a tie"
        names = {Outcome.A: a, Outcome.B: b}
        return f"{names[self.outcome]} preferred in both orders" if self.outcome in names else self.outcome.value


class AnsweredPrompt(msgspec.Struct, frozen=True):
    """One prompt and its answers."""

    id: str
    family: str
    category: str
    origin: Origin
    prompt: str
    a: CheckedAnswer
    b: CheckedAnswer
    teacher: CheckedAnswer | None = None
    judgement: Judgement | None = None


class AdapterInfo(msgspec.Struct, frozen=True):
    """An adapter folder."""

    folder: Path
    checkpoint: str
    """Which step of training it holds, such as `best, step 40`; empty if the file does not say."""
    rank: int
    scale: float
    n_trainable: int
    changes_nothing: bool

    @property
    def origin(self) -> str:
        """The folder, with the checkpoint if it is known: `adapters/demo (best, step 40)`."""
        return f"{self.folder} ({self.checkpoint})" if self.checkpoint else str(self.folder)


class ModelInfo(msgspec.Struct, frozen=True):
    """One of the two models."""

    name: str
    """Its name in the report: `base`, `distilled`, or a folder's name."""
    path: Path
    model_type: str
    n_parameters: int
    source: str
    """The source of its conversion; empty if unknown."""
    revision: str
    """Commit of the Hub repository; empty for files."""
    adapter: AdapterInfo | None = None
    training: TrainingRun | None = None


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """One comparison."""

    format: int = FORMAT
    created_at: str
    machine: dict[str, str]
    versions: dict[str, str]
    a: ModelInfo
    b: ModelInfo
    teacher: str
    collected: Collected | None
    settings: dict[str, Any]
    tables: dict[str, Table]
    findings: tuple[str, ...]
    warnings: tuple[str, ...]
    answers: tuple[AnsweredPrompt, ...]
    seconds: float

    @property
    def is_before_and_after(self) -> bool:
        """True if model b is model a with an adapter."""
        return self.a.path == self.b.path and self.a.adapter is None and self.b.adapter is not None

    def summary(self) -> str:
        """Return one line with the main figures."""
        rows = self.tables["held_out"].rows
        figures = (f"{name} {rows[name][0].text} → {rows[name][1].text}" for name in ("loss", "token accuracy"))
        return f"test {', '.join(figures)}"


def language_name(language: str) -> str:
    """Return a language as people write it; `code` if it is unknown."""
    return LANGUAGES.get(language, language or "code")
