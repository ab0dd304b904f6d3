"""The answers of a folder and what they cost: the only place that writes while a teacher is asked.

The journals (`teacher_data.jsonl` and others) hold the answers and their costs. `spending.json` holds what is not in a
journal: requests of unknown outcome, pending batches, and the ceiling. The ceiling is an upper limit of the project's
spending while requests are in flight. It is raised on the disk before a request that could exceed it is sent, and
removed at the end of a run. After a kill the ceiling counts as spent, so the cap holds in every case:

    answers + unknown outcomes + worst cases in pending batches + worst cases in flight <= ceiling <= max_cost
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Self

import msgspec

from mlx_distill.errors import BudgetError, InputError
from mlx_distill.events import Report, Warning, ignore
from mlx_distill.records import Record, TeacherRecord, explain
from mlx_distill.storage import files
from mlx_distill.storage.atomic import missing_parents, remove_empty, write_json, write_jsonl
from mlx_distill.storage.journal import Journal
from mlx_distill.storage.jsonl import each_jsonl, read_jsonl
from mlx_distill.storage.lock import take_lock
from mlx_distill.teachers.pending import AnswerSummary, PendingRequest
from mlx_distill.teachers.pricing import Budget, ModelUsage, UsageReport, add_usage, model_of, usage_of, usage_report

SLACK = 1.25
"""The ceiling is raised above the worst cases in flight by this factor, so that it is written rarely."""
ROUNDING_USD = 1e-9
"""More than the rounding error of the sum of many costs."""

KEY_LENGTH = 48
"""Hex digits of the request's key in a custom_id."""

Amount = Annotated[float, msgspec.Meta(ge=0)]


class UnknownCost(Record, frozen=True):
    """Requests that may have been charged, counted in full."""

    n_requests: int = 0
    usd: Amount = 0.0


class PendingBatch(Record, frozen=True):
    """A batch whose results are not in the journal yet. Its requests are in `batches/NAME.jsonl`."""

    name: str
    """Starts the custom_id of every request: results show whose they are."""
    teacher: str
    n_requests: int
    usd: Amount
    """The worst case. 0 if costs are not counted."""
    submitted_at: str
    id: str = ""
    """The provider's. Empty if the batch may not exist."""
    not_ours: tuple[str, ...] = ()
    """Batches that looked like this one and were not."""

    def custom_id(self, pending: PendingRequest) -> str:
        """Return the id of a request in the batch: at most 64 letters, digits and -."""
        return f"{self.name}-{pending.request.key[:KEY_LENGTH]}"


class Spending(Record, frozen=True):
    """The content of `spending.json`."""

    earlier_usd: Amount = 0.0
    """Spent before this file existed, according to `ledger.jsonl`."""
    unknown: dict[str, UnknownCost] = msgspec.field(default_factory=dict)
    """Unknown outcomes by model."""
    ceiling_usd: Amount | None = None
    """Set while a run sends requests."""
    ceiling_model: str = ""
    batches: tuple[PendingBatch, ...] = ()


class AnswerStore:
    """The one writer of a journal and of its folder's spending, as a context manager. `read` only looks."""

    def __init__(self, journal: Path, budget: Budget, report: Report = ignore) -> None:
        self.journal, self.budget, self._report = journal, budget, report
        self.folder = journal.parent
        self.answers: dict[str, AnswerSummary] = {}
        """The answer that counts, by the request's prompt key: the last complete one, else the last."""
        self._file, self._batches = self.folder / files.SPENDING, self.folder / files.BATCHES
        self._spending = Spending()
        self._usages: dict[str, ModelUsage] = {}
        self._new_usages: dict[str, ModelUsage] = {}
        self._answers_usd = 0.0
        self._in_flight_usd = 0.0
        self._imported: dict[str, dict[str, float]] = {}
        """Costs of the answers of pending batches, by the batch's id and the record's key."""
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        created = missing_parents(self.journal)
        with self._stack as stack:
            stack.callback(remove_empty, created)
            self._journal = stack.enter_context(Journal(self.journal))
            stack.callback(self._remove_if_empty)
            lock = os.open(self.folder, os.O_RDONLY)
            stack.callback(os.close, lock)
            take_lock(lock, self.folder)
            if self._journal.removed:
                n_bytes = len(self._journal.removed)
                self._report(Warning(f"{self.journal}: removed an incomplete last line ({n_bytes} bytes)."))
            self.read()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._stack:
            if self._spending.ceiling_usd is not None and self._in_flight_usd < ROUNDING_USD:
                self._save(ceiling_usd=None)

    def read(self) -> Self:
        """Read the spending, the answers, and the costs in all journals of the folder."""
        if self._file.exists():
            try:
                self._spending = msgspec.json.decode(self._file.read_bytes(), type=Spending)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                reason = explain(error) if isinstance(error, msgspec.ValidationError) else str(error)
                raise InputError(
                    f"{self._file} is damaged: {reason}.",
                    "Restore it from a copy. Deleting it resets the recorded spending on unknown outcomes and batches.",
                ) from error
        self._imported = {batch.id: {} for batch in self.batches if batch.id}
        for name in files.JOURNALS:
            answers = self._read_journal(self.folder / name)
            if name == self.journal.name:
                self.answers = answers
        ledger = self.folder / files.LEDGER
        if not self._file.exists() and ledger.exists():
            earlier = max(0.0, _ledger_total(ledger) - self._answers_usd)
            self._spending = msgspec.structs.replace(self._spending, earlier_usd=earlier)
        if self._spending.ceiling_usd is not None:  # a killed run
            lost = max(0.0, self._spending.ceiling_usd - self.spent_usd)
            unknown = self._with_unknown(self._spending.ceiling_model, 1, lost)
            self._spending = msgspec.structs.replace(self._spending, unknown=unknown, ceiling_usd=None)
        self._new_usages.clear()
        return self

    def _read_journal(self, journal: Path) -> dict[str, AnswerSummary]:
        answers: dict[str, AnswerSummary] = {}
        if journal.exists():
            for start, record in each_jsonl(journal, TeacherRecord.from_json, skip_partial_line=True):
                if record.cost_usd is not None and not 0.0 <= record.cost_usd < math.inf:
                    problem = f"{journal}: the cost of {record.prompt_id} is {record.cost_usd}."
                    raise InputError(problem, "Fix cost_usd.")
                self._count(record, start, answers)
        return answers

    def _count(self, record: TeacherRecord, start: int, answers: dict[str, AnswerSummary]) -> AnswerSummary:
        """Add a record to the answers, and its cost to the usage."""
        key, usd, summary = record.request.prompt_key, record.cost_usd or 0.0, AnswerSummary.of(record, start)
        known = answers.get(key)
        if known is None or summary.complete or not known.complete:
            answers[key] = summary
        if record.batch in self._imported:
            self._imported[record.batch][record.key] = usd
        if usd:
            self._answers_usd += usd
            usage = usage_of(record, self.budget.prices, repeated=known is not None)
            add_usage(self._usages, usage)
            add_usage(self._new_usages, usage)
        return summary

    @property
    def spent_usd(self) -> float:
        """Return the spending, without requests in flight in this run."""
        unknown = sum(each.usd for each in self._spending.unknown.values())
        pending = sum(self.open_usd(batch) for batch in self.batches)
        return self._spending.earlier_usd + self._answers_usd + unknown + pending

    @property
    def left_usd(self) -> float:
        """Return the amount that is left."""
        cap = math.inf if self.budget.max_cost is None else self.budget.max_cost
        return cap - self.spent_usd - self._in_flight_usd

    @property
    def batches(self) -> tuple[PendingBatch, ...]:
        """The pending batches."""
        return self._spending.batches

    def open_usd(self, batch: PendingBatch) -> float:
        """Return the worst case of a pending batch without the answers that are in the journal already."""
        return max(0.0, batch.usd - sum(self._imported.get(batch.id, {}).values()))

    def report(self) -> UsageReport:
        """Return what the project has cost."""
        unknown = (ModelUsage(m, n_unknown=u.n_requests, unknown_usd=u.usd) for m, u in self._spending.unknown.items())
        pending = (
            ModelUsage(model_of(batch.teacher), n_pending=batch.n_requests, pending_usd=self.open_usd(batch))
            for batch in self.batches
        )
        earlier = ModelUsage("before", unknown_usd=self._spending.earlier_usd)
        rest = (earlier,) if earlier.usd else ()
        return usage_report((*self._usages.values(), *unknown, *pending, *rest))

    def run_report(self) -> UsageReport:
        """Return what this run has cost."""
        return usage_report(self._new_usages.values())

    # Live requests

    def fits(self, usd: float) -> bool:
        """Return whether a request that may cost `usd` stays under the cap."""
        return usd <= max(0.0, self.left_usd) + ROUNDING_USD

    def reserve(self, model: str, usd: float) -> None:
        """Allow a request that may cost `usd`. BudgetError if it could exceed the cap."""
        if not self.fits(usd):
            raise BudgetError(f"{usd:.4f} USD may be needed and {max(self.left_usd, 0.0):.4f} USD are left.")
        self._in_flight_usd += usd
        needed = self.spent_usd + self._in_flight_usd
        if usd and (self._spending.ceiling_usd is None or needed > self._spending.ceiling_usd):
            cap = math.inf if self.budget.max_cost is None else self.budget.max_cost
            ceiling = max(needed, min(self.spent_usd + SLACK * self._in_flight_usd, cap))
            self._save(ceiling_usd=ceiling, ceiling_model=model)

    def release(self, usd: float) -> None:
        """End a request that certainly cost nothing, or whose cost was added."""
        self._in_flight_usd = max(0.0, self._in_flight_usd - usd)

    def add_unknown(self, model: str, usd: float) -> None:
        """Count a request in full: it may have been charged."""
        if usd:
            self._save(unknown=self._with_unknown(model, 1, usd))

    def add(self, record: TeacherRecord) -> AnswerSummary:
        """Append an answer to the journal. Answers of batches are on the disk only after `close_batch`."""
        start = self._journal.append(record.to_json(), durable=not record.batch)
        return self._count(record, start, self.answers)

    # Batches

    def read_batch(self, batch: PendingBatch) -> dict[str, PendingRequest]:
        """Return the requests of a pending batch by custom_id."""
        path = self._batches / f"{batch.name}.jsonl"
        advice = (
            "It has the requests of a pending batch: restore it from a copy. To give up the batch, remove it from "
            f'"batches" in {self._file}.'
        )
        requests = {batch.custom_id(each): each for each in read_jsonl(path, PendingRequest.from_json, advice)}
        if len(requests) != batch.n_requests:
            raise InputError(f"{path} has {len(requests)} requests instead of {batch.n_requests}.", advice)
        return requests

    def keys_in_batches(self) -> set[str]:
        """Return the prompt keys that pending batches will answer."""
        return {each.request.prompt_key for batch in self.batches for each in self.read_batch(batch).values()}

    def add_batch(self, batch: PendingBatch, requests: Iterable[PendingRequest]) -> None:
        """Add a pending batch. Its requests are on the disk first."""
        write_jsonl(self._batches / f"{batch.name}.jsonl", [pending.to_json() for pending in requests])
        self.set_batch(batch)

    def set_batch(self, batch: PendingBatch) -> None:
        """Add a pending batch, or replace the one of the same name."""
        if batch.id:
            self._imported.setdefault(batch.id, {})
        self._save(batches=(*self._other_batches(batch), batch))

    def is_imported(self, record: TeacherRecord) -> bool:
        """Return whether the journal has this answer of a pending batch."""
        return record.key in self._imported[record.batch]

    def close_batch(self, batch: PendingBatch, *, unknown_usd: float = 0.0, n_unknown: int = 0) -> None:
        """Remove a batch whose answers are in the journal, and count what is unknown about it."""
        self._journal.flush()
        unknown = self._with_unknown(model_of(batch.teacher), n_unknown, unknown_usd)
        self._save(batches=self._other_batches(batch), unknown=unknown)
        self.remove_orphans()

    def remove_orphans(self) -> None:
        """Remove the requests of batches that are not pending; a kill may leave some."""
        pending = {batch.name for batch in self.batches}
        for file in self._batches.glob("*.jsonl"):
            if file.stem not in pending:
                file.unlink()
        remove_empty([self._batches])

    def _other_batches(self, batch: PendingBatch) -> tuple[PendingBatch, ...]:
        return tuple(each for each in self.batches if each.name != batch.name)

    def _with_unknown(self, model: str, n_requests: int, usd: float) -> dict[str, UnknownCost]:
        """Count requests in full and return all unknown costs."""
        if not usd:
            return self._spending.unknown
        add_usage(self._new_usages, ModelUsage(model, n_unknown=n_requests, unknown_usd=usd))
        known = self._spending.unknown.get(model, UnknownCost())
        return {**self._spending.unknown, model: UnknownCost(known.n_requests + n_requests, known.usd + usd)}

    def _save(self, **changes: Any) -> None:
        self._spending = msgspec.structs.replace(self._spending, **changes)
        write_json(self._file, self._spending.to_json())

    def _remove_if_empty(self) -> None:
        if self.journal.stat().st_size == 0:
            self.journal.unlink()


def _ledger_total(ledger: Path) -> float:
    """Return what a ledger of the first version counts as spent: real costs, and open or unknown ones in full."""
    held: dict[str, float] = {}
    total = 0.0
    try:
        for line in ledger.read_text(encoding="utf-8").splitlines():
            data: Mapping[str, Any] = json.loads(line)
            if data["do"] == "reserve":
                held[data["id"]] = data["usd"]
            elif data["do"] == "unknown":
                total += held.pop(data["id"])
            elif held.pop(data["id"], None) is not None and data["do"] == "settle":
                total += sum(data["cost"][name] for name in ("input_usd", "output_usd", "cache_usd"))
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{ledger} is damaged ({error}).", "Restore it: it says what the project spent.") from error
    return total + sum(held.values())
