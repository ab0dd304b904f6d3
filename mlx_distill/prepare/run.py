"""The prepare stage: choose, filter, measure, split and write, in that order."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from msgspec.structs import force_setattr

from mlx_distill.config import Config, doc, to_plain
from mlx_distill.errors import InputError
from mlx_distill.events import Report, Warning, ignore
from mlx_distill.prepare.decontaminate import Likeness
from mlx_distill.prepare.filter_rows import Sieve
from mlx_distill.prepare.filters import FilterConfig
from mlx_distill.prepare.select import JOURNAL, Selection, select
from mlx_distill.prepare.split import Assignment, assign, named_splits
from mlx_distill.prepare.token_stats import Lengths, Row, by_category, by_split, lengths_of
from mlx_distill.records import SPLITS, STUDENT_SYSTEM
from mlx_distill.storage.atomic import json_text, jsonl_text, write_texts
from mlx_distill.storage.package_data import shipped

MOST_NAMED = 5
"""How many ids a caution names; the files name all."""


class PrepareConfig(Config, frozen=True):
    """What becomes a row, and where it goes."""

    data: Annotated[Path, doc("folder of teacher_data.jsonl; the rows are written beside it")]
    model: Annotated[Path, doc("folder of the converted student, for its tokenizer and chat template")]
    system: Annotated[str, doc("the student's system message in every row; empty: none")] = STUDENT_SYSTEM
    test_prompts: (
        Annotated[
            Path, doc("JSONL of the prompts kept for comparing; near copies are rejected (default: the shipped four)")
        ]
        | None
    ) = None
    max_length: Annotated[int, doc("longest row in tokens; longer ones are rejected, never cut", ge=1)] = 2048
    near_copy: Annotated[
        float, doc("likeness to a test prompt, in topic words or in code, from which an answer is rejected", gt=0, le=1)
    ] = 0.75
    valid_share: Annotated[
        float, doc("share of families, by hash, held out to choose the best checkpoint", ge=0, lt=1)
    ] = 0.1
    test_share: Annotated[
        float, doc("share of families, by hash, held out for the figures that are claimed", ge=0, lt=1)
    ] = 0.1
    seed: Annotated[int, doc("decides, with its name, where a family goes that names no split")] = 0
    filter: FilterConfig = FilterConfig()

    def __post_init__(self) -> None:
        if self.test_prompts is None:
            force_setattr(self, "test_prompts", shipped("test_prompts.jsonl"))
        super().__post_init__()

    def check(self) -> None:
        if self.valid_share + self.test_share >= 1:
            raise ValueError("valid_share and test_share together must be below 1, or nothing is left for train")


@dataclass(frozen=True)
class PrepareResult:
    """What was made."""

    data: Path
    n_records: int
    """Answers in the journal."""
    n_unanswered: int
    """Current prompts without an answer."""
    n_rows: int
    n_families: Mapping[str, int]
    """Families with rows, for each split."""
    rejected: Mapping[str, int]
    """Reason to number of answers; rejected.jsonl names each."""
    n_identity_phrases: int
    """Kept answers in which the teacher speaks of itself as a model."""
    total: Lengths
    splits: tuple[Lengths, ...]
    categories: tuple[Lengths, ...]


def run(config: PrepareConfig, report: Report = ignore) -> PrepareResult:
    """Write train.jsonl, valid.jsonl, test.jsonl, rejected.jsonl and stats.json into `config.data`, all together.

    The same inputs give the same bytes. Raises MissingError or InputError where a file is missing or wrong, where a
    family names two splits, and where a split would be without a row; nothing is written then.
    """
    selection = select(config.data, config.filter.stop_reasons)
    named = named_splits(selection.members)
    sieve = Sieve(config)
    sieve.rejected.extend(selection.rejected)
    rows = sieve.keep(selection.records, report)
    if not rows:
        raise InputError(
            f"{config.data / JOURNAL}: none of its {selection.n_records} answers can be used.",
            "Collect complete answers with `mlx-distill collect`, or change the settings that reject them.",
            [f"{reason}: {count}" for reason, count in Counter(r.reason for r in sieve.rejected).items()],
        )
    assignment = assign(
        [row.example.family for row in rows],
        named,
        valid_share=config.valid_share,
        test_share=config.test_share,
        seed=config.seed,
    )
    rows = [dataclasses.replace(row, split=assignment.splits[row.example.family]) for row in rows]
    return _write(config, selection, sieve, assignment, rows, report)


def _write(
    config: PrepareConfig,
    selection: Selection,
    sieve: Sieve,
    assignment: Assignment,
    rows: Sequence[Row],
    report: Report,
) -> PrepareResult:
    from mlx_distill.prepare.leakage import look_alikes

    examples = {split: [row.example for row in rows if row.split == split] for split in SPLITS}
    alike = look_alikes(examples["train"], [*examples["valid"], *examples["test"]])
    result = PrepareResult(
        data=config.data,
        n_records=selection.n_records,
        n_unanswered=selection.n_unanswered,
        n_rows=len(rows),
        n_families={split: len({example.family for example in examples[split]}) for split in SPLITS},
        rejected=dict(sorted(Counter(rejection.reason for rejection in sieve.rejected).items())),
        n_identity_phrases=len(sieve.identity_ids),
        total=lengths_of("all", rows),
        splits=by_split(rows),
        categories=by_category(rows),
    )
    stats: dict[str, Any] = {
        "settings": {
            name: value for name, value in to_plain(config).items() if name not in ("data", "model", "test_prompts")
        },
        "n_records": result.n_records,
        "n_unanswered": result.n_unanswered,
        "n_rows": result.n_rows,
        "rejected": result.rejected,
        "n_families": result.n_families,
        "families_moved_to": assignment.moved,
        "identity_phrases": sieve.identity_ids,
        "nearest_to_a_test_prompt": _nearest(sieve.nearest_kept),
        "look_alikes": [pair.to_json() for pair in alike],
        "lengths": {
            "total": dataclasses.asdict(result.total),
            "splits": [dataclasses.asdict(lengths) for lengths in result.splits],
            "categories": [dataclasses.asdict(lengths) for lengths in result.categories],
        },
    }
    files = {
        config.data / f"{split}.jsonl": jsonl_text(example.to_json() for example in examples[split]) for split in SPLITS
    }
    files[config.data / "rejected.jsonl"] = jsonl_text(rejection.to_json() for rejection in sieve.rejected)
    files[config.data / "stats.json"] = json_text(stats)
    write_texts(files)
    for text in _cautions(result, sieve.identity_ids, assignment, [(a.held_out, a.train) for a in alike]):
        report(Warning(text))
    return result


def _nearest(kept: tuple[str, Likeness] | None) -> dict[str, Any] | None:
    """How near the kept answers come to the test prompts, so that the threshold can be judged."""
    if kept is None or not kept[1].value:
        return None
    record_id, likeness = kept
    return {
        "id": record_id,
        "test_prompt": likeness.test_id,
        "measure": likeness.measure,
        "likeness": round(likeness.value, 4),
    }


def _cautions(
    result: PrepareResult, identity_ids: Sequence[str], assignment: Assignment, alike: Sequence[tuple[str, str]]
) -> list[str]:
    cautions: list[str] = []
    if result.n_unanswered:
        cautions.append(f"Prompts without an answer: {result.n_unanswered}. `mlx-distill collect` asks for them.")
    if identity_ids:
        cautions.append(
            f"Answers that speak of the teacher as a model: {len(identity_ids)} ({_some(identity_ids)}). The student "
            "will learn to; --reject-identity leaves them out."
        )
    for family, split in assignment.moved.items():
        cautions.append(
            f"The hash sent no family to {split}, so {family} was moved there. With few families, name the splits in "
            "the prompts file."
        )
    if alike:
        pairs = [f"{held_out} ~ {train}" for held_out, train in alike]
        cautions.append(
            f"Held-out prompts that read almost like a train prompt: {len(alike)} ({_some(pairs)}), which flatters the "
            "figures. Give them one family."
        )
    for lengths in result.splits:
        if not lengths.n_rows:
            cautions.append(f"{lengths.name} has no rows: its share is 0 and no prompt names it.")
    return cautions


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more
