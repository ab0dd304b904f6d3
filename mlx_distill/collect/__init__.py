"""Prompts to teacher records: asks the teacher for what is missing, into a journal that loses nothing.

Writes `teacher_data.jsonl`, one line an answer, never rewritten, and `collect.json`, which lists the answers that
belong to the prompt set and settings of the last collect: the journal may hold more, from other prompts and teachers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from mlx_distill.collect.prompts import read_prompts
from mlx_distill.errors import Interrupted, TeacherError
from mlx_distill.events import Caution, Report, ignore
from mlx_distill.records import Prompt, Request, conversation
from mlx_distill.settings import setting, table
from mlx_distill.storage.durable import write_json
from mlx_distill.teachers import asking, open_teacher
from mlx_distill.teachers.asking import Asked, Unanswered, ask_until_stopped
from mlx_distill.teachers.bill import Bill
from mlx_distill.teachers.estimate import Estimate
from mlx_distill.teachers.pacing import Patience
from mlx_distill.teachers.plan import RETRIES
from mlx_distill.teachers.prices import Price
from mlx_distill.teachers.spending import COUNT_COST, MAX_COST, PRICES_TABLE, Budget

TEACHER_SYSTEM = (
    "You are an expert programmer who answers briefly and completely. Write 80 to 200 tokens: one direct sentence "
    "first, without a greeting and without repeating the question; then one small code block, or three or four "
    "bullets where the question is not about code; then one closing sentence with the reason, the cost or the pitfall. "
    "In code use small named helpers, type hints and one-line docstrings; in SQL, common table expressions."
)
"""The teacher's system message. Small students learn better from short answers that come to an end."""

JOURNAL = "teacher_data.jsonl"
INDEX = "collect.json"


@dataclass(frozen=True)
class CollectConfig:
    """What to ask whom."""

    out: Path = setting(help="folder of the answers (teacher_data.jsonl)")
    teacher: str = setting(
        help="who answers: anthropic:MODEL, openai:MODEL[@URL], recorded:FILE or FOLDER, recorded:sample"
    )
    prompts: Path = setting(Path("data/prompts.jsonl"), help="prompts: JSON lines, or text with one prompt a line")
    system: str = setting(TEACHER_SYSTEM, help="the teacher's system message")
    max_tokens: int = setting(4096, help="longest answer, thinking included; only what is written is charged")
    concurrency: int = setting(64, help="most requests at once; fewer after a rate limit")
    wait_minutes: float = setting(10.0, help="how long to wait for a teacher that is overloaded or out of reach")
    limit: int | None = setting(None, help="ask only the first so many prompts, to try it out")
    first_wait_seconds: float = setting(1.0, help="the first wait after a failure; it doubles each time")
    max_cost: float | None = setting(None, help=MAX_COST)
    cost: bool = setting(True, help=COUNT_COST)
    prices: Mapping[str, Price] = table(help=PRICES_TABLE)
    retry: tuple[str, ...] = setting((), help=f"ask again where the answer ended so: {', '.join(RETRIES)}")

    def __post_init__(self) -> None:
        check_asking(self.max_tokens, self.concurrency, self.wait_minutes, self.first_wait_seconds)
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit is {self.limit}, it must be at least 1")
        Budget(self.max_cost, self.prices, self.cost)
        for outcome in self.retry:
            if outcome not in RETRIES:
                raise ValueError(f"retry: {outcome!r} is not one of {', '.join(RETRIES)}")

    @property
    def budget(self) -> Budget:
        """What asking may cost."""
        return Budget(self.max_cost, self.prices, self.cost)


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
    seconds: float
    cost_usd: float
    total_cost_usd: float
    """What all answers of the set cost, when each was bought."""
    bill: Bill
    """Of this run."""
    total_bill: Bill
    """Of the project, this run included."""


def check_asking(max_tokens: int, concurrency: int, wait_minutes: float, first_wait_seconds: float) -> None:
    """The ranges of the settings that every way of asking shares; ValueError names the first that is out of them."""
    if max_tokens < 1:
        raise ValueError(f"max_tokens is {max_tokens}, it must be at least 1")
    if not 1 <= concurrency <= 1000:
        raise ValueError(f"concurrency is {concurrency}, it must be between 1 and 1000")
    if not 0 <= wait_minutes <= 24 * 60:
        raise ValueError(f"wait_minutes is {wait_minutes:g}, it must be between 0 and 1440")
    if not 0 < first_wait_seconds <= 60:
        raise ValueError(f"first_wait_seconds is {first_wait_seconds:g}, it must be above 0 and at most 60")


def run(config: CollectConfig, report: Report = ignore) -> CollectResult:
    """Ask the teacher for the answers that are missing.

    A prompt that cannot be answered is left out, listed in the result and in collect.json, and does not stop the
    rest. Raises InputError for faults of the prompt file, TeacherError where the teacher cannot be asked or answered
    nothing, Interrupted after Ctrl-C or SIGTERM: what arrived is saved then, and another run asks for the rest.
    """
    teacher = open_teacher(config.teacher)
    asks = _asks(teacher.name, config)
    journal = config.out / JOURNAL
    asked = ask_until_stopped(
        teacher,
        asks,
        journal,
        concurrency=config.concurrency,
        budget=config.budget,
        retry=config.retry,
        report=report,
        patience=Patience(60.0 * config.wait_minutes, config.first_wait_seconds),
        job="collect",
    )
    # A teacher that could not be asked at all leaves the index of an earlier collect as it is.
    if asked.records or isinstance(asked.stopped_by, Interrupted):
        _write_index(config.out / INDEX, asks, asked)
    if asked.stopped_by:
        raise asked.stopped_by
    if not asked.records:
        raise TeacherError(
            f"{teacher.name} answered none of the {len(asks)} prompts.",
            "Choose another teacher or other prompts.",
            unanswered_lines(asked.unanswered),
        )
    _tell_no_answers(asked, report)
    return _result(config, asks, asked)


def estimate(config: CollectConfig) -> Estimate:
    """What `run` would ask and what that will cost; nothing is sent or written."""
    teacher = open_teacher(config.teacher)
    asks = _asks(teacher.name, config)
    return asking.estimate(teacher, asks, config.out / JOURNAL, budget=config.budget, retry=config.retry)


def _asks(teacher: str, config: CollectConfig) -> list[tuple[Prompt, Request]]:
    prompts = read_prompts(config.prompts)[: config.limit]
    return [(p, Request(teacher, conversation(p.text, config.system), config.max_tokens)) for p in prompts]


def unanswered_lines(unanswered: Sequence[Unanswered], most: int = 10) -> list[str]:
    """One line a prompt without an answer, for an error's list of problems."""
    lines = [f"{item.prompt_id}: {item.reason}" for item in unanswered[:most]]
    return lines if len(unanswered) <= most else [*lines, f"... and {len(unanswered) - most} more"]


def _write_index(path: Path, asks: Sequence[tuple[Prompt, Request]], asked: Asked) -> None:
    """The keys of this prompt set in its order, answered or not, and why some never will be.

    An answer that was bought with another `max_tokens` has the key that it was bought with.
    """
    bought = {key: record.key for key, record in asked.records.items()}
    answers = [
        {
            "key": bought.get(request.key, request.key),
            **{name: getattr(prompt, name) for name in ("id", "family", "category", "split")},
        }
        for prompt, request in asks
    ]
    write_json(path, {"answers": answers, "unanswered": [asdict(item) for item in asked.unanswered]})


def _tell_no_answers(asked: Asked, report: Report) -> None:
    """Name what was refused, came empty or was cut off; none of it is asked again by itself."""
    for outcome, words in (("refusal", "refused"), ("empty", "empty"), ("max_tokens", "cut off at max_tokens")):
        records = [record for record in asked.records.values() if record.answer.outcome == outcome]
        if records:
            reasons = {record.answer.detail for record in records if record.answer.detail}
            why = f" ({'; '.join(sorted(reasons)[:3])})" if reasons else ""
            names = ", ".join(record.prompt.id for record in records[:5])
            more = ", ..." if len(records) > 5 else ""
            report(Caution(f"{len(records)} {words}{why}: {names}{more}. To ask again: --retry {outcome}"))


def _result(config: CollectConfig, asks: Sequence[tuple[Prompt, Request]], asked: Asked) -> CollectResult:
    answers = {key: record.answer for key, record in asked.records.items()}
    ended = [answers[request.key] for _, request in asks if request.key in answers]
    stop_reasons = Counter("empty" if answer.outcome == "empty" else answer.stop_reason for answer in ended)
    return CollectResult(
        path=config.out / JOURNAL,
        teacher=config.teacher,
        models=tuple(dict.fromkeys(answer.model for answer in answers.values() if answer.model)),
        n_prompts=len(asks),
        n_answered=stop_reasons.total(),
        n_new=asked.n_new,
        stop_reasons=dict(stop_reasons.most_common()),
        unanswered=asked.unanswered,
        seconds=asked.seconds,
        cost_usd=asked.cost_usd,
        total_cost_usd=sum(answer.cost_usd or 0.0 for answer in answers.values()),
        bill=asked.bill,
        total_bill=asked.total_bill,
    )
