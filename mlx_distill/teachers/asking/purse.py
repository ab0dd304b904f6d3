"""A round's way to the ledger: every attempt is reserved before it is sent and closed when its outcome is known."""

from __future__ import annotations

import asyncio

from msgspec import structs

from mlx_distill.errors import BudgetError, InputError, TeacherError
from mlx_distill.records import Answer, Request, Usage
from mlx_distill.teachers.money.bill import Reservation
from mlx_distill.teachers.money.ledger import Ledger
from mlx_distill.teachers.money.prices import Prices, price_of
from mlx_distill.teachers.protocol import NoAnswerError, TryLaterError, UnreadableError


class Purse:
    """Reserves and closes for one teacher; without a ledger (a free teacher, --no-cost) it does nothing."""

    def __init__(self, ledger: Ledger | None, model: str, prices: Prices) -> None:
        self._ledger, self._model, self._prices = ledger, model, prices
        self._n_open = 0
        self._closed = asyncio.Event()

    async def reserve(self, request: Request, *, again: bool) -> Reservation | None:
        """Set the worst case aside. What does not fit under the cap waits while others may come out cheaper.

        Raises BudgetError where it does not fit and nothing is under way, NoAnswerError where it cannot be priced.
        """
        while self._ledger:
            try:
                reservation = self._ledger.reserve(self._model, [request], again=again)
            except InputError as error:
                raise NoAnswerError(error.message) from error
            except BudgetError:
                if self._n_open == 0:
                    raise
                self._closed.clear()
                await self._closed.wait()
            else:
                self._n_open += 1
                return reservation
        return None

    def priced(self, answer: Answer) -> Answer:
        """The answer with its cost, which is None where it is not known."""
        if self._ledger is None:
            return answer
        cost = self._ledger.cost_of(self._model, answer.usage) if self._is_priced(answer) else None
        return structs.replace(answer, cost_usd=cost.usd if cost else None)

    def settle(self, held: Reservation | None, answer: Answer) -> None:
        """Close the reservation of an attempt that was answered: its cost counts, or in full where it is not known."""
        if self._ledger is None or held is None:
            return
        if self._is_priced(answer):
            self._ledger.settle(held, [answer.usage])
        else:
            self._ledger.unknown(held, f"{answer.model} answered, its cost is not known", n_answers=1)
        self._freed()

    def failed(self, held: Reservation | None, error: BaseException) -> None:
        """Close the reservation of an attempt that brought no answer."""
        if self._ledger is None or held is None:
            return
        if _may_be_charged(error):
            self._ledger.unknown(held, str(error) or type(error).__name__)
        else:
            self._ledger.release(held, str(error))
        self._freed()

    def _freed(self) -> None:
        self._n_open -= 1
        self._closed.set()

    def _is_priced(self, answer: Answer) -> bool:
        """Whether the price of the model that was asked holds: providers name a snapshot, or nothing, in answers."""
        name = answer.model
        known = not name or name.startswith(self._model) or price_of(name, self._prices) is not None
        return known and answer.usage != Usage()


def _may_be_charged(error: BaseException) -> bool:
    """Whether an attempt that ended so may have cost something."""
    if isinstance(error, TryLaterError):
        return error.may_be_charged
    refused = isinstance(error, NoAnswerError | TeacherError)
    return not refused or isinstance(error, UnreadableError)
