"""Brings the results of a batch into the journal: once each, whatever interrupts it.

The answers are in the journal before their real cost takes the place of the batch's reservation, and that is in the
ledger before the batch is closed; after a kill its results are read again from the start, and what the journal holds
of them is passed over.
"""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import dataclass, field

from msgspec import structs

from mlx_distill.records import Answer, TeacherRecord, Usage
from mlx_distill.storage.journal import Journal
from mlx_distill.storage.jsonl import each_jsonl
from mlx_distill.teachers.asking.batch_log import BatchLog, OpenBatch
from mlx_distill.teachers.asking.plan import Ask
from mlx_distill.teachers.batching import Batches
from mlx_distill.teachers.money.ledger import Ledger
from mlx_distill.teachers.protocol import TryLaterError


class NotOursError(Exception):
    """The results of what was taken for a batch name requests of another one."""


class MissingResultsError(TryLaterError):
    """Not all results of a batch came."""


@dataclass
class Taken:
    """What a batch brought."""

    answered: list[tuple[Ask, str]] = field(default_factory=list)
    """With the outcome of each answer (`Answer.outcome`)."""
    n_new: int = 0
    """Answers that no interrupted run had brought in before."""
    cost_usd: float = 0.0
    """Of the new ones, as far as it is known."""
    to_ask_again: list[tuple[Ask, str]] = field(default_factory=list)
    """What errored or expired, and how."""
    never_answered: list[tuple[Ask, str]] = field(default_factory=list)
    """What would end the same way again, and why."""


async def take(
    batches: Batches, batch: OpenBatch, log: BatchLog, journal: Journal, ledger: Ledger | None, *, are_all: bool
) -> Taken:
    """Journal the answers of a batch that has ended, settle its cost and close it.

    Raises NotOursError, with nothing written, where none of its results is ours; BatchGoneError where they are gone;
    TryLaterError where they break off, and MissingResultsError where some are missing: then the same call goes on. With
    `are_all` what is missing is to be asked again, and the batch counts in full. A result that comes twice counts once.
    """
    asks = log.asks(batch)
    held = ledger.under_way.get(batch.reservation) if ledger else None
    known = _journalled(batch, journal)
    taken, usages = Taken(), list[Usage]()
    seen: set[str] = set()
    n_strange = 0
    async with aclosing(batches.results(batch.id)) as results:
        async for result in results:
            ask = asks.get(result.custom_id)
            if ask is None or result.custom_id in seen:
                n_strange += ask is None
                continue
            seen.add(result.custom_id)
            if result.answer is None:
                where = taken.to_ask_again if result.again else taken.never_answered
                where.append((ask, result.reason))
                continue
            usages.append(result.answer.usage)
            if ask.key not in known:
                answer = _priced(result.answer, ledger, held.model if held else "")
                journal.append(ask.answered(answer, batch.id).to_json(), durable=False)
                known.add(ask.key)
                taken.n_new += 1
                taken.cost_usd += answer.cost_usd or 0.0
            taken.answered.append((ask, result.answer.completion_status))
    if n_strange and not seen:
        raise NotOursError
    if len(seen) < len(asks) and not are_all:
        raise MissingResultsError(f"the results of {batch.id} hold {len(seen):,} of its {len(asks):,} requests")
    for name in asks.keys() - seen:
        usages.append(Usage())  # which has no price
        taken.to_ask_again.append((asks[name], "no result came"))
    journal.flush()
    if ledger and held:
        if usages:
            ledger.settle(held, usages)
        else:
            ledger.release(held, "none of its requests was answered")
    log.close(batch, "fetched")
    return taken


def _journalled(batch: OpenBatch, journal: Journal) -> set[str]:
    """The keys whose answers of this batch an interrupted run brought into the journal."""
    records = each_jsonl(journal.path, TeacherRecord.from_json, torn_end=True)
    return {record.key for _, record in records if record.batch == batch.id}


def _priced(answer: Answer, ledger: Ledger | None, model: str) -> Answer:
    """The answer with its cost, where it is known."""
    cost = ledger.cost_of(model, answer.usage, batch=True) if ledger and model else None
    return structs.replace(answer, cost_usd=cost.usd if cost else None)
