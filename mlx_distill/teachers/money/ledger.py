"""The ledger: what asking may cost is on the disk before it is sent, so that a cap holds whatever happens.

One `ledger.jsonl` a project, beside the journals of the answers, shared by all that ask a teacher for money. A request
goes through it like this, at any concurrency, across restarts:

    reservation = ledger.reserve(model, [request])         # its worst case, on the disk; BudgetError over the cap
    try:
        answer = await teacher.answer(request)             # one attempt, without retries inside
    except ...:
        ledger.release(reservation, why)                   # nothing was charged: refused with a 4xx, a rate limit
        ledger.unknown(reservation, why)                   # it may have been charged: counts in full for ever
    else:
        cost = ledger.settle(reservation, [answer.usage])  # the real cost takes its place

A reservation that is never closed (a kill) counts in full, as `unknown` does. A batch is reserved as one, with all of
its requests and the batch's price, before it is created; keep the reservation's id with the batch, and write it there
first, so that a kill in between leaves no reservation that nobody closes:

    reservation = ledger.reserve(model, requests, batch=True, name=reservation_id)
    ...                                                    # create it; days and restarts may pass
    ledger.settle(reservation_id, usages_of_all_that_succeeded)

Settle a batch once, after the last of its answers is in the journal: after a kill before that, its results are read
again from the start, and until then it counts in full. `ledger.under_way` has the batches that are still open.
Requests that errored, expired or were cancelled cost nothing: leave them out. A batch that is known not to
have been created is released; one whose creation's outcome is not known stays open until the provider's list of batches
says whether it exists.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import reduce
from pathlib import Path
from types import TracebackType
from typing import Any

from mlx_distill.errors import BudgetError, InputError
from mlx_distill.records import Request, Usage
from mlx_distill.storage.journal import Journal
from mlx_distill.teachers.money.bill import Bill, Reservation, Tally
from mlx_distill.teachers.money.prices import PRICES, Cost, Price, Prices, cost_of, price_of, worst_usd

MAX_COST = "US dollars that the project may spend in all, over every run, at the worst"
COUNT_COST = "count what answers cost; without it a model needs no price"
PRICES_TABLE = "prices of models, by name, that differ from the built-in table or are not in it"
"""Help of the settings that make a Budget, the same wherever teachers are asked."""

LEDGER = "ledger.jsonl"
"""In the folder of the journal that the answers go to."""


@dataclass(frozen=True)
class Budget:
    """What asking may cost, and how that is counted."""

    max_cost: float | None = None
    """US dollars for the project as a whole; None for no limit."""
    overrides: Prices = field(default_factory=dict)
    """Prices that take the place of the table's, or that it lacks."""
    counted: bool = True
    """False where the user does not want costs counted."""

    def __post_init__(self) -> None:
        if self.max_cost is not None and not 0.0 <= self.max_cost < float("inf"):
            raise ValueError(f"max_cost is {self.max_cost:g}, it must be 0 or more")
        if self.max_cost is not None and not self.counted:
            raise ValueError("max_cost needs costs to be counted; leave out one of max_cost and no-cost")

    @property
    def prices(self) -> Prices:
        return {**PRICES, **self.overrides}

    def price_of(self, model: str) -> Price:
        """The price of a model that is charged for; InputError where there is none."""
        price = price_of(model, self.prices)
        if price is None:
            near = difflib.get_close_matches(model, self.prices, n=1)
            raise InputError(
                f"No price is known for {model}, so what it costs cannot be counted."
                + (f" Did you mean {near[0]}?" if near else ""),
                f'Add it to distill.toml under [prices]: "{model}" = {{ input_usd = 1.0, output_usd = 5.0 }} (dollars '
                "for a million tokens), or do without: --no-cost, or cost = false in distill.toml. A model on this "
                "machine needs none: openai:MODEL@http://localhost:11434/v1",
            )
        return price


class Ledger:
    """The one writer of a project's ledger, as a context manager; opening adds up what was spent before."""

    def __init__(self, path: Path, budget: Budget = Budget()) -> None:
        self.path = path
        self._budget = budget
        self.journal = Journal(path)
        self._open: dict[str, Reservation] = {}
        self._spent = 0.0
        self._n_reserved = 0
        self._before, self._now = Tally(), Tally()

    def __enter__(self) -> Ledger:
        self.journal.__enter__()
        try:
            self.read()
        except BaseException:
            self.journal.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.path.stat().st_size == 0:  # nothing was ever asked: leave no file that looks like data
            self.path.unlink()  # while it is locked: from then on another process may write to it
        self.journal.close()

    def read(self) -> Ledger:
        """Add up what was spent before, where there is a ledger; alone, without entering, it only looks."""
        for number, data in _lines(self.path):
            self._fold(data, f"line {number}")
        for lost in [one for one in self._open.values() if not one.batch]:
            self._before.unknown(self._open.pop(lost.id))
        return self

    @property
    def spent_usd(self) -> float:
        """What counts as spent: real costs, and in full what is open or unknown."""
        return self._spent

    @property
    def left_usd(self) -> float:
        """What may still be reserved; infinite where there is no cap."""
        return float("inf") if self._budget.max_cost is None else self._budget.max_cost - self._spent

    @property
    def under_way(self) -> Mapping[str, Reservation]:
        """Open batches by the id of their reservation, those of earlier processes too."""
        return {name: one for name, one in self._open.items() if one.batch}

    def price_of(self, model: str) -> Price:
        """The price that a model's requests are counted at; InputError where there is none."""
        return self._budget.price_of(model)

    def worst_usd(self, model: str, requests: Sequence[Request], *, batch: bool = False) -> float | None:
        """The most that the requests can cost; None where a prompt may be longer than the price is good for."""
        price = self.price_of(model)
        each = [worst_usd(price, request.messages, request.max_tokens, batch=batch) for request in requests]
        known = [usd for usd in each if usd is not None]
        return sum(known) if len(known) == len(each) else None

    def reserve(
        self, model: str, requests: Sequence[Request], *, batch: bool = False, again: bool = False, name: str = ""
    ) -> Reservation:
        """Set the worst case of these requests aside, on the disk when this returns, perhaps under a name of its own.

        Raises BudgetError, with nothing written, where it does not fit under the cap: perhaps it will when others
        have been settled. Raises InputError where there is no price for it.
        """
        usd = self.worst_usd(model, requests, batch=batch)
        if usd is None:
            most = self.price_of(model).most_input_tokens
            raise InputError(
                f"a prompt may have more than the {most} tokens that the price of {model} is good for",
                "Give most_input_tokens and prices in distill.toml under [prices], or use --no-cost.",
            )
        if usd > self.left_usd:
            raise BudgetError(f"{usd:.4f} USD are needed at most and {max(self.left_usd, 0.0):.4f} USD are left.")
        reservation = Reservation(name or str(self._n_reserved + 1), model, usd, len(requests), batch, again)
        key = requests[0].key if len(requests) == 1 else ""
        self.journal.append({"do": "reserve", **asdict(reservation), "key": key, "at": _now()})
        self._add(reservation)
        return reservation

    def settle(self, reservation: Reservation | str, usages: Sequence[Usage]) -> float | None:
        """Put what the answers really used in the place of what was set aside; returns the cost in US dollars.

        None where one of them cannot be priced: then what was set aside counts, as for `unknown`. The line of a single
        request need not reach the disk at once: without it the reservation counts in full.
        """
        held = self._held(reservation)
        costs = [cost for cost in (self.cost_of(held.model, one, batch=held.batch) for one in usages) if cost]
        if len(costs) < len(usages):
            self.unknown(held, "its usage is not known", n_answers=len(usages))
            return None
        usage, cost = reduce(Usage.plus, usages, Usage()), reduce(Cost.plus, costs, Cost())
        self._write("settle", held, {"n_answers": len(usages), "usage": asdict(usage), "cost": asdict(cost)})
        self._settled(self._now, held, usage, cost, len(usages))
        return cost.usd

    def cost_of(self, model: str, usage: Usage, *, batch: bool = False) -> Cost | None:
        """What an answer cost; None where its provider did not say what it used, or no price is good for it."""
        cost = cost_of(self.price_of(model), usage, batch=batch) if usage != Usage() else None
        return cost if cost and _makes_sense(cost.usd) else None

    def unknown(self, reservation: Reservation | str, why: str, *, n_answers: int = 0) -> None:
        """Count what was set aside as spent: it may have been."""
        held = self._held(reservation)
        self._write("unknown", held, {"n_answers": n_answers, "why": why})
        self._now.unknown(self._open.pop(held.id), n_answers)

    def release(self, reservation: Reservation | str, why: str) -> None:
        """Give back what was set aside: nothing was charged."""
        held = self._held(reservation)
        self._write("release", held, {"why": why})
        self._spent -= self._open.pop(held.id).usd

    def bill(self) -> Bill:
        """What the project has cost, this process included."""
        return self._before.bill().plus(self._now.bill(self.under_way.values()))

    def bill_now(self) -> Bill:
        """What was settled, or became unknown, by this process."""
        return self._now.bill()

    def _held(self, reservation: Reservation | str) -> Reservation:
        return self._open[reservation if isinstance(reservation, str) else reservation.id]

    def _write(self, what: str, held: Reservation, more: Mapping[str, Any]) -> None:
        self.journal.append({"do": what, "id": held.id, **more, "at": _now()}, durable=held.batch)

    def _add(self, reservation: Reservation) -> None:
        self._open[reservation.id] = reservation
        self._n_reserved += 1
        self._spent += reservation.usd

    def _settled(self, tally: Tally, held: Reservation, usage: Usage, cost: Cost, n_answers: int) -> None:
        self._spent += cost.usd - self._open.pop(held.id).usd
        tally.settled(held, usage, cost, n_answers)

    def _fold(self, data: Any, where: str) -> None:
        """Do again what a line says was done."""
        try:
            if data["do"] == "reserve":
                reservation = Reservation(**{name: data[name] for name in Reservation.__dataclass_fields__})
                if not _makes_sense(reservation.usd):
                    raise ValueError(f"{reservation.usd} USD are set aside")
                self._add(reservation)
                return
            held = self._held(data["id"])
            if data["do"] == "settle":
                usage, cost = Usage(**data["usage"]), Cost(**data["cost"])
                if not _makes_sense(cost.usd):
                    raise ValueError(f"{cost.usd} USD are spent")
                self._settled(self._before, held, usage, cost, data["n_answers"])
            elif data["do"] == "unknown":
                self._before.unknown(self._open.pop(held.id), data["n_answers"])
            elif data["do"] == "release":
                self._spent -= self._open.pop(held.id).usd
            else:
                raise ValueError(f"it does not know {data['do']!r}")
        except (KeyError, TypeError, ValueError) as error:
            raise _damaged(self.path, where, error) from error


def _makes_sense(usd: float) -> bool:
    """A sum with NaN or less than nothing in it would unmake every cap."""
    return 0.0 <= usd < math.inf


def _lines(path: Path) -> Iterator[tuple[int, Any]]:
    """(line number, data) of a ledger, one line in memory at a time; a last line that is being written is left out."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            try:
                yield number, json.loads(line)
            except ValueError as error:
                raise _damaged(path, f"line {number}", error) from error


def _damaged(path: Path, where: str, error: Exception) -> InputError:
    return InputError(
        f"{path} is damaged at {where} ({type(error).__name__}: {error}).",
        "It says what the project has spent: bring it back from a copy. Without it, what was spent is forgotten.",
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
