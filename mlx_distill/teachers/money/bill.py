"""What asking has cost, by model: added up while it is spent, and again from the ledger when it is opened."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, fields

from mlx_distill.records import Usage
from mlx_distill.teachers.money.prices import Cost


@dataclass(frozen=True)
class BillLine:
    """What one model cost. Tokens are those of answers; `usd` is everything that counts as spent."""

    model: str
    n_answers: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    """Thinking included."""
    thinking_tokens: int = 0
    cache_tokens: int = 0
    """Input that was written to or read from the prompt cache."""
    input_usd: float = 0.0
    output_usd: float = 0.0
    thinking_usd: float = 0.0
    """The part of `output_usd` that was thinking."""
    cache_usd: float = 0.0
    batch_saved_usd: float = 0.0
    """What batches would have cost more as single requests; no part of `usd`."""
    n_retries: int = 0
    """Requests that asked something again, after a failure or an answer that was cut off."""
    retries_usd: float = 0.0
    """What they cost: a part of the other figures."""
    n_unknown: int = 0
    """Requests that may or may not have been charged (a dropped connection, a kill): counted in full."""
    unknown_usd: float = 0.0
    n_under_way: int = 0
    """Requests of batches that have not been fetched yet: counted in full."""
    under_way_usd: float = 0.0

    @property
    def usd(self) -> float:
        return self.input_usd + self.output_usd + self.cache_usd + self.unknown_usd + self.under_way_usd

    def plus(self, other: BillLine) -> BillLine:
        """Both together, under this one's name."""
        numbers = [each.name for each in fields(self) if each.name != "model"]
        return BillLine(self.model, **{name: getattr(self, name) + getattr(other, name) for name in numbers})


@dataclass(frozen=True)
class Bill:
    """What was spent, by model and in all."""

    lines: tuple[BillLine, ...] = ()
    total_usd: float = 0.0

    @property
    def total(self) -> BillLine:
        """All models in one line."""
        whole = BillLine("all")
        for line in self.lines:
            whole = whole.plus(line)
        return whole

    def plus(self, other: Bill) -> Bill:
        """Both together."""
        tally = Tally()
        for line in (*self.lines, *other.lines):
            tally.add(line)
        return tally.bill()


@dataclass(frozen=True)
class Reservation:
    """What was set aside for a request, or for a batch of them, before it was sent."""

    id: str
    """A number, or a batch's name, that no other reservation of the ledger has."""
    model: str
    usd: float
    n_requests: int
    batch: bool
    again: bool
    """Whether it asks something again."""


@dataclass
class Tally:
    """Adds up a bill."""

    lines: dict[str, BillLine] = field(default_factory=dict)

    def add(self, line: BillLine) -> None:
        known = self.lines.get(line.model)
        self.lines[line.model] = known.plus(line) if known else line

    def settled(self, reservation: Reservation, usage: Usage, cost: Cost, n_answers: int) -> None:
        self.add(
            BillLine(
                reservation.model,
                n_answers=n_answers,
                input_tokens=usage.input_tokens,
                output_tokens=usage.output_tokens,
                thinking_tokens=usage.thinking_tokens,
                cache_tokens=usage.cache_creation_tokens + usage.cache_read_tokens,
                input_usd=cost.input_usd,
                output_usd=cost.output_usd,
                thinking_usd=cost.thinking_usd,
                cache_usd=cost.cache_usd,
                batch_saved_usd=cost.saved_usd,
                n_retries=reservation.n_requests if reservation.again else 0,
                retries_usd=cost.usd if reservation.again else 0.0,
            )
        )

    def unknown(self, reservation: Reservation, n_answers: int = 0) -> None:
        again = reservation.again
        self.add(
            BillLine(
                reservation.model,
                n_answers=n_answers,
                n_retries=reservation.n_requests if again else 0,
                retries_usd=reservation.usd if again else 0.0,
                n_unknown=reservation.n_requests,
                unknown_usd=reservation.usd,
            )
        )

    def bill(self, under_way: Iterable[Reservation] = ()) -> Bill:
        """The bill of what was added, with batches that are under way."""
        whole = Tally(dict(self.lines))
        for one in under_way:
            whole.add(BillLine(one.model, n_under_way=one.n_requests, under_way_usd=one.usd))
        lines = tuple(sorted(whole.lines.values(), key=lambda line: line.model))
        return Bill(lines, sum(line.usd for line in lines))
