"""The store: the cap holds in every order of events, across kills and restarts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_distill.errors import BudgetError, InputError
from mlx_distill.records import Answer, Prompt, Request, TeacherRecord, Usage, build_messages
from mlx_distill.teachers.pricing import Budget
from mlx_distill.teachers.store import AnswerStore, PendingBatch
from tests.support.teachers import MODEL

WORST = 0.02


def store_in(folder: Path, max_cost: float | None = None) -> AnswerStore:
    return AnswerStore(folder / "teacher_data.jsonl", Budget(max_cost=max_cost))


def record(number: int, usd: float | None, batch: str = "") -> TeacherRecord:
    request = Request(f"anthropic:{MODEL}", build_messages(f"Why {number}?"), 1000)
    answer = Answer("So.", "end_turn", MODEL, Usage(10, 10), usd)
    return TeacherRecord.of(Prompt(f"Why {number}?"), request, answer, batch=batch)


def spending(folder: Path) -> dict[str, object]:
    data: dict[str, object] = json.loads((folder / "spending.json").read_text())
    return data


def kill(store: AnswerStore) -> None:
    """End a store as a kill does: locks are released, nothing is written."""
    store._stack.close()


def test_worst_case_is_on_the_disk_before_a_request(tmp_path: Path) -> None:
    with store_in(tmp_path) as store:
        store.reserve(MODEL, WORST)
        assert spending(tmp_path)["ceiling_usd"] == pytest.approx(1.25 * WORST)


def test_ceiling_is_written_rarely_and_never_above_the_cap(tmp_path: Path) -> None:
    ceilings = set()
    with store_in(tmp_path, max_cost=1.0) as store:
        for number in range(200):
            store.reserve(MODEL, WORST)
            ceilings.add(spending(tmp_path)["ceiling_usd"])
            store.add(record(number, 0.004))
            store.release(WORST)
    assert 1 < len(ceilings) < 200
    assert all(isinstance(usd, float) and usd <= 1.0 for usd in ceilings)


def test_real_cost_replaces_the_worst_case(tmp_path: Path) -> None:
    with store_in(tmp_path) as store:
        store.reserve(MODEL, WORST)
        store.add(record(1, 0.001))
        store.release(WORST)
        assert store.spent_usd == pytest.approx(0.001)
    [usage] = store_in(tmp_path).read().report().models
    assert usage.n_answers == 1
    assert usage.usd == pytest.approx(0.001)
    assert spending(tmp_path)["ceiling_usd"] is None


def test_unknown_outcomes_count_in_full_ever_after(tmp_path: Path) -> None:
    with store_in(tmp_path) as store:
        store.reserve(MODEL, WORST)
        store.add_unknown(MODEL, WORST)
        store.release(WORST)
        assert store.run_report().total.n_unknown == 1
    for _ in range(2):
        with store_in(tmp_path) as store:
            assert store.spent_usd == pytest.approx(WORST)
            assert store.run_report().models == ()


def test_killed_run_counts_in_full_ever_after(tmp_path: Path) -> None:
    store = store_in(tmp_path).__enter__()
    store.reserve(MODEL, WORST)
    kill(store)
    for _ in range(2):
        with store_in(tmp_path) as later:
            assert WORST <= later.spent_usd <= 1.3 * WORST
            assert later.report().total.n_unknown == 1


def test_cap_counts_what_other_journals_cost(tmp_path: Path) -> None:
    with AnswerStore(tmp_path / "expand.jsonl", Budget()) as store:
        store.add(record(1, 0.9 * WORST))
    with store_in(tmp_path, max_cost=1.8 * WORST) as store, pytest.raises(BudgetError, match="may be needed"):
        store.reserve(MODEL, WORST)
    assert not (tmp_path / "teacher_data.jsonl").exists()


def test_requests_fit_again_once_others_cost_less(tmp_path: Path) -> None:
    with store_in(tmp_path, max_cost=1.5 * WORST) as store:
        store.reserve(MODEL, WORST)
        with pytest.raises(BudgetError):
            store.reserve(MODEL, WORST)
        store.add(record(1, 0.001))
        store.release(WORST)
        store.reserve(MODEL, WORST)


@settings(max_examples=50, deadline=None)
@given(steps=st.lists(st.tuples(st.sampled_from("rsuka"), st.integers(0, 1000)), max_size=40), cap=st.floats(0, 0.2))
def test_no_order_of_events_exceeds_the_cap(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int]], cap: float
) -> None:
    folder = tmp_path_factory.mktemp("store")
    store, in_flight, charged = store_in(folder, cap).__enter__(), 0, 0.0
    for number, (step, share) in enumerate(steps):
        if step == "k":
            charged += in_flight * WORST  # the provider may charge everything in flight
            kill(store)
            store, in_flight = store_in(folder, cap).__enter__(), 0
        elif step == "r" or not in_flight:
            try:
                store.reserve(MODEL, WORST)
                in_flight += 1
            except BudgetError:
                assert store.spent_usd + (in_flight + 1) * WORST > 0.99 * cap
        else:
            usd = WORST if step == "u" else WORST * share / 1000
            store.add_unknown(MODEL, usd) if step == "u" else store.add(record(number, usd))
            store.release(WORST)
            in_flight, charged = in_flight - 1, charged + usd
        assert charged - 1e-9 <= store.spent_usd <= cap + 1e-9
    kill(store)


def test_batches_count_in_full_until_they_are_closed(tmp_path: Path) -> None:
    batch = PendingBatch("n", f"anthropic:{MODEL}", 3, 0.3, "2026-01-01T00:00:00+00:00", id="b1")
    with store_in(tmp_path) as store:
        store.set_batch(batch)
        store.add(record(1, 0.01, batch="b1"))
        assert store.spent_usd == pytest.approx(0.3)
    with store_in(tmp_path) as store:
        assert store.spent_usd == pytest.approx(0.3)
        assert store.report().total.n_pending == 3
        store.close_batch(batch, unknown_usd=0.1, n_unknown=1)
        assert store.spent_usd == pytest.approx(0.11)
        assert store.run_report().total.n_unknown == 1
    assert store_in(tmp_path).read().spent_usd == pytest.approx(0.11)


def test_old_ledger_is_carried_over_once(tmp_path: Path) -> None:
    lines = [
        {"do": "reserve", "id": "1", "usd": 0.5},
        {"do": "settle", "id": "1", "cost": {"input_usd": 0.1, "output_usd": 0.2, "cache_usd": 0.0}},
        {"do": "reserve", "id": "2", "usd": 0.4},
        {"do": "unknown", "id": "2"},
        {"do": "reserve", "id": "3", "usd": 0.3},
        {"do": "release", "id": "3"},
        {"do": "reserve", "id": "4", "usd": 0.25},
    ]
    (tmp_path / "ledger.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "teacher_data.jsonl").write_text(json.dumps(record(1, 0.3).to_json()) + "\n")
    for _ in range(2):
        with store_in(tmp_path) as store:
            assert store.spent_usd == pytest.approx(0.3 + 0.4 + 0.25)
            store.reserve(MODEL, WORST)
            store.release(WORST)


def test_one_process_asks_in_a_folder_and_others_may_look(tmp_path: Path) -> None:
    with store_in(tmp_path) as store:
        store.add_unknown(MODEL, WORST)
        with pytest.raises(InputError, match="another mlx-distill"):
            AnswerStore(tmp_path / "expand.jsonl", Budget()).__enter__()
        assert store_in(tmp_path).read().spent_usd == pytest.approx(WORST)
    with store_in(tmp_path):
        """The lock is free again."""


def test_nothing_is_left_if_nothing_was_asked(tmp_path: Path) -> None:
    with store_in(tmp_path / "new" / "folder"):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["{", "[]", '{"earlier_usd": -1.0}', '{"ceiling_usd": NaN}', '{"batches": [{}]}'])
def test_damaged_spending_is_named_and_nothing_is_sent(tmp_path: Path, damage: str) -> None:
    (tmp_path / "spending.json").write_text(damage)
    with pytest.raises(InputError, match=r"spending\.json is damaged"):
        store_in(tmp_path).__enter__()


@pytest.mark.parametrize("usd", [float("nan"), -5.0])
def test_impossible_cost_in_a_journal_is_refused(tmp_path: Path, usd: float) -> None:
    (tmp_path / "teacher_data.jsonl").write_text(json.dumps(record(1, usd).to_json()) + "\n")
    with pytest.raises(InputError, match="the cost of"):
        store_in(tmp_path).read()
