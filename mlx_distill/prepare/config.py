"""The settings and the result of `prepare`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from mlx_distill.config import Config, doc
from mlx_distill.records import STUDENT_SYSTEM, Split
from mlx_distill.storage import files
from mlx_distill.storage.package_data import package_data_path


class FilterConfig(Config, frozen=True):
    """The requirements for an answer to become a row."""

    renamed = {  # noqa: RUF012
        "near_duplicate": "dedup_threshold",
        "shortest_answer": "min_answer_tokens",
        "longest_answer": "max_answer_tokens",
    }
    removed = {"stop_reasons": "only complete answers are learned (end_turn, stop_sequence)"}  # noqa: RUF012

    min_answer_tokens: Annotated[int, doc("minimum tokens of an answer, with its end token", ge=1)] = 1
    max_answer_tokens: Annotated[int, doc("maximum tokens of an answer, with its end token", ge=1)] | None = None
    require_parsing_code: Annotated[bool, doc("reject answers with Python code that does not parse")] = True
    dedup_threshold: Annotated[
        float, doc("reject rows this similar to an earlier row (Jaccard of word trigrams); 0 keeps all", ge=0, le=1)
    ] = 0.8
    reject_identity: Annotated[bool, doc('reject "as an AI" and "I am Claude"; otherwise only count them')] = True

    def check(self) -> None:
        if self.max_answer_tokens is not None and self.max_answer_tokens < self.min_answer_tokens:
            raise ValueError(f"max_answer_tokens ({self.max_answer_tokens}) is below min_answer_tokens")


class PrepareConfig(Config, frozen=True):
    """The settings of the rows and of their splits."""

    renamed = {  # noqa: RUF012
        "near_copy": "contamination_threshold",
        "valid_share": "valid_fraction",
        "test_share": "test_fraction",
    }

    data: Annotated[Path, doc("folder of teacher_data.jsonl; the rows are written to the same folder")]
    model: Annotated[Path, doc("folder of the converted student, for its tokenizer and chat template")]
    system: Annotated[str, doc("student's system message in every row; empty: no system message")] = STUDENT_SYSTEM
    test_prompts: Annotated[Path, doc("JSONL of prompts to keep out of training; default: the four shipped")] | None = (
        None
    )
    max_length: Annotated[int, doc("maximum tokens of a row; longer ones are rejected, not cut", ge=1)] = 2048
    thinking: Annotated[
        Literal["keep", "drop", "mask"],
        doc("reasoning in answers (<think>): learn it, remove it, or let the student read it without learning it"),
    ] = "keep"
    contamination_threshold: Annotated[
        float, doc("reject answers that contain this share of a test prompt's word trigrams", gt=0, le=1)
    ] = 0.7
    valid_fraction: Annotated[float, doc("fraction of families for choosing the checkpoint", ge=0, lt=1)] = 0.1
    test_fraction: Annotated[float, doc("fraction of families for the final measurement", ge=0, lt=1)] = 0.1
    seed: Annotated[int, doc("random seed for splitting families without an explicit split")] = 0
    filter: FilterConfig = FilterConfig()

    def check(self) -> None:
        if self.valid_fraction + self.test_fraction >= 1:
            raise ValueError("valid_fraction and test_fraction together must be below 1, or nothing is left for train")

    @property
    def test_prompts_file(self) -> Path:
        return self.test_prompts or package_data_path("test_prompts.jsonl")

    def inputs(self) -> list[Path]:
        """Return the files that decide the result."""
        data = [self.data / name for name in (files.TEACHER_DATA, files.PROMPT_INDEX)]
        return [*data, *(self.model / name for name in files.TOKENIZER_FILES), self.test_prompts_file]

    def outputs(self) -> list[Path]:
        """Return the files that `run` writes."""
        names = (files.TRAIN, files.VALID, files.TEST, files.REJECTED, files.STATS)
        return [self.data / name for name in names]


@dataclass(frozen=True)
class TokenStats:
    """Token counts of a group of rows. Percentiles are nearest-rank: lengths that occur."""

    name: str
    """`all`, a split, or a category."""
    n_rows: int
    shortest: int
    median: int
    p90: int
    longest: int
    n_tokens: int
    n_supervised: int
    """Answer tokens, the end token of each answer included."""
    supervised_share: float


@dataclass(frozen=True)
class Leak:
    """A held-out prompt that a train prompt nearly repeats. In the same family they would share a split."""

    held_out: str
    train: str
    similarity: float
    """Share of the held-out prompt's word trigrams that the train prompt contains."""


@dataclass(frozen=True)
class Nearest:
    """The row that contains most of a test prompt: it shows how far the rows are from the contamination threshold."""

    id: str
    test_prompt: str
    likeness: float
    """Share of the word trigrams of the test prompt, or of its known answer, that the row contains."""


@dataclass(frozen=True)
class PrepareResult:
    """Counts and lengths of the prepared rows. stats.json holds them too."""

    data: Path
    n_records: int
    """Answers in teacher_data.jsonl."""
    n_unanswered: int
    """Current prompts without an answer."""
    n_rows: int
    rejected: Mapping[str, int]
    """Number of rejected answers by reason. rejected.jsonl has a line for each."""
    n_families: Mapping[str, int]
    """Families with rows, by split."""
    families_moved_to: Mapping[str, Split]
    """Families that moved out of train because a held-out split was empty."""
    identity_phrases: tuple[str, ...]
    """Ids of the rows in which the teacher calls itself a model."""
    n_thoughts: int
    """Answers with reasoning in them."""
    nearest_to_a_test_prompt: Nearest | None
    look_alikes: tuple[Leak, ...]
    total: TokenStats
    splits: tuple[TokenStats, ...]
    categories: tuple[TokenStats, ...]

    def summary(self) -> str:
        return ", ".join(f"{split.name} {split.n_rows:,}" for split in self.splits) + " rows"
