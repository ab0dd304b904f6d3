"""More prompts from few: ask the teacher for variations of each base prompt and write a larger prompt file."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from msgspec import structs

from mlx_distill.collect.config import AskConfig
from mlx_distill.collect.prompts import read_prompts
from mlx_distill.collect.run import failed_lines
from mlx_distill.config import doc
from mlx_distill.errors import InputError, TeacherError
from mlx_distill.events import Report, Warning, ignore
from mlx_distill.records import Prompt, Request, TeacherRecord, build_messages
from mlx_distill.sanitize import surrogate_problem
from mlx_distill.similarity import NearDuplicateIndex
from mlx_distill.storage import files
from mlx_distill.storage.atomic import write_jsonl
from mlx_distill.teachers import ask, open_teacher
from mlx_distill.teachers import estimate as estimates
from mlx_distill.teachers.estimate import Estimate
from mlx_distill.teachers.pending import FailedPrompt
from mlx_distill.teachers.pricing import UsageReport

EXPAND_SYSTEM = (
    "You write prompts for a data set. Given a prompt that a developer typed, write other prompts of the same field, "
    "each a situation of its own: another constraint, data shape, domain or difficulty, in natural words of one to "
    "three sentences. Never paraphrase, and never fill in a template. Answer with a JSON list of strings and nothing "
    "else."
)
NEAR_COPY_SIMILARITY = 0.6
"""Two prompts with this Jaccard index of their word trigrams are near copies: of ten words, one at an end differs."""


class ExpandConfig(AskConfig, frozen=True, kw_only=True):
    """Settings of `expand`."""

    data: Annotated[Path, doc("folder of the teacher's answers (expand.jsonl)")]
    out: Annotated[Path, doc("the larger prompt file  [default: PROMPTS with .expanded.jsonl]")] | None = None
    variations: Annotated[int, doc("variations to ask for, of each base prompt", ge=1, le=50)] = 3

    def outputs(self) -> list[Path]:
        """The larger prompt file."""
        return [self.out or self.prompts.with_name(f"{self.prompts.stem}.expanded.jsonl")]


@dataclass(frozen=True)
class ExpandResult:
    """The larger prompt file: every prompt of the old one, each family followed by its new variations."""

    path: Path
    n_bases: int
    n_prompts: int
    n_variations: int
    """New prompts."""
    n_near_copies: int
    """Left out: too similar to another prompt."""
    failed: tuple[FailedPrompt, ...]
    """Base prompts without variations, and why."""
    seconds: float
    cost_usd: float
    usage: UsageReport
    """Usage of this run."""
    total_usage: UsageReport
    """Usage of the whole project."""


def run(config: ExpandConfig, report: Report = ignore) -> ExpandResult:
    """Ask for variations of every base prompt and write the larger prompt file.

    Variations join the family, category and split of their base. Every answer is saved, so a rerun asks nothing again
    and writes the same file. Raises what `collect.run` raises; the file is written only at the end.
    """
    prompts = read_prompts(config.prompts)
    teacher = open_teacher(config.teacher, config.model)
    requests = _requests(teacher.name, prompts, config)
    result = ask.ask(
        teacher,
        requests,
        config.data / files.EXPANSIONS,
        concurrency=config.concurrency,
        budget=config.budget,
        report=report,
        policy=config.policy,
        job="expand",
    )
    result.raise_if_stopped()
    texts: dict[str, list[str]] = {}
    failed = list(result.failed)
    for (prompt, request), record in zip(requests, result.records(), strict=True):
        try:
            if record:
                texts[prompt.id] = parse_variations(record)
        except ValueError as error:
            failed.append(FailedPrompt(prompt.id, request.key, str(error)))
    if not texts:
        raise TeacherError(f"{teacher.name} gave no variations.", "Choose another teacher.", failed_lines(failed))
    expanded, n_near_copies = _expanded(prompts, texts, config.variations)
    n_new, n_wanted = len(expanded) - len(prompts), config.variations * len(requests)
    if n_new < n_wanted:
        left_out = f"; {n_near_copies} near copies were left out" if n_near_copies else ""
        report(Warning(f"{n_new} of {n_wanted} variations were taken{left_out}."))
    [out] = config.outputs()
    write_jsonl(out, [prompt.to_json() for prompt in expanded])
    return ExpandResult(
        path=out,
        n_bases=len(requests),
        n_prompts=len(expanded),
        n_variations=n_new,
        n_near_copies=n_near_copies,
        failed=tuple(failed),
        seconds=result.seconds,
        cost_usd=result.cost_usd,
        usage=result.usage,
        total_usage=result.total_usage,
    )


def estimate(config: ExpandConfig) -> Estimate:
    """Return what `run` would ask and its cost. Sends and writes nothing."""
    teacher = open_teacher(config.teacher, config.model)
    requests = _requests(teacher.name, read_prompts(config.prompts), config)
    return estimates.estimate(teacher, requests, config.data / files.EXPANSIONS, budget=config.budget)


def _requests(teacher: str, prompts: Sequence[Prompt], config: ExpandConfig) -> list[tuple[Prompt, Request]]:
    """Return one request for each base prompt."""
    bases = [prompt for prompt in prompts if prompt.id == prompt.family]
    if not bases:
        raise InputError(
            f"{config.prompts}: no base prompt (a prompt whose family is its own id).",
            "Remove the family of a prompt, or set it to the prompt's id.",
        )
    question = f"Write {config.variations} variations of this prompt:\n\n"
    return [
        (base, Request(teacher, build_messages(question + base.text, EXPAND_SYSTEM), config.max_tokens))
        for base in bases
    ]


def parse_variations(record: TeacherRecord) -> list[str]:
    """Return the strings of an answer that is a JSON list, with or without words or a fence around it.

    Raises ValueError if the answer is not complete or contains no such list.
    """
    if not record.complete:
        raise ValueError(f"its answer is not complete ({record.stop_reason})")
    start, end = record.answer.find("["), record.answer.rfind("]")
    try:
        items = json.loads(record.answer[start : end + 1])
    except ValueError as error:
        raise ValueError("its answer contains no JSON list") from error
    texts = [item.strip() for item in items if isinstance(item, str) and item.strip() and not surrogate_problem(item)]
    if not texts:
        raise ValueError("its answer contains no list of strings")
    return texts


def _expanded(prompts: Sequence[Prompt], texts: Mapping[str, Sequence[str]], n_each: int) -> tuple[list[Prompt], int]:
    """Return the prompts with at most `n_each` variations after each family, and the number of near copies."""
    seen = NearDuplicateIndex(NEAR_COPY_SIMILARITY)
    for prompt in prompts:
        seen.add(prompt.id, prompt.text)
    ids = {prompt.id: prompt for prompt in prompts}
    families: dict[str, list[Prompt]] = defaultdict(list)
    for prompt in prompts:
        families[prompt.family].append(prompt)
    n_near_copies = 0
    for base_id, variations in texts.items():
        n_taken = 0
        for text in variations:
            if n_taken == n_each:
                break
            if seen.find(text):
                n_near_copies += 1
                continue
            number = next(n for n in range(1, len(ids) + 2) if f"{base_id}-v{n}" not in ids)
            variation = structs.replace(ids[base_id], id=f"{base_id}-v{number}", prompt=text)
            seen.add(variation.id, text)
            ids[variation.id] = variation
            families[base_id].append(variation)
            n_taken += 1
    return [prompt for family in families.values() for prompt in family], n_near_copies
