"""The journalled way to ask a teacher: only what is missing, many at once, every answer on the disk as it arrives.

Used by collect, expand and the comparison. Trouble is waited out in the open; what cannot be waited out stops the run;
nothing is sent that might exceed the budget.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from mlx_distill.errors import DistillError
from mlx_distill.events import Caution, Report, ignore
from mlx_distill.records import Prompt, Request, TeacherRecord
from mlx_distill.storage.durable import missing_parents, remove_empty
from mlx_distill.storage.journal import Journal
from mlx_distill.teachers import stopping
from mlx_distill.teachers.bill import Bill
from mlx_distill.teachers.estimate import Estimate, make_estimate
from mlx_distill.teachers.pacing import Patience
from mlx_distill.teachers.plan import make_plan
from mlx_distill.teachers.protocol import Teacher
from mlx_distill.teachers.round import Round, Unanswered
from mlx_distill.teachers.spending import LEDGER, Budget, Ledger

__all__ = ["Asked", "Unanswered", "ask_all", "ask_until_stopped", "estimate"]


@dataclass(frozen=True)
class Asked:
    """Where a round of asking ended."""

    records: Mapping[str, TeacherRecord]
    """The answered requests of this round by key, those answered in earlier rounds among them.

    A record's own key is another one where its answer was bought with another `max_tokens`.
    """
    n_new: int
    """Requests that were answered in this round."""
    cost_usd: float
    """Of the new answers, as far as prices are known."""
    unanswered: tuple[Unanswered, ...]
    seconds: float
    bill: Bill
    """Of this round."""
    total_bill: Bill
    """Of the project, this round included."""
    stopped_by: DistillError | None = None
    """What ended the round before its end; None where every request was settled."""


def ask_all(
    teacher: Teacher,
    asks: Sequence[tuple[Prompt, Request]],
    journal: Path,
    *,
    concurrency: int,
    budget: Budget = Budget(),  # noqa: B008 - frozen
    report: Report = ignore,
    patience: Patience = Patience(),  # noqa: B008 - frozen
    job: str = "ask",
) -> Asked:
    """Ask what the journal does not hold yet and return all answers of these requests.

    Requests with equal keys are asked once. Raises TeacherError where the teacher cannot be asked (any more),
    BudgetError where the rest might cost more than the budget allows, and Interrupted after Ctrl-C or SIGTERM; every
    answer that arrived is in the journal by then.
    """
    asked = ask_until_stopped(
        teacher,
        asks,
        journal,
        concurrency=concurrency,
        budget=budget,
        report=report,
        patience=patience,
        job=job,
    )
    if asked.stopped_by:
        raise asked.stopped_by
    return asked


def ask_until_stopped(
    teacher: Teacher,
    asks: Sequence[tuple[Prompt, Request]],
    journal: Path,
    *,
    concurrency: int,
    budget: Budget = Budget(),  # noqa: B008 - frozen
    retry: Collection[str] = (),
    report: Report = ignore,
    patience: Patience = Patience(),  # noqa: B008 - frozen
    job: str = "ask",
) -> Asked:
    """`ask_all` for a caller with something to write whatever happens: what stopped it is returned, not raised.

    `retry` names outcomes (plan.RETRIES) of known answers that are asked for again.
    """
    made = missing_parents(journal)
    with ExitStack() as stack:
        stack.callback(remove_empty, made)  # last, when journal and ledger are closed
        opened = stack.enter_context(Journal(journal))
        if opened.torn:
            report(Caution(f"{journal}: a half-written last line ({len(opened.torn)} bytes) was removed."))
        plan = make_plan(asks, journal, longest_retry=teacher.longest_retry, retry=retry)
        ledger = Ledger(journal.with_name(LEDGER), budget)
        paid = bool(plan.missing and teacher.billed_model and budget.counted)
        if paid:
            budget.price_of(teacher.billed_model)
            stack.enter_context(ledger)
        else:
            ledger.read()
        asking = Round(
            teacher,
            plan,
            opened,
            ledger=ledger if paid else None,
            budget=budget,
            concurrency=concurrency,
            report=report,
            patience=patience,
            job=job,
        )
        if plan.missing:
            stopping.run(asking.run(), asking.interrupt)
        if journal.stat().st_size == 0:  # nothing was answered: leave no file that looks like data
            journal.unlink()
        return Asked(
            records={key: plan.records[key] for key in plan.wanted if key in plan.records},
            n_new=asking.n_new,
            cost_usd=asking.cost_usd,
            unanswered=tuple(asking.unanswered),
            seconds=asking.seconds,
            bill=ledger.bill_now(),
            total_bill=ledger.bill(),
            stopped_by=asking.stopped_by,
        )


def estimate(
    teacher: Teacher,
    asks: Sequence[tuple[Prompt, Request]],
    journal: Path,
    *,
    budget: Budget = Budget(),  # noqa: B008 - frozen
    retry: Collection[str] = (),
) -> Estimate:
    """What `ask_until_stopped` would ask now, and what it will cost. Sends nothing, writes nothing, takes no lock."""
    plan = make_plan(asks, journal, longest_retry=teacher.longest_retry, retry=retry)
    return make_estimate(teacher, plan, Ledger(journal.with_name(LEDGER), budget).read(), budget)
