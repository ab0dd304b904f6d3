"""The prepare stage: select, filter, split and write."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from mlx_distill.config import to_plain
from mlx_distill.errors import InputError
from mlx_distill.events import Progress, Report, Warning, ignore
from mlx_distill.prepare.config import PrepareConfig, PrepareResult
from mlx_distill.prepare.filters import RowFilter
from mlx_distill.prepare.rows import Row, token_stats
from mlx_distill.prepare.select import Rejection, select
from mlx_distill.prepare.split import assign_splits, find_leaks, named_splits
from mlx_distill.records import SPLITS, Split
from mlx_distill.storage import files
from mlx_distill.storage.atomic import json_text, jsonl_lines, only_writer, write_texts

MAX_NAMED = 5
"""How many ids a warning lists. The files list all of them."""


def run(config: PrepareConfig, report: Report = ignore) -> PrepareResult:
    """Write train.jsonl, valid.jsonl, test.jsonl, rejected.jsonl and stats.json into `config.data`, all or none.

    Equal inputs give equal bytes. Raises MissingError or InputError for a file that is missing or invalid, for a family
    whose prompts name two splits, for a split without rows, and if another process prepares the same folder. In these
    cases nothing is written.
    """
    with only_writer(config.data):
        return _prepare(config, report)


def _prepare(config: PrepareConfig, report: Report) -> PrepareResult:
    selection = select(config.data)
    named = named_splits(selection.prompts)
    row_filter = RowFilter(config)
    for done, record in enumerate(selection.records, start=1):
        row_filter.add(record)
        report(Progress("prepare", done, len(selection.records), "answers"))
    rows = row_filter.rows
    rejected = [*selection.rejected, *row_filter.rejected]
    counts = Counter(str(rejection.reason) for rejection in rejected)
    rejections = [f"rejected: {reason}: {count}" for reason, count in counts.items()]
    if not rows:
        raise InputError(
            f"{config.data / files.TEACHER_DATA}: none of its {selection.n_records} answers can be used.",
            "Collect complete answers with `mlx-distill collect`, or change the settings that reject them.",
            rejections,
        )
    splits, moved = assign_splits((row.example.family for row in rows), named, config, rejections)
    by_split = {split: [row for row in rows if splits[row.example.family] == split] for split in SPLITS}
    held_out = [*by_split["valid"], *by_split["test"]]
    by_category: dict[str, list[Row]] = {}
    for row in rows:
        by_category.setdefault(row.example.category, []).append(row)
    result = PrepareResult(
        data=config.data,
        n_records=selection.n_records,
        n_unanswered=selection.n_unanswered,
        n_rows=len(rows),
        rejected=dict(sorted(counts.items())),
        n_families={split: len({row.example.family for row in group}) for split, group in by_split.items()},
        families_moved_to=moved,
        identity_phrases=tuple(row_filter.identity_ids),
        n_thoughts=row_filter.n_thoughts,
        nearest_to_a_test_prompt=row_filter.nearest,
        look_alikes=tuple(find_leaks(by_split["train"], held_out, config.contamination_threshold)),
        total=token_stats("all", rows),
        splits=tuple(token_stats(split, group) for split, group in by_split.items()),
        categories=tuple(token_stats(category, group) for category, group in sorted(by_category.items())),
    )
    _write(config, result, by_split, rejected)
    for text in _warnings(config, result):
        report(Warning(text))
    return result


def _write(
    config: PrepareConfig, result: PrepareResult, by_split: Mapping[Split, Sequence[Row]], rejected: Sequence[Rejection]
) -> None:
    settings, stats = to_plain(config), to_plain(result)
    for path in ("data", "model", "test_prompts"):  # paths differ between folders; the bytes must not
        del settings[path]
    del stats["data"]
    stats["lengths"] = {name: stats.pop(name) for name in ("total", "splits", "categories")}
    names: dict[Split, str] = {"train": files.TRAIN, "valid": files.VALID, "test": files.TEST}
    texts: dict[Path, Iterable[str]] = {
        config.data / names[split]: jsonl_lines(row.example.to_json() for row in rows)
        for split, rows in by_split.items()
    }
    texts[config.data / files.REJECTED] = jsonl_lines(rejection.to_json() for rejection in rejected)
    texts[config.data / files.STATS] = [json_text({"settings": settings, **stats})]
    write_texts(texts)


def _warnings(config: PrepareConfig, result: PrepareResult) -> Iterator[str]:
    if result.n_unanswered:
        yield f"Prompts without an answer: {result.n_unanswered}. `mlx-distill collect` asks the teacher."
    if ids := result.identity_phrases:
        yield f"Answers in which the teacher calls itself a model: {_list(ids)}. --reject-identity rejects them."
    if result.n_thoughts and config.thinking == "keep":
        yield f"Answers with reasoning (<think>): {result.n_thoughts}. The student learns it, unless --thinking is set."
    for family, split in result.families_moved_to.items():
        yield f"The hash put no family into {split}, so {family} moved there. The prompts can name their split."
    if leaks := result.look_alikes:
        pairs = _list([f"{leak.held_out} ~ {leak.train}" for leak in leaks])
        yield (
            f"Held-out prompts that a train prompt nearly repeats: {pairs}. The measured figures will be too good. "
            "Give both prompts the same family."
        )
    for stats in result.splits:
        if not stats.n_rows:
            yield f"{stats.name} has no rows: its fraction is 0, and no prompt names this split."


def _list(names: Sequence[str]) -> str:
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return f"{len(names)} ({', '.join(names[:MAX_NAMED])}{more})"
