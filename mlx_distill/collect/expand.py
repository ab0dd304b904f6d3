"""More prompts from few: asks the teacher for variations of each base prompt and writes a larger prompt file."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import structs

from mlx_distill.collect.prompts import read_prompts
from mlx_distill.collect.run import unanswered_lines
from mlx_distill.config import Config, doc
from mlx_distill.errors import InputError, TeacherError
from mlx_distill.events import Report, Warning, ignore
from mlx_distill.records import Answer, Prompt, Request, TeacherRecord, build_messages
from mlx_distill.storage.atomic import write_jsonl
from mlx_distill.teachers import asking, open_teacher
from mlx_distill.teachers.asking import Unanswered, ask_all
from mlx_distill.teachers.asking.estimate import Estimate
from mlx_distill.teachers.asking.pacing import Patience
from mlx_distill.teachers.money.bill import Bill
from mlx_distill.teachers.money.ledger import COUNT_COST, MAX_COST, PRICES_TABLE, Budget
from mlx_distill.teachers.money.prices import Price

EXPAND_SYSTEM = (
    "You write prompts for a data set. Given a prompt that a developer typed, write other prompts of the same field, "
    "each a situation of its own: another constraint, data shape, domain or difficulty, in natural words of one to "
    "three sentences. Never paraphrase, and never fill in a template. Answer with a JSON list of strings and nothing "
    "else."
)
JOURNAL = "expand.jsonl"
NEAR_COPY = 90.0
"""Two prompts are near copies from this token_sort_ratio of rapidfuzz on (0 to 100, case and punctuation ignored)."""


class ExpandConfig(Config, frozen=True):
    """What to vary, and how often."""

    data: Annotated[Path, doc("folder of the journal of the teacher's answers (expand.jsonl)")]
    teacher: Annotated[str, doc("who writes the variations: anthropic:MODEL, openai:MODEL or recorded:FILE")]
    prompts: Annotated[Path, doc("prompts; those whose family is their id are varied")] = Path("data/prompts.jsonl")
    out: Annotated[Path, doc("the larger prompt file  [default: PROMPTS with .expanded.jsonl]")] | None = None
    variations: Annotated[int, doc("variations to ask for, of each base prompt", ge=1, le=50)] = 3
    max_tokens: Annotated[int, doc("longest answer, thinking included; only what is written is charged", ge=1)] = 4096
    concurrency: Annotated[int, doc("most requests at once; fewer after a rate limit", ge=1, le=1000)] = 64
    wait_minutes: Annotated[
        float, doc("how long to wait for a teacher that is overloaded or out of reach", ge=0, le=1440)
    ] = 10.0
    first_wait_seconds: Annotated[float, doc("the first wait after a failure; it doubles each time", gt=0, le=60)] = 1.0
    max_cost: Annotated[float, doc(MAX_COST, ge=0)] | None = None
    cost: Annotated[bool, doc(COUNT_COST)] = True
    prices: Annotated[Mapping[str, Price], doc(PRICES_TABLE)] = msgspec.field(default_factory=dict)

    def check(self) -> None:
        Budget(self.max_cost, self.prices, self.cost)

    @property
    def budget(self) -> Budget:
        """What asking may cost."""
        return Budget(self.max_cost, self.prices, self.cost)


@dataclass(frozen=True)
class ExpandResult:
    """Where expanding ended."""

    path: Path
    """The larger prompt file: every prompt of the old one, variations behind their base."""
    n_bases: int
    n_prompts: int
    n_variations: int
    """New ones that were taken."""
    n_near_copies: int
    """Left out: too close to another prompt."""
    unanswered: tuple[Unanswered, ...]
    """Base prompts that got no variations, and why."""
    seconds: float
    cost_usd: float
    bill: Bill
    """Of this run."""
    total_bill: Bill
    """Of the project, this run included."""


def run(config: ExpandConfig, report: Report = ignore) -> ExpandResult:
    """Ask for variations of every base prompt and write the prompt file that holds them too.

    Variations join the family, category and split of their base. Every answer is journalled, so that a rerun asks
    nothing anew and writes the same file. Raises what `collect.run` raises; the file is written at the end only.
    """
    prompts = read_prompts(config.prompts)
    teacher = open_teacher(config.teacher)
    asks = _asks(teacher.name, prompts, config)
    asked = ask_all(
        teacher,
        asks,
        config.data / JOURNAL,
        concurrency=config.concurrency,
        budget=config.budget,
        report=report,
        patience=Patience(60.0 * config.wait_minutes, config.first_wait_seconds),
        job="expand",
    )
    texts, unusable = _variations(asks, asked.records())
    unanswered = (*asked.unanswered, *unusable)
    if not texts:
        raise TeacherError(
            f"{teacher.name} gave no variations.", "Choose another teacher.", unanswered_lines(unanswered)
        )
    expanded, n_near_copies = _grown(prompts, texts, config.variations)
    n_taken = len(expanded) - len(prompts)
    n_wanted = config.variations * len(asks)
    if n_taken < n_wanted:
        left_out = f"; {n_near_copies} near copies were left out" if n_near_copies else ""
        report(Warning(f"{n_taken} of {n_wanted} variations were taken{left_out}."))
    out = config.out or config.prompts.with_name(f"{config.prompts.stem}.expanded.jsonl")
    write_jsonl(out, [prompt.to_json() for prompt in expanded])
    return ExpandResult(
        path=out,
        n_bases=len(asks),
        n_prompts=len(expanded),
        n_variations=n_taken,
        n_near_copies=n_near_copies,
        unanswered=unanswered,
        seconds=asked.seconds,
        cost_usd=asked.cost_usd,
        bill=asked.bill,
        total_bill=asked.total_bill,
    )


def estimate(config: ExpandConfig) -> Estimate:
    """What `run` would ask and what that will cost; nothing is sent or written."""
    teacher = open_teacher(config.teacher)
    asks = _asks(teacher.name, read_prompts(config.prompts), config)
    return asking.estimate(teacher, asks, config.data / JOURNAL, budget=config.budget)


def is_paid(config: ExpandConfig) -> bool:
    """Whether `run` may cost money that is counted."""
    return asking.is_paid(open_teacher(config.teacher), config.budget)


def _asks(teacher: str, prompts: Sequence[Prompt], config: ExpandConfig) -> list[tuple[Prompt, Request]]:
    """One request for each base prompt."""
    bases = [prompt for prompt in prompts if prompt.id == prompt.family]
    if not bases:
        raise InputError(
            f"{config.prompts}: no base prompt in it (one whose family is its own id).",
            "Give a prompt its own id as family, or none.",
        )
    asks = []
    for base in bases:
        question = f"Write {config.variations} variations of this prompt:\n\n{base.text}"
        asks.append((base, Request(teacher, build_messages(question, EXPAND_SYSTEM), config.max_tokens)))
    return asks


def _variations(
    asks: Sequence[tuple[Prompt, Request]], records: Mapping[str, TeacherRecord]
) -> tuple[dict[str, list[str]], list[Unanswered]]:
    """The texts by base id, and the answers that hold none."""
    texts: dict[str, list[str]] = {}
    unusable: list[Unanswered] = []
    for base, request in asks:
        if request.key in records:
            try:
                texts[base.id] = parse_variations(records[request.key].to_answer())
            except ValueError as error:
                unusable.append(Unanswered(base.id, request.key, str(error)))
    return texts, unusable


def parse_variations(answer: Answer) -> list[str]:
    """The texts of an answer that is a JSON list of strings, with or without words or a fence around it.

    Raises ValueError where the answer has no end or holds no such list.
    """
    if not answer.complete:
        raise ValueError(f"its answer has no end ({answer.stop_reason})")
    start, end = answer.text.find("["), answer.text.rfind("]")
    try:
        items = json.loads(answer.text[start : end + 1])
    except ValueError as error:
        raise ValueError("its answer holds no JSON list") from error
    texts = [item.strip() for item in items if isinstance(item, str) and item.strip() and _is_whole(item)]
    if not texts:
        raise ValueError("its answer holds no list of texts")
    return texts


def _is_whole(text: str) -> bool:
    """Whether UTF-8 can write it: JSON may hold half a character."""
    return not any("\ud800" <= char <= "\udfff" for char in text)


def _grown(prompts: Sequence[Prompt], texts: Mapping[str, Sequence[str]], most: int) -> tuple[list[Prompt], int]:
    """The prompts with at most so many variations of each behind its family, and how many were near copies."""
    from rapidfuzz import fuzz, process, utils

    seen = [utils.default_process(prompt.text) for prompt in prompts]
    ids = {prompt.id for prompt in prompts}
    families: dict[str, list[Prompt]] = defaultdict(list)
    for prompt in prompts:
        families[prompt.family].append(prompt)
    n_near_copies = 0
    for base_id, variations in texts.items():
        base = next(prompt for prompt in families[base_id] if prompt.id == base_id)
        n_taken = 0
        for text in variations:
            if n_taken == most:
                break
            plain = utils.default_process(text)
            if process.extractOne(plain, seen, scorer=fuzz.token_sort_ratio, score_cutoff=NEAR_COPY):
                n_near_copies += 1
                continue
            seen.append(plain)
            number = next(n for n in range(1, len(ids) + 2) if f"{base_id}-v{n}" not in ids)
            variation = structs.replace(base, id=f"{base_id}-v{number}", prompt=text)
            ids.add(variation.id)
            n_taken += 1
            families[base_id].append(variation)
    return [prompt for family in families.values() for prompt in family], n_near_copies
