"""The report: everything a comparison found and what it was made with, as `report.json` holds it.

Every other form (page, Markdown, terminal) is written from this. `report.json` is `Report` field by field, and what
each field holds is said at the dataclass of its name:

field           what it is                                                             dataclass
schema_version  1; raised when a field changes its name or meaning                     -
when            UTC, ISO 8601                                                          -
machine         where it ran                                                           MachineFacts
versions        package to version                                                     -
model           what was distilled into                                                StudentFacts
adapter         what was learnt                                                        AdapterFacts
teacher         whose answers stand beside, or null                                    -
history         collected answers and their cost, the course of training, stage times  history.History
settings        of this comparison                                                     CompareConfig
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

Figures that could not be had are null: the bounds of a difference over fewer than five families, a fault where nothing
checks the language, a price that is not known.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx.utils import tree_flatten

from mlx_distill import machine
from mlx_distill.comparison.answer_figures import AnswerFigures
from mlx_distill.comparison.answers import PromptAnswers
from mlx_distill.comparison.code import CodeFindings
from mlx_distill.comparison.figures import CONFIDENCE, RESAMPLES, HeldOut
from mlx_distill.comparison.history import History
from mlx_distill.comparison.judge import Judged
from mlx_distill.comparison.vocabulary import Vocabulary
from mlx_distill.records import Example
from mlx_distill.students.adapter import ADAPTER_FILE, Adapter
from mlx_distill.students.loading import Student

SCHEMA_VERSION = 1
"""Raised when a field of report.json changes its name or meaning; a new field does not raise it."""

DEFINITIONS = {
    "loss": "mean of -log p(token) over the answer tokens of the test rows, natural logarithm, end tokens included",
    "perplexity": "exp(loss)",
    "token_accuracy": "share of those tokens that are the model's most probable one",
    "difference": "distilled minus base, on the same rows",
    "interval": (
        f"{100 * CONFIDENCE:.0f} %, paired bootstrap over families ({RESAMPLES:,} resamples, seeded, "
        "percentiles expanded for few families)"
    ),
    "code": (
        "of the fenced blocks in the answers, those that are whole and that a parser of their "
        "language takes; habits are counted in these"
    ),
    "vocabulary": (
        "log-odds of the teacher's answers in train.jsonl against base's answers, with an "
        "informative Dirichlet prior (Monroe et al. 2008), for terms that the teacher uses in a fifth of its "
        "families; a line that an answer repeats counts once. The terms are chosen by base's answers and those are "
        "about other prompts than the teacher's, so part of a difference may be of the subject"
    ),
    "answers": (
        "to the test prompts and to questions of test rows; finished: share that ends before the limit; length: tokens "
        "of the student's tokenizer; repetition: share of an answer's runs of four words that stand in it before"
    ),
    "tokens_per_second": "of one answer, while all answers of its model are written at the same time",
    "peak_memory": "the most that MLX held for arrays while the answers were written, weights included",
    "win_rate": (
        "wins of distilled and half of the ties, of the pairs of answers with a verdict in both orders; a pair is won "
        "where both orders say so, and a tie where they disagree"
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
class StudentFacts:
    """What was distilled into."""

    path: Path
    model_type: str
    n_parameters: int
    quantized: bool


@dataclass(frozen=True)
class AdapterFacts:
    """What was learnt."""

    folder: Path
    file: str
    choice: str
    """Which moment of training it is, such as `best, step 40`; empty where the folder does not say."""
    trained_on: str
    """The model folder that it was trained on; empty where the folder does not say."""
    rank: int
    scale: float
    n_trainable: int
    changes_nothing: bool


@dataclass(frozen=True)
class Report:
    """One comparison, complete. `test` and `answers` are the findings, the rest says what they are findings of."""

    schema_version: int
    when: str
    """UTC, ISO 8601."""
    machine: MachineFacts
    versions: Mapping[str, str]
    model: StudentFacts
    adapter: AdapterFacts
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


def machine_facts(student: Student) -> MachineFacts:
    """This machine and what the student is computed in here."""
    device = machine.prepare()
    dtype = str(student.dtype).removeprefix("mlx.core.")
    return MachineFacts(platform.platform(), device.name, device.kind, device.blas.name if device.blas else "", dtype)


def student_facts(student: Student) -> StudentFacts:
    """Call it while no adapter is in place: it counts every weight of the model."""
    return StudentFacts(student.path, student.config["model_type"], student.n_parameters, student.quantized)


def adapter_facts(adapter: Adapter) -> AdapterFacts:
    """The adapter's shape and which moment of training it holds."""
    n_trainable = sum(
        value.size
        for layer in adapter.layers.values()
        for name, value in tree_flatten(layer.parameters())
        if name.startswith("lora_") or name == "m"  # "m" is DoRA's magnitude
    )
    training = _training_record(adapter.folder)
    return AdapterFacts(
        folder=adapter.folder,
        file=ADAPTER_FILE,
        choice=f"best, step {training['best_step']}" if "best_step" in training else "",
        trained_on=str(training.get("model", "")),
        rank=adapter.rank,
        scale=adapter.scale,
        n_trainable=n_trainable,
        changes_nothing=adapter.is_zero,
    )


def cautions(model: StudentFacts, adapter: AdapterFacts, rows: Sequence[Example], system: str) -> list[str]:
    """What a reader of the figures must know before believing them."""
    found = []
    if adapter.changes_nothing:
        found.append(
            f"The adapter in {adapter.folder} changes nothing: its weights are zero, so base and distilled are the "
            "same model. Train it with `mlx-distill train`."
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


def _training_record(folder: Path) -> dict[str, Any]:
    """`run.json` of a folder that training wrote; empty for an adapter that came from elsewhere."""
    try:
        record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        return {**record["settings"], **record["result"]}
    except (OSError, ValueError, KeyError, TypeError):  # missing, broken, or of another program
        return {}
