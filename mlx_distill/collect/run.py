"""Prompts to teacher records: asks the teacher for what is missing, into a journal that loses nothing.

Writes `teacher_data.jsonl`, one line an answer, never rewritten, and `collect.json`, which lists the answers that
belong to the prompt set and settings of the last collect: the journal may hold more, from other prompts and teachers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import repeat
from pathlib import Path
from typing import Annotated

import msgspec

from mlx_distill.collect.prompts import read_prompts
from mlx_distill.config import Config, doc
from mlx_distill.errors import Interrupted, TeacherError
from mlx_distill.events import Report, Warning, ignore
from mlx_distill.records import Prompt, Request, build_messages
from mlx_distill.storage.atomic import write_json_lists
from mlx_distill.teachers import asking, open_teacher
from mlx_distill.teachers.asking import Asked, Unanswered, ask_until_stopped
from mlx_distill.teachers.asking.batch_round import Makes
from mlx_distill.teachers.asking.estimate import Estimate
from mlx_distill.teachers.asking.pacing import Patience
from mlx_distill.teachers.asking.plan import RETRIES, Wording
from mlx_distill.teachers.money.bill import Bill
from mlx_distill.teachers.money.ledger import COUNT_COST, MAX_COST, PRICES_TABLE, Budget
from mlx_distill.teachers.money.prices import Price

TEACHER_SYSTEM = (
    "You are an expert programmer who answers briefly and completely. Write 80 to 200 tokens: one direct sentence "
    "first, without a greeting and without repeating the question; then one small code block, or three or four "
    "bullets where the question is not about code; then one closing sentence with the reason, the cost or the pitfall. "
    "In code use small named helpers, type hints and one-line docstrings; in SQL, common table expressions."
)
"""The teacher's system message. Small students learn better from short answers that come to an end."""

JOURNAL = "teacher_data.jsonl"
INDEX = "collect.json"


class CollectConfig(Config, frozen=True):
    """What to ask whom."""

    out: Annotated[Path, doc("folder of the answers (teacher_data.jsonl)")]
    teacher: Annotated[
        str, doc("who answers: anthropic:MODEL, openai:MODEL[@URL], recorded:FILE or FOLDER, recorded:sample")
    ]
    prompts: Annotated[Path, doc("prompts: JSON lines, or text with one prompt a line")] = Path("data/prompts.jsonl")
    system: Annotated[str, doc("the teacher's system message")] = TEACHER_SYSTEM
    max_tokens: Annotated[int, doc("longest answer, thinking included; only what is written is charged", ge=1)] = 4096
    concurrency: Annotated[int, doc("most requests at once; fewer after a rate limit", ge=1, le=1000)] = 64
    wait_minutes: Annotated[
        float, doc("how long to wait for a teacher that is overloaded or out of reach", ge=0, le=1440)
    ] = 10.0
    batch: Annotated[bool, doc("ask in batches, at half price and answered within a day, and wait for them")] = False
    wait: Annotated[bool, doc("wait for the batches that are under way and bring them in; ask nothing new")] = False
    limit: Annotated[int, doc("ask only the first so many prompts, to try it out", ge=1)] | None = None
    first_wait_seconds: Annotated[float, doc("the first wait after a failure; it doubles each time", gt=0, le=60)] = 1.0
    max_cost: Annotated[float, doc(MAX_COST, ge=0)] | None = None
    cost: Annotated[bool, doc(COUNT_COST)] = True
    prices: Annotated[Mapping[str, Price], doc(PRICES_TABLE)] = msgspec.field(default_factory=dict)
    retry: Annotated[tuple[str, ...], doc(f"ask again where the answer ended so: {', '.join(RETRIES)}")] = ()

    def check(self) -> None:
        Budget(self.max_cost, self.prices, self.cost)

    @property
    def budget(self) -> Budget:
        """What asking may cost."""
        return Budget(self.max_cost, self.prices, self.cost)

    @property
    def batching(self) -> Makes:
        """What is put into batches."""
        return "all" if self.batch else "again" if self.wait else "nothing"


@dataclass(frozen=True)
class CollectResult:
    """Where collecting ended. Costs and times are of this run, the other figures of all prompts of the set."""

    path: Path
    """The journal."""
    teacher: str
    models: tuple[str, ...]
    """The models that answered, as the provider names them."""
    n_prompts: int
    n_answered: int
    n_new: int
    stop_reasons: Mapping[str, int]
    """How the answers ended; `empty` for those that ended without a word."""
    unanswered: tuple[Unanswered, ...]
    n_under_way: int
    """Prompts that are in a batch, whose answers come later."""
    seconds: float
    cost_usd: float
    total_cost_usd: float
    """What all answers of the set cost, when each was bought."""
    bill: Bill
    """Of this run."""
    total_bill: Bill
    """Of the project, this run included."""

    def after(self, earlier: CollectResult) -> CollectResult:
        """This run and the one before it as one."""
        return replace(
            self,
            n_new=earlier.n_new + self.n_new,
            unanswered=(*earlier.unanswered, *self.unanswered),
            seconds=earlier.seconds + self.seconds,
            cost_usd=earlier.cost_usd + self.cost_usd,
            bill=earlier.bill.plus(self.bill),
        )


def run(config: CollectConfig, report: Report = ignore) -> CollectResult:
    """Ask the teacher for the answers that are missing.

    A prompt that cannot be answered is left out, listed in the result and in collect.json, and does not stop the
    rest. Raises InputError for faults of the prompt file, TeacherError where the teacher cannot be asked or answered
    nothing, Interrupted after Ctrl-C or SIGTERM: what arrived is saved then, and another run asks for the rest.
    """
    teacher = open_teacher(config.teacher)
    asks = _Questions.of(teacher.name, config)
    journal = config.out / JOURNAL
    asked = ask_until_stopped(
        teacher,
        asks,
        journal,
        concurrency=config.concurrency,
        budget=config.budget,
        retry=config.retry,
        batching=config.batching,
        report=report,
        patience=Patience(60.0 * config.wait_minutes, config.first_wait_seconds),
        job="collect",
    )
    # A teacher that could not be asked at all leaves the index of an earlier collect as it is.
    if asked.known or isinstance(asked.stopped_by, Interrupted):
        _write_index(config.out / INDEX, asks.prompts, asked)
    if asked.stopped_by:
        raise asked.stopped_by
    if asked.unanswered and not asked.known and not asked.under_way:
        raise TeacherError(
            f"{teacher.name} answered none of the {len(asks.prompts)} prompts.",
            "Choose another teacher or other prompts.",
            unanswered_lines(asked.unanswered),
        )
    _tell_no_answers(asked, report)
    return _result(config, asked)


def estimate(config: CollectConfig) -> Estimate:
    """What `run` would ask and what that will cost; nothing is sent or written."""
    teacher = open_teacher(config.teacher)
    asks = _Questions.of(teacher.name, config)
    return asking.estimate(
        teacher, asks, config.out / JOURNAL, budget=config.budget, retry=config.retry, batching=config.batching
    )


def is_paid(config: CollectConfig) -> bool:
    """Whether `run` may cost money that is counted."""
    return asking.is_paid(open_teacher(config.teacher), config.budget)


@dataclass(frozen=True)
class _Questions:
    """The prompts, all asked in the same way: the requests of 100,000 of them are not held at once."""

    prompts: Sequence[Prompt]
    teacher: str
    system: str
    max_tokens: int

    @classmethod
    def of(cls, teacher: str, config: CollectConfig) -> _Questions:
        return cls(read_prompts(config.prompts)[: config.limit], teacher, config.system, config.max_tokens)

    def __iter__(self) -> Iterator[tuple[Prompt, Wording]]:
        return zip(self.prompts, repeat(self.request))

    def request(self, prompt: Prompt) -> Request:
        return Request(self.teacher, build_messages(prompt.text, self.system), self.max_tokens)


def unanswered_lines(unanswered: Sequence[Unanswered], most: int = 10) -> list[str]:
    """One line a prompt without an answer, for an error's list of problems."""
    lines = [f"{item.prompt_id}: {item.reason}" for item in unanswered[:most]]
    return lines if len(unanswered) <= most else [*lines, f"... and {len(unanswered) - most} more"]


def _write_index(path: Path, prompts: Sequence[Prompt], asked: Asked) -> None:
    """The keys of this prompt set in its order, answered or not, and why some never will be.

    An answer that was bought with another `max_tokens` has the key that it was bought with.
    """
    answers = (
        {
            "key": asked.known[key].key if key in asked.known else key,
            **{name: getattr(prompt, name) for name in ("id", "family", "category", "split")},
        }
        for prompt, key in zip(prompts, asked.keys, strict=True)
    )
    write_json_lists(path, {"answers": answers, "unanswered": map(asdict, asked.unanswered)})


def _tell_no_answers(asked: Asked, report: Report) -> None:
    """Name what was refused, came empty or was cut off; none of it is asked again by itself."""
    for outcome, words in (("refusal", "refused"), ("empty", "empty"), ("max_tokens", "cut off at max_tokens")):
        found = [known for known in asked.answers() if known.outcome == outcome]
        if found:
            reasons = {known.detail for known in found if known.detail}
            why = f" ({'; '.join(sorted(reasons)[:3])})" if reasons else ""
            names = ", ".join(known.prompt_id for known in found[:5])
            more = ", ..." if len(found) > 5 else ""
            report(Warning(f"{len(found):,} {words}{why}: {names}{more}. To ask again: collect with --retry {outcome}"))


def _result(config: CollectConfig, asked: Asked) -> CollectResult:
    ended = (asked.known[key] for key in asked.keys if key in asked.known)
    stop_reasons = Counter("empty" if known.outcome == "empty" else known.stop_reason for known in ended)
    return CollectResult(
        path=config.out / JOURNAL,
        teacher=config.teacher,
        models=tuple(dict.fromkeys(known.model for known in asked.answers() if known.model)),
        n_prompts=len(asked.keys),
        n_answered=stop_reasons.total(),
        n_new=asked.n_new,
        stop_reasons=dict(stop_reasons.most_common()),
        unanswered=asked.unanswered,
        n_under_way=sum(key in asked.under_way for key in asked.keys if key not in asked.known),
        seconds=asked.seconds,
        cost_usd=asked.cost_usd,
        total_cost_usd=sum(known.cost_usd or 0.0 for known in asked.answers()),
        bill=asked.bill,
        total_bill=asked.total_bill,
    )
