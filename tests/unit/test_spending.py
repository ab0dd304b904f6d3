"""The ledger: worst cases on the disk before anything is sent, real costs after, and a cap that holds."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_distill.errors import BudgetError, InputError
from mlx_distill.records import Request, Usage, build_messages
from mlx_distill.storage.journal import Journal
from mlx_distill.teachers.money.ledger import Budget, Ledger
from mlx_distill.teachers.money.prices import FRAME_TOKENS, PRICES, Price, cost_of, most_input_tokens, worst_usd

MODEL = "claude-sonnet-4-6"
WORST = (FRAME_TOKENS + 4) * 3e-6 + 1000 * 15e-6
"""Of `request()`: four bytes of prompt and a thousand tokens of answer."""


def request(text: str = "Why?", max_tokens: int = 1000) -> Request:
    return Request(f"anthropic:{MODEL}", build_messages(text), max_tokens)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.jsonl"


def test_the_worst_case_is_on_the_disk_before_reserve_returns(path: Path) -> None:
    with Ledger(path) as ledger:
        reservation = ledger.reserve(MODEL, [request()])
        [line] = path.read_text().splitlines()
        written = json.loads(line)
        assert (written["do"], written["model"], written["key"]) == ("reserve", MODEL, request().key)
        assert written["usd"] == reservation.usd == pytest.approx(WORST)
        assert ledger.spent_usd == reservation.usd


def test_the_real_cost_takes_the_place_of_the_worst(path: Path) -> None:
    with Ledger(path) as ledger:
        cost = ledger.settle(ledger.reserve(MODEL, [request()]), [Usage(100, 50, thinking_tokens=20)])
        assert cost == pytest.approx(100 * 3e-6 + 50 * 15e-6)
        assert ledger.spent_usd == pytest.approx(cost)
        [line] = ledger.bill().lines
    assert (line.n_answers, line.input_tokens, line.output_tokens, line.thinking_tokens) == (1, 100, 50, 20)
    assert (line.input_usd, line.output_usd) == (pytest.approx(0.0003), pytest.approx(0.00075))
    assert line.thinking_usd == pytest.approx(20 * 15e-6)
    assert line.usd == pytest.approx(cost)


def test_what_was_refused_costs_nothing_and_what_is_unknown_costs_the_worst(path: Path) -> None:
    with Ledger(path) as ledger:
        ledger.release(ledger.reserve(MODEL, [request()]), "rate limit (429)")
        assert ledger.spent_usd == 0.0
        ledger.unknown(ledger.reserve(MODEL, [request()], again=True), "no connection")
        assert ledger.spent_usd == pytest.approx(WORST)
        line = ledger.bill_now().total
    assert (line.n_answers, line.n_unknown, line.n_retries) == (0, 1, 1)
    assert line.unknown_usd == line.retries_usd == pytest.approx(WORST)


def test_an_answer_without_usage_counts_in_full(path: Path) -> None:
    with Ledger(path) as ledger:
        assert ledger.settle(ledger.reserve(MODEL, [request()]), [Usage()]) is None
        assert ledger.spent_usd == pytest.approx(WORST)
        assert (ledger.bill().total.n_answers, ledger.bill().total.n_unknown) == (1, 1)


def test_what_was_spent_is_known_after_a_restart(path: Path) -> None:
    with Ledger(path) as ledger:
        ledger.settle(ledger.reserve(MODEL, [request()]), [Usage(100, 50)])
        ledger.unknown(ledger.reserve("claude-haiku-4-5", [request()]), "no connection")
        ledger.release(ledger.reserve(MODEL, [request()]), "overloaded")
        bill, spent = ledger.bill(), ledger.spent_usd
    with Ledger(path) as ledger:
        assert ledger.bill() == bill
        assert ledger.spent_usd == pytest.approx(spent)
        assert ledger.bill_now().lines == ()
        assert [line.model for line in bill.lines] == ["claude-haiku-4-5", MODEL]


def test_a_request_under_way_at_a_kill_counts_in_full_ever_after(path: Path) -> None:
    with Ledger(path) as ledger:
        ledger.reserve(MODEL, [request()])
    for _ in range(2):
        with Ledger(path) as ledger:
            assert ledger.spent_usd == pytest.approx(WORST)
            assert ledger.bill().total.n_unknown == 1


def test_a_batch_is_reserved_at_its_price_stays_open_over_restarts_and_is_settled_once(path: Path) -> None:
    requests = [request(f"Why {number}?") for number in range(3)]
    with Ledger(path) as ledger:
        reservation = ledger.reserve(MODEL, requests, batch=True)
        each = worst_usd(PRICES[MODEL], requests[0].messages, 1000)
        assert each is not None
        assert reservation.usd == pytest.approx(3 * each / 2)
    with Ledger(path) as ledger:
        assert list(ledger.under_way) == [reservation.id]
        assert (ledger.bill().total.n_under_way, ledger.bill().total.n_unknown) == (3, 0)
        assert ledger.bill().total_usd == pytest.approx(reservation.usd)
        cost = ledger.settle(reservation.id, [Usage(150, 40), Usage(50, 60)])
        assert cost == pytest.approx((200 * 3e-6 + 100 * 15e-6) / 2)
    with Ledger(path) as ledger:
        assert not ledger.under_way
        [line] = ledger.bill().lines
        assert (line.n_answers, line.n_under_way) == (2, 0)
        assert line.usd == line.batch_saved_usd == pytest.approx(cost)


def test_a_batch_of_an_answer_that_says_nothing_of_its_use_counts_in_full(path: Path) -> None:
    with Ledger(path) as ledger:
        reservation = ledger.reserve(MODEL, [request("a"), request("b")], batch=True)
        assert ledger.settle(reservation, [Usage(100, 50), Usage()]) is None
        assert ledger.spent_usd == pytest.approx(reservation.usd)
        assert (ledger.bill().total.n_answers, ledger.bill().total.n_unknown) == (2, 2)


def test_each_prompt_of_a_batch_has_the_price_of_its_own_length(path: Path) -> None:
    with Ledger(path) as ledger:
        reservation = ledger.reserve("claude-haiku-5-5", [request("a"), request("b")], batch=True)
        assert ledger.settle(reservation, [Usage(60_000, 1), Usage(60_000, 1)]) is not None


def test_what_does_not_fit_under_the_cap_is_not_reserved_and_does_once_others_are_settled(path: Path) -> None:
    with Ledger(path, Budget(max_cost=1.5 * WORST)) as ledger:
        first = ledger.reserve(MODEL, [request()])
        with pytest.raises(BudgetError, match="are needed at most"):
            ledger.reserve(MODEL, [request()])
        assert len(path.read_text().splitlines()) == 1
        ledger.settle(first, [Usage(10, 10)])
        ledger.reserve(MODEL, [request()])


def test_the_cap_counts_what_was_spent_before(path: Path) -> None:
    with Ledger(path) as ledger:
        ledger.unknown(ledger.reserve(MODEL, [request()]), "no connection")
    with Ledger(path, Budget(max_cost=1.9 * WORST)) as ledger, pytest.raises(BudgetError):
        ledger.reserve(MODEL, [request()])


@settings(max_examples=50, deadline=None)
@given(steps=st.lists(st.tuples(st.sampled_from("rsua"), st.integers(0, 1000)), max_size=40), cap=st.floats(0, 0.2))
def test_no_order_of_events_spends_more_than_the_cap(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int]], cap: float
) -> None:
    path = tmp_path_factory.mktemp("ledger") / "ledger.jsonl"
    budget = Budget(max_cost=cap)
    ledger = Ledger(path, budget).__enter__()
    under_way = []
    for step, tokens in steps:
        if step == "a":  # a restart: everything under way is lost
            ledger.__exit__(None, None, None)
            ledger, under_way = Ledger(path, budget).__enter__(), []
        elif step == "r" or not under_way:
            try:
                under_way.append(ledger.reserve(MODEL, [request()]))
            except BudgetError:
                assert ledger.spent_usd + WORST > cap * 0.999
        elif step == "s":
            ledger.settle(under_way.pop(0), [Usage(min(tokens + 1, FRAME_TOKENS), tokens)])
        else:
            ledger.unknown(under_way.pop(), "no connection")
        assert ledger.spent_usd <= cap + 1e-12
        assert ledger.bill().total_usd + sum(one.usd for one in under_way) == pytest.approx(ledger.spent_usd)
    ledger.__exit__(None, None, None)


def test_one_process_writes_a_ledger_and_others_may_look(path: Path) -> None:
    with Ledger(path) as ledger:
        ledger.reserve(MODEL, [request()])
        with pytest.raises(InputError, match="another mlx-distill"), Ledger(path):
            pass
        assert Ledger(path).read().spent_usd == pytest.approx(WORST)


def test_a_ledger_that_was_never_written_leaves_no_file(path: Path) -> None:
    with Ledger(path):
        pass
    assert not path.exists()
    assert Ledger(path).read().spent_usd == 0.0


def test_a_torn_last_line_is_cut_off(path: Path) -> None:
    with Ledger(path) as ledger:
        reservation = ledger.reserve(MODEL, [request()])
        ledger.settle(reservation, [Usage(100, 50)])
    path.write_bytes(path.read_bytes()[:-9])
    with Ledger(path) as ledger:
        assert ledger.spent_usd == pytest.approx(WORST)
        ledger.reserve(MODEL, [request()])
    assert [json.loads(line)["id"] for line in path.read_text().splitlines()] == ["1", "2"]


@pytest.mark.parametrize(
    "more",
    [
        {"do": "reserve", "id": "2", "usd": float("nan")},
        {"do": "reserve", "id": "2", "usd": -5.0},
        {"do": "settle", "id": "1", "n_answers": 1, "usage": {}, "cost": {"output_usd": -9.0}},
    ],
)
def test_a_ledger_that_says_what_cannot_be_is_damaged(path: Path, more: dict[str, Any]) -> None:
    with Ledger(path) as ledger:
        ledger.reserve(MODEL, [request()])
    first = json.loads(path.read_text())
    with path.open("a") as file:
        file.write(json.dumps({**first, **more}) + "\n")
    with pytest.raises(InputError, match="line 2"):
        Ledger(path).read()


@pytest.mark.parametrize("line", ["{", "[]", '{"do": "settle", "id": "7"}', '{"do": "spend", "id": "1"}'])
def test_a_damaged_line_is_named_and_nothing_is_spent(path: Path, line: str) -> None:
    with Ledger(path) as ledger:
        ledger.reserve(MODEL, [request()])
    with path.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(InputError, match="line 2"), Ledger(path):
        pass
    with Journal(path):
        """The lock was given back."""


def test_a_model_without_a_price_is_refused_with_how_to_give_one(path: Path) -> None:
    with Ledger(path) as ledger, pytest.raises(InputError, match="No price is known for claude-new") as raised:
        ledger.reserve("claude-new", [request()])
    assert '"claude-new" = { input_usd' in raised.value.next_step
    assert "--no-cost" in raised.value.next_step
    with Ledger(path, Budget(overrides={"claude-new": Price(1.0, 2.0)})) as ledger:
        assert ledger.reserve("claude-new", [request()]).usd == pytest.approx(204e-6 + 2000e-6)


def test_a_prompt_that_may_be_longer_than_its_price_is_good_for_is_refused(path: Path) -> None:
    with Ledger(path) as ledger, pytest.raises(InputError, match="100000 tokens that the price"):
        ledger.reserve("claude-haiku-5-5", [request("x" * 100_000)])


def test_a_kill_at_any_moment_leaves_a_ledger_that_counts_all_that_was_reserved(path: Path) -> None:
    """The child says what it is about to send after reserving it, so the parent knows what may have been spent."""
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from mlx_distill.records import Request, Usage, build_messages\n"
        "from mlx_distill.teachers.money.ledger import Ledger\n"
        "with Ledger(Path(sys.argv[1])) as ledger:\n"
        "    for number in range(100000):\n"
        "        held = ledger.reserve('claude-sonnet-4-6', [Request('t', build_messages('Why?'), 1000)])\n"
        "        print('sent', flush=True)\n"
        "        if number % 2: ledger.settle(held, [Usage(100, 50)])\n"
    )
    n_sent = 0
    for seed in range(4):
        child = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
        assert child.stdout
        for _ in range(random.Random(seed).randint(5, 40)):
            child.stdout.readline()
            n_sent += 1
        os.kill(child.pid, signal.SIGKILL)
        n_sent += len(child.stdout.readlines())
        child.wait()
        child.stdout.close()
        with Ledger(path) as ledger:
            total = ledger.bill().total
        n_reserved = sum('"do": "reserve"' in line for line in path.read_text().splitlines())
        assert n_sent <= n_reserved <= n_sent + seed + 1
        assert total.n_answers + total.n_unknown == n_reserved


@given(text=st.text(), price=st.builds(Price, st.floats(0, 100), st.floats(0, 100)))
def test_the_bound_on_input_holds_for_any_text(text: str, price: Price) -> None:
    messages = build_messages(text, "Be brief.")
    assert most_input_tokens(messages) >= len(text) + len("Be brief.")
    most = cost_of(price, Usage(len(text), 7))
    assert most is not None
    assert worst_usd(price, messages, 7) >= most.usd


@pytest.mark.parametrize(
    ("values", "said"),
    [((-1.0, 1.0), "input_usd is -1"), ((1.0, float("nan")), "output_usd is nan"), ((1.0, 1.0, 0), "most_input")],
)
def test_a_price_that_cannot_be_is_refused(values: tuple[float, ...], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Price(*values)
