"""Runs the code of every Python answer in the embedded sample and checks what it does."""

from __future__ import annotations

import asyncio
import operator
import os
import time
from collections.abc import Iterator
from datetime import date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from threading import Event
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock, Mock, call

import pytest

from tests.sample import answers


@pytest.fixture
def given(request: pytest.FixtureRequest) -> ModuleType:
    """The module that the answer's code makes; `test_lru_cache` gets the answer to the prompt `lru-cache`."""
    prompt_id = request.node.name.removeprefix("test_").replace("_", "-")
    return answers.run_python(answers.code(prompt_id, "python"))


def test_every_python_answer_has_a_test() -> None:
    tested = [name for name in vars(TestPythonAnswers) if name.startswith("test_")]
    assert tested == [f"test_{prompt_id}".replace("-", "_") for prompt_id in answers.ids("python")]


class TestPythonAnswers:
    """One test for each answer, in the order of the file."""

    def test_lru_cache(self, given: Any) -> None:
        cache = given.LruCache(2)
        cache.put("a", 1)
        cache.put("b", 2)
        assert cache.get("a") == 1
        cache.put("c", 3)
        assert [cache.get(key) for key in "abc"] == [1, None, 3]
        cache.put("a", 10)
        cache.put("d", 4)
        assert [cache.get(key) for key in "acd"] == [10, None, 4]

    def test_lru_cache_expiry(self, given: Any) -> None:
        fetch, clock = Mock(side_effect=[1.0, 2.0, 3.0]), Mock(return_value=0.0)
        rate = given.with_expiry(fetch, clock=clock)
        assert [rate("EURUSD"), rate("EURUSD"), rate("EURCHF")] == [1.0, 1.0, 2.0]
        clock.return_value = 59.9
        assert rate("EURUSD") == 1.0
        clock.return_value = 60.0
        assert rate("EURUSD") == 3.0
        assert fetch.mock_calls == [call("EURUSD"), call("EURCHF"), call("EURUSD")]

    def test_lru_cache_attribute(self, given: Any) -> None:
        given.pstdev = Mock(side_effect=[2.0, 8.0])
        sensor = given.Sensor([1.0, 3.0])
        assert [sensor.spread, sensor.spread] == [2.0, 2.0]
        sensor.replace([1.0, 9.0])
        assert sensor.spread == 8.0
        assert given.pstdev.mock_calls == [call([1.0, 3.0]), call([1.0, 9.0])]
        given.Sensor([1.0]).replace([2.0])

    def test_lru_cache_disk(self, given: Any, tmp_path: Path) -> None:
        locate = Mock(side_effect=[[1.5, 1.0], [1.5, 2.0]])
        first_run = given.remember(locate, tmp_path / "points.json")
        assert [first_run("Bern"), first_run("Bern"), first_run("Rome")] == [[1.5, 1.0], [1.5, 1.0], [1.5, 2.0]]
        second_run = given.remember(locate, tmp_path / "points.json")
        assert [second_run("Rome"), second_run("Bern")] == [[1.5, 2.0], [1.5, 1.0]]
        assert locate.mock_calls == [call("Bern"), call("Rome")]

    def test_group_orders(self, given: Any) -> None:
        rows = [("ann", 5.0), ("bob", 20.0), ("ann", 10.0), ("cy", 1.0)]
        totals = given.total_by_customer({"customer": customer, "amount": amount} for customer, amount in rows)
        assert list(totals.items()) == [("bob", 20.0), ("ann", 15.0), ("cy", 1.0)]

    def test_group_orders_leaderboard(self, given: Any) -> None:
        scores = [("Zoe", None), ("bob", 7), ("Ann", 7), ("Cy", 0), ("Ed", 1), ("Dee", 9), ("al", None)]
        ranked = given.leaderboard([given.Player(name, score) for name, score in scores])
        assert [player.name for player in ranked] == ["Dee", "Ann", "bob", "Ed", "Cy", "al", "Zoe"]

    def test_group_orders_bestsellers(self, given: Any) -> None:
        fruit = [("fruit", name, units) for name, units in [("fig", 1), ("apple", 9), ("kiwi", 4), ("pear", 6)]]
        best = given.bestsellers(iter([*fruit, ("tools", "saw", 2)]))
        assert best == {"fruit": [(9, "apple"), (6, "pear"), (4, "kiwi")], "tools": [(2, "saw")]}
        assert given.bestsellers(fruit, limit=1) == {"fruit": [(9, "apple")]}

    def test_group_orders_runs(self, given: Any) -> None:
        readings = [(0, "on"), (1, "on"), (4, "off"), (6, "on"), (7, "on"), (9, "on")]
        assert list(given.runs(readings)) == [("on", 0, 1), ("off", 4, 4), ("on", 6, 9)]

    def test_log_errors(self, given: Any, tmp_path: Path) -> None:
        log = tmp_path / "app.log"
        log.write_bytes(
            b"2024-05-01 ERROR billing timeout\n2024-05-01 INFO billing ERROR\n\n2024-05-02 ERROR search\n"
            b"2024-05-02 ERROR billing card was declined\n2024-05-03 ERROR mail \xff\n"
        )
        assert given.count_errors(log) == {"billing": 2, "search": 1, "mail": 1}

    def test_log_errors_tail(self, given: Any, tmp_path: Path) -> None:
        path = tmp_path / "long.txt"
        path.write_text("".join(f"line {number} \n" for number in range(50)))
        assert given.tail(path, 2) == ["line 48 ", "line 49 "]
        assert len(given.tail(path)) == 20
        assert len(given.tail(path, 100)) == 50

    def test_log_errors_csv(self, given: Any, tmp_path: Path) -> None:
        path = tmp_path / "expenses.csv"
        path.write_text("department,amount\nsales,0.10\nlegal,abc\nsales,0.20\nlegal,7\nlegal\n")
        totals, bad_lines = given.sum_expenses(path)
        assert totals == {"sales": Decimal("0.30"), "legal": Decimal(7)}
        assert bad_lines == [3, 6]

    def test_log_errors_atomic(self, given: Any, tmp_path: Path) -> None:
        target = tmp_path / "state.json"
        seen: list[str] = []
        target.write_text("old")
        given.os = SimpleNamespace(fsync=lambda _: seen.extend(file.read_text() for file in tmp_path.iterdir()))
        given.save_atomically(target, "new")
        assert sorted(seen) == ["new", "old"]
        assert target.read_text() == "new"
        assert list(tmp_path.iterdir()) == [target]

    def test_retry(self, given: Any) -> None:
        given.time = SimpleNamespace(sleep=Mock())
        request = Mock(side_effect=[ConnectionError] * 3 + ["page"] + [ConnectionError] * 4 + [ValueError])

        def load(page: int, *, draft: bool) -> Any:
            """Load a page."""
            return request(page, draft)

        retried = given.retry(attempts=4, delay=0.5)(load)
        assert retried.__doc__ == "Load a page."
        assert retried(7, draft=True) == "page"
        assert request.mock_calls == [call(7, True)] * 4
        assert given.time.sleep.mock_calls == [call(0.5), call(1.0), call(2.0)]
        for error in (ConnectionError, ValueError):
            with pytest.raises(error):
                retried(7, draft=True)
        assert request.call_count == 9

    def test_retry_async(self, given: Any) -> None:
        uniform = Mock(return_value=0.0)
        given.random = SimpleNamespace(uniform=uniform)

        request = AsyncMock(side_effect=[ConnectionError, ConnectionError, "page"])
        assert asyncio.run(given.retry_within(5, request, delay=0.1)) == "page"
        assert uniform.mock_calls == [call(0, 0.1), call(0, 0.2)]
        with pytest.raises(TimeoutError):
            asyncio.run(given.retry_within(0.02, AsyncMock(side_effect=ConnectionError)))

    def test_retry_breaker(self, given: Any) -> None:
        clock, broken = Mock(return_value=0.0), Mock(side_effect=OSError)
        breaker = given.Breaker(clock=clock)

        def fail(error: type[Exception], times: int = 1) -> None:
            for _ in range(times):
                with pytest.raises(error):
                    breaker.call(broken)

        fail(OSError, times=5)
        fail(RuntimeError)
        clock.return_value = 30.0
        fail(OSError)
        clock.return_value = 59.0
        fail(RuntimeError)
        clock.return_value = 60.0
        assert breaker.call(lambda: "paid") == "paid"
        fail(OSError, times=5)
        assert broken.call_count == 5 + 1 + 5

    def test_retry_fake_sleep(self, given: Any) -> None:
        given.test_poll_stops_when_ready()
        sleep = Mock()
        assert given.poll(lambda: False, [1, 2], sleep) is False
        assert sleep.mock_calls == [call(1), call(2)]
        assert given.poll(Mock(side_effect=[False, True]), [0], sleep) is True

    def test_workers(self, given: Any) -> None:
        running, peaks = set(), []

        async def job(number: int) -> int:
            running.add(number)
            peaks.append(len(running))
            await asyncio.sleep(0.001 * (5 - number % 5))
            running.remove(number)
            return number

        assert asyncio.run(given.gather_limited(map(job, range(40)))) == list(range(40))
        assert max(peaks) == 10

    def test_workers_threads(self, given: Any) -> None:
        second_started = Event()

        def fetch(url: str) -> bytes:
            if url == "broken":
                raise OSError("no route")
            if url == "second":
                second_started.set()
            assert second_started.wait(5), "the downloads overlap"
            return url.encode()

        pages, errors = given.download_all(["first", "broken", "second"], fetch)
        assert pages == {"first": b"first", "second": b"second"}
        assert {url: str(error) for url, error in errors.items()} == {"broken": "no route"}

    def test_workers_queue(self, given: Any) -> None:
        handled: list[int] = []
        leads: list[int] = []

        def images() -> Iterator[int]:
            for number in range(60):
                leads.append(number - len(handled))
                yield number

        def resize(image: int) -> None:
            time.sleep(0.001)
            handled.append(image)

        given.process(images(), resize, workers=3)
        assert sorted(handled) == list(range(60))
        assert max(leads) <= 2 * 3 + 3, "the queue holds the producer back"

    def test_workers_fastest(self, given: Any) -> None:
        cancelled: list[str] = []

        async def mirror(name: str, delay: float) -> str:
            try:
                await asyncio.sleep(delay)
            except asyncio.CancelledError:
                cancelled.append(name)
                raise
            return name

        assert asyncio.run(given.fastest(mirror("slow", 30), mirror("quick", 0), mirror("slower", 60))) == "quick"
        assert sorted(cancelled) == ["slow", "slower"]

    def test_validated_settings(self, given: Any) -> None:
        settings = given.Settings("localhost")
        assert (settings.host, settings.port, settings.timeout) == ("localhost", 8080, 5.0)
        assert given.Settings("h", 1, 0.1).port == 1
        assert given.Settings("h", 65535).port == 65535
        for invalid in [("",), ("  ",), ("h", 0), ("h", 65536), ("h", 80, 0.0)]:
            with pytest.raises(ValueError):
                given.Settings(*invalid)
        with pytest.raises(AttributeError):
            settings.port = 0

    def test_validated_settings_nested(self, given: Any) -> None:
        line = {"product": "pen", "quantity": "3"}
        invoice = given.Invoice.from_dict({"number": "R-1", "lines": [line, line]})
        assert invoice == given.Invoice("R-1", [given.Line("pen", 3), given.Line("pen", 3)])
        for key, data in {
            "quantity": {"number": "R-1", "lines": [{"product": "pen"}]},
            "lines": {"number": "R-1"},
            "number": {"lines": []},
        }.items():
            with pytest.raises(ValueError, match=f"'{key}'"):
                given.Invoice.from_dict(data)

    def test_validated_settings_money(self, given: Any) -> None:
        one, two, euro = given.Money(100, "CHF"), given.Money(200, "CHF"), given.Money(100, "EUR")
        assert one + one == two
        assert one < two and not two < one and not one < one
        assert one != euro
        for operation in (operator.add, operator.lt):
            with pytest.raises(ValueError):
                operation(one, euro)
        with pytest.raises(AttributeError):
            one.cents = 5

    def test_batches(self, given: Any) -> None:
        assert list(given.batches("abcde", 2)) == [["a", "b"], ["c", "d"], ["e"]]
        assert list(given.batches([], 3)) == []
        assert list(given.batches(range(2), 1)) == [[0], [1]]
        source = iter(range(9))
        assert next(given.batches(source, 3)) == [0, 1, 2]
        assert next(source) == 3, "only one batch is read"
        with pytest.raises(ValueError):
            next(given.batches([1], 0))

    def test_batches_average(self, given: Any) -> None:
        assert list(given.moving_average([2.0, 4.0, 6.0, 11.0], width=2)) == [3.0, 5.0, 8.5]
        assert list(given.moving_average(iter(range(6)))) == [2.0, 3.0]
        assert list(given.moving_average([1.0, 2.0], width=3)) == []

    def test_batches_pages(self, given: Any) -> None:
        pages = {
            None: {"items": [1, 2], "next": "p2"},
            "p2": {"items": [], "next": "p3"},
            "p3": {"items": [3], "next": None},
        }
        get_page = Mock(side_effect=pages.get)
        assert list(given.all_items(get_page)) == [1, 2, 3]
        assert get_page.mock_calls == [call(None), call("p2"), call("p3")]
        assert next(given.all_items(get_page)) == 1
        assert get_page.mock_calls[3:] == [call(None)], "a page is requested only if it is needed"

    def test_batches_flatten(self, given: Any) -> None:
        assert list(given.flatten([1, [2, [3, "ab"]], (), (None, [[4]])])) == [1, 2, 3, "ab", None, 4]

    def test_autocomplete(self, given: Any) -> None:
        trie: dict[str, Any] = {}
        for word in ["car", "cart", "care", "dog"]:
            given.add(trie, word)
        assert given.complete(trie, "car") == ["car", "care", "cart"]
        assert given.complete(trie, "cart") == ["cart"]
        assert given.complete(trie, "") == ["car", "care", "cart", "dog"]
        assert given.complete(trie, "cat") == given.complete(trie, "dogs") == []

    def test_autocomplete_bisect(self, given: Any) -> None:
        words = ["ca", "car", "care", "cart", "cat", "dog"]
        assert given.with_prefix(words, "car") == ["car", "care", "cart"]
        assert given.with_prefix(words, "") == words
        assert given.with_prefix(words, "dog") == ["dog"]
        assert given.with_prefix(words, "carb") == given.with_prefix(words, "x") == []

    def test_autocomplete_popular(self, given: Any) -> None:
        counts = {"rust book": 3, "Ruby": 9, "rubik": 9, "ruler": 5, "tea": 99, "rug": 1, "run": 2}
        assert given.suggest(counts, "RU", k=3) == ["Ruby", "rubik", "ruler"]
        assert given.suggest(counts, "ru") == ["Ruby", "rubik", "ruler", "rust book", "run"]
        assert given.suggest(counts, "x") == []

    def test_cli(self, given: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        first, second = tmp_path / "first.txt", tmp_path / "second.txt"
        first.write_text("tea tea\ncoffee " + " ".join(f"word{number}" for number in range(20)))
        second.write_text("coffee tea milk milk")
        given.main([str(first), str(second), "--top", "2"])
        assert capsys.readouterr().out == "3 tea\n2 coffee\n"
        given.main([str(first)])
        assert len(capsys.readouterr().out.splitlines()) == 10

    def test_cli_subcommands(self, given: Any) -> None:
        tasks: list[str] = []
        for argv in [["add", "buy milk"], ["add", "call Ann"], ["add", "read"], ["done", "2"]]:
            given.run(argv, tasks)
        assert tasks == ["buy milk", "read"]
        for wrong in [[], ["done", "first"], ["undo", "1"]]:
            with pytest.raises(SystemExit):
                given.run(wrong, tasks)

    def test_workdays(self, given: Any) -> None:
        monday, friday, next_monday = date(2024, 5, 6), date(2024, 5, 10), date(2024, 5, 13)
        assert (given.count_workdays(monday, friday), given.count_workdays(monday, next_monday)) == (5, 6)
        assert given.count_workdays(monday, next_monday, {date(2024, 5, 9), date(2024, 5, 11)}) == 5
        assert (given.count_workdays(friday, friday), given.count_workdays(friday, monday)) == (1, 0)

    def test_workdays_billing(self, given: Any) -> None:
        start = date(2023, 1, 31)
        dates = [given.billing_date(start, months) for months in (0, 1, 2, 3, 11, 12, 13)]
        expected = ["2023-01-31", "2023-02-28", "2023-03-31", "2023-04-30", "2023-12-31", "2024-01-31", "2024-02-29"]
        assert [day.isoformat() for day in dates] == expected
        assert given.billing_date(date(2023, 11, 5), 2) == date(2024, 1, 5)

    def test_workdays_bookings(self, given: Any) -> None:
        def booking(start: int, end: int) -> tuple[datetime, datetime]:
            return datetime(2024, 5, 6, start), datetime(2024, 5, 6, end)

        late, early, middle, noon = booking(14, 16), booking(8, 10), booking(9, 12), booking(12, 13)
        assert given.conflicts([late, early, noon, middle]) == [(early, middle)]
        assert given.conflicts([]) == given.conflicts([late]) == []

    def test_shortest_path(self, given: Any) -> None:
        pairs = [("ann", "bob"), ("bob", "cy"), ("cy", "dee"), ("ann", "eve"), ("eve", "dee"), ("x", "y")]
        network: dict[str, set[str]] = {}
        for one, other in pairs:
            network.setdefault(one, set()).add(other)
            network.setdefault(other, set()).add(one)
        assert given.friend_chain(network, "ann", "dee") == ["ann", "eve", "dee"]
        assert given.friend_chain(network, "ann", "ann") == ["ann"]
        assert given.friend_chain(network, "ann", "x") is None
        assert given.friend_chain({"ann": {"bob"}}, "ann", "cy") is None

    def test_shortest_path_roads(self, given: Any) -> None:
        roads = {"a": {"b": 7, "c": 2}, "c": {"b": 3, "d": 8}, "b": {"d": 1, "a": 7}, "x": {"a": 1}}
        assert given.distances(roads, "a") == {"a": 0, "c": 2, "b": 5, "d": 6}
        assert given.distances(roads, "d") == {"d": 0}

    def test_shortest_path_build(self, given: Any) -> None:
        order = given.build_order({"deploy": {"test", "build"}, "test": {"build"}, "build": {"fetch"}})
        assert order == ["fetch", "build", "test", "deploy"]
        with pytest.raises(ValueError) as caught:
            given.build_order({"a": {"b"}, "b": {"a"}, "c": set()})
        assert "a -> b -> a" in str(caught.value) or "b -> a -> b" in str(caught.value)

    def test_parse_duration(self, given: Any) -> None:
        assert given.parse_duration("1h30m") == timedelta(hours=1, minutes=30)
        assert given.parse_duration("45s") == timedelta(seconds=45)
        assert given.parse_duration("2d") == timedelta(days=2)
        assert given.parse_duration("1d2h3m4s") == timedelta(days=1, hours=2, minutes=3, seconds=4)
        for wrong in ["", "5", "h", "30m1h", "1h 30m", "-5s", "1h30m!"]:
            with pytest.raises(ValueError):
                given.parse_duration(wrong)

    def test_parse_duration_access(self, given: Any) -> None:
        lines = ['10.0.0.7 "GET /cart" 200 153\n', "garbage\n", '10.0.0.8 "POST /pay" 500 0', '10.0.0.9 "GET /" ok 1']
        hits = list(given.parse_hits(lines))
        assert hits == [("10.0.0.7", "GET", "/cart", 200, 153), ("10.0.0.8", "POST", "/pay", 500, 0)]
        assert (hits[0].path, hits[1].status) == ("/cart", 500)

    def test_timer_context(self, given: Any) -> None:
        given.perf_counter = Mock(side_effect=[10.0, 12.5, 20.0, 21.0])
        with given.stopwatch() as calm:
            pass
        assert calm.seconds == 2.5
        with pytest.raises(KeyError), given.stopwatch() as broken:
            raise KeyError
        assert broken.seconds == 1.0

    def test_timer_context_environment(self, given: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("KEPT", "before")
        with pytest.raises(ZeroDivisionError), given.environment(KEPT=None, NEW="1", ABSENT=None):
            assert "KEPT" not in os.environ and os.environ["NEW"] == "1"
            os.environ["INSIDE"] = "left behind"
            raise ZeroDivisionError
        assert os.environ["KEPT"] == "before"
        assert os.environ.keys().isdisjoint({"NEW", "INSIDE", "ABSENT"})
