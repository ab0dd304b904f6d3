"""The report: everything a comparison found and what it was made with, as `report.json` holds it.

Every other form (page, Markdown, terminal) is written from this. `report.json` is `Report` field by field, and what
each field holds is said at the dataclass of its name:

field           what it is                                                             dataclass
schema_version  2; raised when a field changes its name or meaning                     -
when            UTC, ISO 8601                                                          -
machine         where it ran                                                           MachineFacts
versions        package to version                                                     -
sides           `base` and `distilled`: name, model, adapter, the course of training   sides.SideFacts
teacher         whose answers stand beside, or null                                    -
history         collected answers and their cost, times of the stages before           history.History
settings        of this comparison; null is the default                                config.CompareConfig
definitions     of every figure, in words                                              -
test            figures on held-out rows, `by_category` the same for each              figures.HeldOut
answers         test prompts and sampled rows with base's, distilled's, teacher's      answers.PromptAnswers
answer_figures  whether they end, their length, repetition, speed and memory           answer_figures.AnswerFigures
judged          what a judge preferred, or null where nobody judged                    judge.Judged
code            checks of each block, blocks that stand, habits                        code.CodeFindings
vocabulary      the teacher's terms and how far distilled moved toward them            vocabulary.Vocabulary
observations    sentences made from these figures                                      -
cautions        what to know before believing them                                     -
seconds         by part of the comparison                                              -

`base` and `distilled` are the first and the second side everywhere, also where two adapters or models are compared;
`sides` has their names. Figures that could not be had are null: the bounds of a difference over fewer than five
families, a fault where nothing checks the language, a price that is not known.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_distill import device
from mlx_distill.compare.answer_figures import AnswerFigures
from mlx_distill.compare.answers import PromptAnswers
from mlx_distill.compare.code import CodeFindings
from mlx_distill.compare.config import AnswerConfig
from mlx_distill.compare.figures import CONFIDENCE, RESAMPLES, HeldOut
from mlx_distill.compare.history import History
from mlx_distill.compare.judge import Judged
from mlx_distill.compare.sides import SIDES, SideFacts, names_of
from mlx_distill.compare.vocabulary import PRIOR_TERMS, Vocabulary
from mlx_distill.config import to_plain
from mlx_distill.models.load import Student
from mlx_distill.records import Example
from mlx_distill.storage.package_data import shipped

SCHEMA_VERSION = 2
"""Raised when a field of report.json changes its name or meaning; a new field does not raise it."""


def definitions(names: Mapping[str, str]) -> dict[str, str]:
    """Every figure in words."""
    base, distilled = names["base"], names["distilled"]
    return {
        "loss": "mean of -log p(token) over the answer tokens of the test rows, natural logarithm, end tokens included",
        "perplexity": "exp(loss)",
        "token_accuracy": "share of those tokens that are the model's most probable one",
        "difference": f"{distilled} minus {base}, on the same rows",
        "interval": (
            f"{100 * CONFIDENCE:.0f} %, paired bootstrap over families ({RESAMPLES:,} resamples, seeded, "
            "percentiles expanded for few families)"
        ),
        "code": (
            "of the fenced blocks in the answers, those that are whole and that a parser of their "
            "language takes; habits are counted in these"
        ),
        "vocabulary": (
            f"log-odds of the teacher's answers in train.jsonl against {base}'s answers, with an "
            f"informative Dirichlet prior of {PRIOR_TERMS:.0f} terms (Monroe et al. 2008), for terms that the teacher "
            "uses in a fifth of its families; a line that an answer repeats counts once. The answers are to other "
            "questions than the teacher's, so part of a difference may be of the subject. How far the terms moved is "
            f"counted in each answer for terms that were chosen without it, since those that {base} lacks by chance "
            "would be more frequent in any other answer"
        ),
        "answers": (
            "to the test prompts and to questions of test rows; finished: share that ends before the limit; length: "
            "tokens of the student's tokenizer; repetition: share of an answer's runs of four words that stand in it "
            "before"
        ),
        "tokens_per_second": "of one answer, while all answers of its model are written at the same time",
        "peak_memory": "the most that MLX held for arrays while the answers were written, weights included",
        "win_rate": (
            f"wins of {distilled} and half of the ties, of the pairs of answers with a verdict in both orders; a pair "
            "is won where both orders say so, and a tie where they disagree"
        ),
    }


@dataclass(frozen=True)
class MachineFacts:
    """Where it ran."""

    platform: str
    device: str
    kind: str
    """`metal` or `cpu`."""
    blas: str
    """Empty on a Mac."""
    dtype: str
    """What was computed in."""


@dataclass(frozen=True)
class Report:
    """One comparison, complete. `test` and `answers` are the findings, the rest says what they are findings of."""

    schema_version: int
    when: str
    """UTC, ISO 8601."""
    machine: MachineFacts
    versions: Mapping[str, str]
    sides: Mapping[str, SideFacts]
    """`base` and `distilled`, the first and the second."""
    teacher: str | None
    """Whose answers stand beside the student's; None where it was left out."""
    history: History
    settings: Mapping[str, Any]
    definitions: Mapping[str, str]
    test: HeldOut
    answers: tuple[PromptAnswers, ...]
    answer_figures: AnswerFigures
    judged: Judged | None
    """None where nobody judged."""
    code: CodeFindings
    vocabulary: Vocabulary
    observations: tuple[str, ...]
    cautions: tuple[str, ...]
    seconds: Mapping[str, float]
    """By part of the work."""

    @property
    def names(self) -> dict[str, str]:
        """What those who answered are called, by `base`, `distilled` and `teacher`."""
        return names_of(self.sides)

    @property
    def is_before_and_after(self) -> bool:
        """Whether the second side is what training made of the first."""
        return (self.names["base"], self.names["distilled"]) == SIDES


def settings_of(config: AnswerConfig) -> dict[str, Any]:
    """The settings as they can be given again elsewhere: a shipped file is the default, wherever it lies here."""
    settings: dict[str, Any] = to_plain(config)
    if config.test_prompts == shipped("test_prompts.jsonl"):
        settings["test_prompts"] = None
    return settings


def machine_facts(student: Student) -> MachineFacts:
    """This machine and what the student is computed in here."""
    hardware = device.prepare()
    dtype = str(student.dtype).removeprefix("mlx.core.")
    return MachineFacts(
        platform.platform(), hardware.name, hardware.kind, hardware.blas.name if hardware.blas else "", dtype
    )


def cautions(sides: Iterable[SideFacts], rows: Sequence[Example], system: str) -> list[str]:
    """What a reader of the figures must know before believing them."""
    found = []
    for side in sides:
        model, adapter = side.model, side.adapter
        if not adapter:
            continue
        if adapter.changes_nothing:
            found.append(
                f"The adapter in {adapter.folder} changes nothing: its weights are zero, so {side.name} is the same as "
                "the model without it. Train it with `mlx-distill train`."
            )
        if adapter.trained_on and Path(adapter.trained_on).name != model.path.name:
            found.append(
                f"The adapter in {adapter.folder} was trained on {adapter.trained_on} and is compared on {model.path}. "
                "Unless these are the same model, name the one that it was trained on."
            )
    systems = {"".join(message.content for message in row.messages if message.role == "system") for row in rows}
    if systems != {system}:
        other = min(systems - {system})
        found.append(
            f"The test rows were prepared with the system message {other!r}, the test prompts are asked with "
            f"{system!r}. Give both the same, or the answers show the student under a message it was not trained with."
        )
    return found
