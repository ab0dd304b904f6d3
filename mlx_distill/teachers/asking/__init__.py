"""The journalled way to ask a teacher: only what is missing, many at once, every answer on the disk as it arrives.

Used by collect, expand and the comparison. Trouble is waited out in the open; what cannot be waited out stops the run;
nothing is sent that might exceed the budget.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from mlx_distill.errors import DistillError, InputError
from mlx_distill.events import Report, Warning, ignore
from mlx_distill.records import TeacherRecord
from mlx_distill.storage.atomic import missing_parents, remove_empty
from mlx_distill.storage.journal import Journal
from mlx_distill.storage.jsonl import read_at
from mlx_distill.teachers.asking import stopping
from mlx_distill.teachers.asking.batch_log import FOLDER, LOG, BatchLog
from mlx_distill.teachers.asking.batch_round import BatchRound, Makes
from mlx_distill.teachers.asking.estimate import Estimate, make_estimate
from mlx_distill.teachers.asking.pacing import Patience
from mlx_distill.teachers.asking.plan import Asks, Known, Plan, make_plan
from mlx_distill.teachers.asking.round import Round, Unanswered
from mlx_distill.teachers.batching import HasBatches
from mlx_distill.teachers.money.bill import Bill
from mlx_distill.teachers.money.ledger import LEDGER, Budget, Ledger
from mlx_distill.teachers.protocol import Teacher

__all__ = ["Asked", "Unanswered", "ask_all", "ask_until_stopped", "estimate", "is_paid"]


@dataclass(frozen=True)
class Asked:
    """Where a round of asking ended."""

    journal: Path
    """Where the answers are."""
    keys: tuple[str, ...]
    """Of all requests, in their order."""
    wanted: tuple[str, ...]
    """The same, each once."""
    known: Mapping[str, Known]
    """The answers to these requests by the request's key, those of earlier rounds among them; in no order."""
    n_new: int
    """Requests that were answered in this round."""
    cost_usd: float
    """Of the new answers, as far as prices are known."""
    unanswered: tuple[Unanswered, ...]
    under_way: Collection[str]
    """The keys of requests that batches will answer later."""
    seconds: float
    bill: Bill
    """Of this round."""
    total_bill: Bill
    """Of the project, this round included."""
    stopped_by: DistillError | None = None
    """What ended the round before its end; None where every request was settled."""

    def answers(self) -> Iterator[Known]:
        """What is known of the answers, in the order of the requests, each once."""
        return (self.known[key] for key in self.wanted if key in self.known)

    def records(self) -> dict[str, TeacherRecord]:
        """The answers whole, by the request's key in the order of the requests, read back from the journal.

        A record's own key is another one where its answer was bought with another `max_tokens`.
        """
        keys = [key for key in self.wanted if key in self.known]
        places = [self.known[key].at for key in keys]
        return dict(zip(keys, read_at(self.journal, places, TeacherRecord.from_json), strict=True)) if keys else {}


def ask_all(
    teacher: Teacher,
    asks: Asks,
    journal: Path,
    *,
    concurrency: int,
    budget: Budget = Budget(),  # noqa: B008 - frozen
    report: Report = ignore,
    patience: Patience = Patience(),  # noqa: B008 - frozen
    job: str = "ask",
) -> Asked:
    """Ask what the journal does not hold yet and say what is known of all answers to these requests.

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
    asks: Asks,
    journal: Path,
    *,
    concurrency: int,
    budget: Budget = Budget(),  # noqa: B008 - frozen
    retry: Collection[str] = (),
    batching: Makes | None = None,
    report: Report = ignore,
    patience: Patience = Patience(),  # noqa: B008 - frozen
    job: str = "ask",
) -> Asked:
    """`ask_all` for a caller with something to write whatever happens: what stopped it is returned, not raised.

    `retry` names outcomes (plan.RETRIES) of known answers that are asked for again. With `batching` the answers of
    batches are brought in, and where it makes batches, nothing is asked one by one.
    """
    _refuse_batches(teacher, batching)
    made = missing_parents(journal)
    with ExitStack() as stack:
        stack.callback(remove_empty, made)  # last, when journal and ledger are closed
        opened = stack.enter_context(Journal(journal))
        stack.callback(_remove_if_empty, journal)  # nothing was answered: leave no file that looks like data
        _tell_of_torn(opened, report)

        def plan_of(under_way: Collection[str], retry: Collection[str]) -> Plan:
            return make_plan(asks, journal, longest_retry=teacher.longest_retry, retry=retry, under_way=under_way)

        log = _open_log(journal, batching, stack)
        plan = plan_of(log.questions_under_way() if log else (), retry)
        ledger = Ledger(journal.with_name(LEDGER), budget)
        open_batches = log.open_of(teacher.name) if log else []
        paid = is_paid(teacher, budget) and bool(plan.missing or open_batches)
        # A batch that the ledger has set something aside for is settled there, whoever brings it in.
        paid = paid or any(batch.reservation for batch in open_batches)
        if paid:
            budget.price_of(teacher.billed_model)
            stack.enter_context(ledger)
            _tell_of_torn(ledger.journal, report)
        else:
            ledger.read()
        rounds: list[BatchRound | Round] = []
        if log and isinstance(teacher, HasBatches):
            in_batches = BatchRound(
                teacher,
                teacher.batches,
                plan,
                opened,
                log,
                make_plan=plan_of,
                retry=retry,
                makes=batching or "nothing",
                ledger=ledger if paid else None,
                budget=budget,
                report=report,
                patience=patience,
                job=job,
            )
            stopping.run(in_batches.run(), in_batches.interrupt)
            rounds.append(in_batches)
            plan = in_batches.plan
        if plan.missing and batching in (None, "nothing") and not any(each.stopped_by for each in rounds):
            live = Round(
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
            rounds.append(live)
            stopping.run(live.run(), live.interrupt)
        return Asked(
            journal=journal,
            keys=plan.keys,
            wanted=plan.wanted,
            known=plan.known,
            n_new=sum(each.n_new for each in rounds),
            cost_usd=sum(each.cost_usd for each in rounds),
            unanswered=tuple(item for each in rounds for item in each.unanswered),
            under_way=plan.under_way,
            seconds=sum(each.seconds for each in rounds),
            bill=ledger.bill_now(),
            total_bill=ledger.bill(),
            stopped_by=next((each.stopped_by for each in rounds if each.stopped_by), None),
        )


def _remove_if_empty(file: Path) -> None:
    if file.stat().st_size == 0:
        file.unlink()


def _tell_of_torn(journal: Journal, report: Report) -> None:
    if journal.torn:
        report(Warning(f"{journal.path}: a half-written last line ({len(journal.torn)} bytes) was removed."))


def is_paid(teacher: Teacher, budget: Budget) -> bool:
    """Whether asking costs money that is counted; where it does not, an estimate has no figures."""
    return bool(teacher.billed_model and budget.counted)


def _open_log(journal: Path, batching: Makes | None, stack: ExitStack) -> BatchLog | None:
    """The log of a journal's batches, where there are some or some are to be made."""
    folder = journal.parent / FOLDER
    if batching == "all" or (batching and (folder / LOG).exists()):
        return stack.enter_context(BatchLog(folder))
    return None


def _refuse_batches(teacher: Teacher, batching: Makes | None) -> None:
    if batching in ("again", "all") and not isinstance(teacher, HasBatches):
        raise InputError(
            f"{teacher.name} has no batches.",
            "Leave out --batch (in distill.toml: batch) and --wait, or choose another teacher.",
        )


def estimate(
    teacher: Teacher,
    asks: Asks,
    journal: Path,
    *,
    budget: Budget = Budget(),  # noqa: B008 - frozen
    retry: Collection[str] = (),
    batching: Makes | None = None,
) -> Estimate:
    """What `ask_until_stopped` would ask now, and what it will cost. Sends nothing, writes nothing, takes no lock."""
    _refuse_batches(teacher, batching)
    under_way = BatchLog(journal.parent / FOLDER).read().questions_under_way() if batching else ()
    plan = make_plan(asks, journal, longest_retry=teacher.longest_retry, retry=retry, under_way=under_way)
    if batching == "again":
        plan.missing.clear()
    return make_estimate(
        teacher,
        plan,
        Ledger(journal.with_name(LEDGER), budget).read(),
        budget,
        may_batch=batching is not None and isinstance(teacher, HasBatches),
        in_batches=batching == "all",
    )
