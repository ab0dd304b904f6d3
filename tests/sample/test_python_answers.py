"""Executes the code of every Python answer in the embedded sample and checks what it does."""

import asyncio
import io
import os
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from datetime import date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from threading import Event
from types import ModuleType, SimpleNamespace

import pytest

from tests.sample import answers

Check = Callable[[ModuleType, Path], None]
CHECKS: dict[str, Check] = {}


def checks(prompt_id: str) -> Callable[[Check], Check]:
    """Register a function as the check of one answer."""

    def register(check: Check) -> Check:
        CHECKS[prompt_id] = check
        return check

    return register


def test_every_python_answer_has_a_check() -> None:
    assert answers.ids("python") == list(CHECKS)


@pytest.mark.parametrize("prompt_id", CHECKS)
def test_the_code_of_a_python_answer_does_what_was_asked(prompt_id: str, tmp_path: Path) -> None:
    [source] = answers.code(prompt_id, "python")
    CHECKS[prompt_id](answers.run_python(source), tmp_path)


@checks("lru-cache")
def check_lru_cache(given: ModuleType, tmp_path: Path) -> None:
    cache = given.LruCache(2)
    cache.put("a", 1)
    cache.put("b", 2)
    assert cache.get("a") == 1
    cache.put("c", 3)
    assert [cache.get(key) for key in "abc"] == [1, None, 3]
    cache.put("a", 10)
    cache.put("d", 4)
    assert [cache.get(key) for key in "acd"] == [10, None, 4]


@checks("lru-cache-expiry")
def check_lru_cache_expiry(given: ModuleType, tmp_path: Path) -> None:
    now, fetched = [0.0], []

    def fetch(pair: str) -> float:
        fetched.append(pair)
        return float(len(fetched))

    rate = given.with_expiry(fetch, clock=lambda: now[0])
    assert [rate("EURUSD"), rate("EURUSD"), rate("EURCHF")] == [1.0, 1.0, 2.0]
    now[0] = 59.9
    assert rate("EURUSD") == 1.0
    now[0] = 60.0
    assert rate("EURUSD") == 3.0
    assert fetched == ["EURUSD", "EURCHF", "EURUSD"]


@checks("lru-cache-attribute")
def check_lru_cache_attribute(given: ModuleType, tmp_path: Path) -> None:
    calls = []
    given.pstdev = lambda readings: calls.append(readings) or max(readings) - min(readings)
    sensor = given.Sensor([1.0, 3.0])
    assert [sensor.spread, sensor.spread] == [2.0, 2.0]
    sensor.replace([1.0, 9.0])
    assert sensor.spread == 8.0
    assert calls == [[1.0, 3.0], [1.0, 9.0]]
    given.Sensor([1.0]).replace([2.0])


@checks("lru-cache-disk")
def check_lru_cache_disk(given: ModuleType, tmp_path: Path) -> None:
    located = []

    def locate(address: str) -> list[float]:
        located.append(address)
        return [1.5, float(len(located))]

    first_run = given.remember(locate, tmp_path / "points.json")
    assert [first_run("Bern"), first_run("Bern"), first_run("Rome")] == [[1.5, 1.0], [1.5, 1.0], [1.5, 2.0]]
    second_run = given.remember(locate, tmp_path / "points.json")
    assert [second_run("Rome"), second_run("Bern")] == [[1.5, 2.0], [1.5, 1.0]]
    assert located == ["Bern", "Rome"]


@checks("group-orders")
def check_group_orders(given: ModuleType, tmp_path: Path) -> None:
    rows = [("ann", 5.0), ("bob", 20.0), ("ann", 10.0), ("cy", 1.0)]
    totals = given.total_by_customer({"customer": customer, "amount": amount} for customer, amount in rows)
    assert list(totals.items()) == [("bob", 20.0), ("ann", 15.0), ("cy", 1.0)]


@checks("group-orders-leaderboard")
def check_group_orders_leaderboard(given: ModuleType, tmp_path: Path) -> None:
    scores = [("Zoe", None), ("bob", 7), ("Ann", 7), ("Cy", 0), ("Ed", 1), ("Dee", 9), ("al", None)]
    ranked = given.leaderboard([given.Player(name, score) for name, score in scores])
    assert [player.name for player in ranked] == ["Dee", "Ann", "bob", "Ed", "Cy", "al", "Zoe"]


@checks("group-orders-bestsellers")
def check_group_orders_bestsellers(given: ModuleType, tmp_path: Path) -> None:
    fruit = [("fruit", name, units) for name, units in [("fig", 1), ("apple", 9), ("kiwi", 4), ("pear", 6)]]
    best = given.bestsellers(iter([*fruit, ("tools", "saw", 2)]))
    assert best == {"fruit": [(9, "apple"), (6, "pear"), (4, "kiwi")], "tools": [(2, "saw")]}
    assert given.bestsellers(fruit, limit=1) == {"fruit": [(9, "apple")]}


@checks("group-orders-runs")
def check_group_orders_runs(given: ModuleType, tmp_path: Path) -> None:
    readings = [(0, "on"), (1, "on"), (4, "off"), (6, "on"), (7, "on"), (9, "on")]
    assert list(given.runs(readings)) == [("on", 0, 1), ("off", 4, 4), ("on", 6, 9)]


@checks("log-errors")
def check_log_errors(given: ModuleType, tmp_path: Path) -> None:
    lines = [
        "2024-05-01 ERROR billing timeout",
        "2024-05-01 INFO billing ERROR",
        "",
        "2024-05-02 ERROR search",
        "2024-05-02 ERROR billing card was declined",
    ]
    log = tmp_path / "app.log"
    log.write_bytes("\n".join(lines).encode() + b"\n2024-05-03 ERROR mail \xff\n")
    assert given.count_errors(log) == {"billing": 2, "search": 1, "mail": 1}


@checks("log-errors-tail")
def check_log_errors_tail(given: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    path.write_text("".join(f"line {number} \n" for number in range(50)))
    assert given.tail(path, 2) == ["line 48 ", "line 49 "]
    assert len(given.tail(path)) == 20
    assert len(given.tail(path, 100)) == 50


@checks("log-errors-csv")
def check_log_errors_csv(given: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "expenses.csv"
    path.write_text("department,amount\nsales,0.10\nlegal,abc\nsales,0.20\nlegal,7\nlegal\n")
    totals, bad_lines = given.sum_expenses(path)
    assert totals == {"sales": Decimal("0.30"), "legal": Decimal(7)}
    assert bad_lines == [3, 6]


@checks("log-errors-atomic")
def check_log_errors_atomic(given: ModuleType, tmp_path: Path) -> None:
    target, seen = tmp_path / "state.json", []
    target.write_text("old")
    given.os = SimpleNamespace(fsync=lambda _: seen.extend(file.read_text() for file in tmp_path.iterdir()))
    given.save_atomically(target, "new")
    assert sorted(seen) == ["new", "old"]
    assert target.read_text() == "new"
    assert list(tmp_path.iterdir()) == [target]


@checks("retry")
def check_retry(given: ModuleType, tmp_path: Path) -> None:
    slept: list[float] = []
    given.time = SimpleNamespace(sleep=slept.append)
    errors: list[Exception] = []

    @given.retry(attempts=4, delay=0.5)
    def load(page: int, *, draft: bool) -> tuple[int, bool]:
        """Load a page."""
        if errors:
            raise errors.pop()
        return page, draft

    errors[:] = [ConnectionError()] * 3
    assert load(7, draft=True) == (7, True)
    assert slept == [0.5, 1.0, 2.0]
    errors[:] = [ConnectionError()] * 5
    with pytest.raises(ConnectionError):
        load(7, draft=True)
    assert len(errors) == 1
    errors[:] = [ValueError()]
    with pytest.raises(ValueError):
        load(7, draft=True)
    assert load.__doc__ == "Load a page."


@checks("retry-async")
def check_retry_async(given: ModuleType, tmp_path: Path) -> None:
    limits: list[tuple[float, float]] = []
    given.random = SimpleNamespace(uniform=lambda low, high: limits.append((low, high)) or 0.0)
    errors = [ConnectionError(), ConnectionError()]

    async def request() -> str:
        if errors:
            raise errors.pop()
        return "page"

    async def broken() -> str:
        raise ConnectionError

    assert asyncio.run(given.retry_within(5, request, delay=0.1)) == "page"
    assert limits == [(0, 0.1), (0, 0.2)]
    with pytest.raises(TimeoutError):
        asyncio.run(given.retry_within(0.02, broken))


@checks("retry-breaker")
def check_retry_breaker(given: ModuleType, tmp_path: Path) -> None:
    now, calls = [0.0], []
    breaker = given.Breaker(clock=lambda: now[0])

    def broken() -> None:
        calls.append(now[0])
        raise OSError

    for _ in range(5):
        with pytest.raises(OSError):
            breaker.call(broken)
    with pytest.raises(RuntimeError):
        breaker.call(broken)
    now[0] = 30.0
    with pytest.raises(OSError):
        breaker.call(broken)
    now[0] = 59.0
    with pytest.raises(RuntimeError):
        breaker.call(broken)
    now[0] = 60.0
    assert breaker.call(lambda: "paid") == "paid"
    for _ in range(5):
        with pytest.raises(OSError):
            breaker.call(broken)
    assert calls == [0.0] * 5 + [30.0] + [60.0] * 5


@checks("retry-fake-sleep")
def check_retry_fake_sleep(given: ModuleType, tmp_path: Path) -> None:
    given.test_poll_stops_when_ready()
    slept: list[float] = []
    assert given.poll(lambda: False, [1, 2], slept.append) is False
    assert slept == [1, 2]
    replies = iter([False, True])
    assert given.poll(lambda: next(replies), [0], slept.append) is True


@checks("workers")
def check_workers(given: ModuleType, tmp_path: Path) -> None:
    running, peaks = set(), []

    async def job(number: int) -> int:
        running.add(number)
        peaks.append(len(running))
        await asyncio.sleep(0.001 * (5 - number % 5))
        running.remove(number)
        return number

    assert asyncio.run(given.gather_limited(map(job, range(40)))) == list(range(40))
    assert max(peaks) == 10


@checks("workers-threads")
def check_workers_threads(given: ModuleType, tmp_path: Path) -> None:
    second_started = Event()

    def fetch(url: str) -> bytes:
        if url == "broken":
            raise OSError("no route")
        if url == "second":
            second_started.set()
        assert second_started.wait(5), "the downloads should overlap"
        return url.encode()

    pages, errors = given.download_all(["first", "broken", "second"], fetch)
    assert pages == {"first": b"first", "second": b"second"}
    assert {url: str(error) for url, error in errors.items()} == {"broken": "no route"}


@checks("workers-queue")
def check_workers_queue(given: ModuleType, tmp_path: Path) -> None:
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
    assert max(leads) <= 2 * 3 + 3, "the queue should hold the producer back"


@checks("workers-fastest")
def check_workers_fastest(given: ModuleType, tmp_path: Path) -> None:
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


@checks("validated-settings")
def check_validated_settings(given: ModuleType, tmp_path: Path) -> None:
    settings = given.Settings("localhost")
    assert (settings.host, settings.port, settings.timeout) == ("localhost", 8080, 5.0)
    assert given.Settings("h", 1, 0.1).port == 1
    assert given.Settings("h", 65535).port == 65535
    for invalid in [("",), ("  ",), ("h", 0), ("h", 65536), ("h", 80, 0.0)]:
        with pytest.raises(ValueError):
            given.Settings(*invalid)
    with pytest.raises(AttributeError):
        settings.port = 0


@checks("validated-settings-nested")
def check_validated_settings_nested(given: ModuleType, tmp_path: Path) -> None:
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


@checks("validated-settings-money")
def check_validated_settings_money(given: ModuleType, tmp_path: Path) -> None:
    one, two, euro = given.Money(100, "CHF"), given.Money(200, "CHF"), given.Money(100, "EUR")
    assert one + one == two
    assert one < two and not two < one and not one < one
    assert one != euro
    with pytest.raises(ValueError):
        one + euro
    with pytest.raises(ValueError):
        assert one < euro
    with pytest.raises(AttributeError):
        one.cents = 5


@checks("batches")
def check_batches(given: ModuleType, tmp_path: Path) -> None:
    assert list(given.batches("abcde", 2)) == [["a", "b"], ["c", "d"], ["e"]]
    assert list(given.batches([], 3)) == []
    assert list(given.batches(range(2), 1)) == [[0], [1]]
    source = iter(range(9))
    assert next(given.batches(source, 3)) == [0, 1, 2]
    assert next(source) == 3, "only one batch should have been read"
    with pytest.raises(ValueError):
        next(given.batches([1], 0))


@checks("batches-average")
def check_batches_average(given: ModuleType, tmp_path: Path) -> None:
    assert list(given.moving_average([2.0, 4.0, 6.0, 11.0], width=2)) == [3.0, 5.0, 8.5]
    assert list(given.moving_average(iter(range(6)))) == [2.0, 3.0]
    assert list(given.moving_average([1.0, 2.0], width=3)) == []


@checks("batches-pages")
def check_batches_pages(given: ModuleType, tmp_path: Path) -> None:
    pages = {None: ([1, 2], "p2"), "p2": ([], "p3"), "p3": ([3], None)}
    requested: list[str | None] = []

    def get_page(cursor: str | None) -> dict[str, object]:
        requested.append(cursor)
        items, following = pages[cursor]
        return {"items": items, "next": following}

    assert list(given.all_items(get_page)) == [1, 2, 3]
    assert requested == [None, "p2", "p3"]
    assert next(given.all_items(get_page)) == 1
    assert requested[3:] == [None], "a page should be requested only when it is needed"


@checks("batches-flatten")
def check_batches_flatten(given: ModuleType, tmp_path: Path) -> None:
    assert list(given.flatten([1, [2, [3, "ab"]], (), (None, [[4]])])) == [1, 2, 3, "ab", None, 4]


@checks("autocomplete")
def check_autocomplete(given: ModuleType, tmp_path: Path) -> None:
    trie: dict = {}
    for word in ["car", "cart", "care", "dog"]:
        given.add(trie, word)
    assert given.complete(trie, "car") == ["car", "care", "cart"]
    assert given.complete(trie, "cart") == ["cart"]
    assert given.complete(trie, "") == ["car", "care", "cart", "dog"]
    assert given.complete(trie, "cat") == given.complete(trie, "dogs") == []


@checks("autocomplete-bisect")
def check_autocomplete_bisect(given: ModuleType, tmp_path: Path) -> None:
    words = ["ca", "car", "care", "cart", "cat", "dog"]
    assert given.with_prefix(words, "car") == ["car", "care", "cart"]
    assert given.with_prefix(words, "") == words
    assert given.with_prefix(words, "dog") == ["dog"]
    assert given.with_prefix(words, "carb") == given.with_prefix(words, "x") == []


@checks("autocomplete-popular")
def check_autocomplete_popular(given: ModuleType, tmp_path: Path) -> None:
    counts = {"rust book": 3, "Ruby": 9, "rubik": 9, "ruler": 5, "tea": 99, "rug": 1, "run": 2}
    assert given.suggest(counts, "RU", k=3) == ["Ruby", "rubik", "ruler"]
    assert given.suggest(counts, "ru") == ["Ruby", "rubik", "ruler", "rust book", "run"]
    assert given.suggest(counts, "x") == []


@checks("cli")
def check_cli(given: ModuleType, tmp_path: Path) -> None:
    first, second = tmp_path / "first.txt", tmp_path / "second.txt"
    first.write_text("tea tea\ncoffee " + " ".join(f"word{number}" for number in range(20)))
    second.write_text("coffee tea milk milk")
    assert printed(given.main, [str(first), str(second), "--top", "2"]) == ["3 tea", "2 coffee"]
    assert len(printed(given.main, [str(first)])) == 10


def printed(main: Callable[[list[str]], None], argv: list[str]) -> list[str]:
    """The lines that a command prints."""
    with redirect_stdout(io.StringIO()) as output:
        main(argv)
    return output.getvalue().splitlines()


@checks("cli-subcommands")
def check_cli_subcommands(given: ModuleType, tmp_path: Path) -> None:
    tasks: list[str] = []
    for argv in [["add", "buy milk"], ["add", "call Ann"], ["add", "read"], ["done", "2"]]:
        given.run(argv, tasks)
    assert tasks == ["buy milk", "read"]
    for wrong in [[], ["done", "first"], ["undo", "1"]]:
        with pytest.raises(SystemExit):
            given.run(wrong, tasks)


@checks("workdays")
def check_workdays(given: ModuleType, tmp_path: Path) -> None:
    monday, friday, next_monday = date(2024, 5, 6), date(2024, 5, 10), date(2024, 5, 13)
    assert given.count_workdays(monday, friday) == 5
    assert given.count_workdays(monday, next_monday) == 6
    assert given.count_workdays(monday, next_monday, {date(2024, 5, 9), date(2024, 5, 11)}) == 5
    assert given.count_workdays(friday, friday) == 1
    assert given.count_workdays(friday, monday) == 0


@checks("workdays-billing")
def check_workdays_billing(given: ModuleType, tmp_path: Path) -> None:
    start = date(2023, 1, 31)
    dates = [given.billing_date(start, months) for months in (0, 1, 2, 3, 11, 12, 13)]
    expected = ["2023-01-31", "2023-02-28", "2023-03-31", "2023-04-30", "2023-12-31", "2024-01-31", "2024-02-29"]
    assert [day.isoformat() for day in dates] == expected
    assert given.billing_date(date(2023, 11, 5), 2) == date(2024, 1, 5)


@checks("workdays-bookings")
def check_workdays_bookings(given: ModuleType, tmp_path: Path) -> None:
    def booking(start: int, end: int) -> tuple[datetime, datetime]:
        return datetime(2024, 5, 6, start), datetime(2024, 5, 6, end)

    late, early, middle, noon = booking(14, 16), booking(8, 10), booking(9, 12), booking(12, 13)
    assert given.conflicts([late, early, noon, middle]) == [(early, middle)]
    assert given.conflicts([]) == given.conflicts([late]) == []


@checks("shortest-path")
def check_shortest_path(given: ModuleType, tmp_path: Path) -> None:
    pairs = [("ann", "bob"), ("bob", "cy"), ("cy", "dee"), ("ann", "eve"), ("eve", "dee"), ("x", "y")]
    network: dict[str, set[str]] = {}
    for one, other in pairs:
        network.setdefault(one, set()).add(other)
        network.setdefault(other, set()).add(one)
    assert given.friend_chain(network, "ann", "dee") == ["ann", "eve", "dee"]
    assert given.friend_chain(network, "ann", "ann") == ["ann"]
    assert given.friend_chain(network, "ann", "x") is None
    assert given.friend_chain({"ann": {"bob"}}, "ann", "cy") is None


@checks("shortest-path-roads")
def check_shortest_path_roads(given: ModuleType, tmp_path: Path) -> None:
    roads = {"a": {"b": 7, "c": 2}, "c": {"b": 3, "d": 8}, "b": {"d": 1, "a": 7}, "x": {"a": 1}}
    assert given.distances(roads, "a") == {"a": 0, "c": 2, "b": 5, "d": 6}
    assert given.distances(roads, "d") == {"d": 0}


@checks("shortest-path-build")
def check_shortest_path_build(given: ModuleType, tmp_path: Path) -> None:
    order = given.build_order({"deploy": {"test", "build"}, "test": {"build"}, "build": {"fetch"}})
    assert order == ["fetch", "build", "test", "deploy"]
    with pytest.raises(ValueError) as caught:
        given.build_order({"a": {"b"}, "b": {"a"}, "c": set()})
    assert "a -> b -> a" in str(caught.value) or "b -> a -> b" in str(caught.value)


@checks("parse-duration")
def check_parse_duration(given: ModuleType, tmp_path: Path) -> None:
    assert given.parse_duration("1h30m") == timedelta(hours=1, minutes=30)
    assert given.parse_duration("45s") == timedelta(seconds=45)
    assert given.parse_duration("2d") == timedelta(days=2)
    assert given.parse_duration("1d2h3m4s") == timedelta(days=1, hours=2, minutes=3, seconds=4)
    for wrong in ["", "5", "h", "30m1h", "1h 30m", "-5s", "1h30m!"]:
        with pytest.raises(ValueError):
            given.parse_duration(wrong)


@checks("parse-duration-access")
def check_parse_duration_access(given: ModuleType, tmp_path: Path) -> None:
    lines = ['10.0.0.7 "GET /cart" 200 153\n', "garbage\n", '10.0.0.8 "POST /pay" 500 0', '10.0.0.9 "GET /" ok 1']
    hits = list(given.parse_hits(lines))
    assert hits == [("10.0.0.7", "GET", "/cart", 200, 153), ("10.0.0.8", "POST", "/pay", 500, 0)]
    assert (hits[0].path, hits[1].status) == ("/cart", 500)


@checks("timer-context")
def check_timer_context(given: ModuleType, tmp_path: Path) -> None:
    ticks = iter([10.0, 12.5, 20.0, 21.0])
    given.perf_counter = lambda: next(ticks)
    with given.stopwatch() as calm:
        pass
    assert calm.seconds == 2.5
    with pytest.raises(KeyError), given.stopwatch() as broken:
        raise KeyError
    assert broken.seconds == 1.0


@checks("timer-context-environment")
def check_timer_context_environment(given: ModuleType, tmp_path: Path) -> None:
    os.environ["SAMPLE_KEPT"] = "before"
    try:
        with pytest.raises(ZeroDivisionError), given.environment(SAMPLE_KEPT=None, SAMPLE_NEW="1", SAMPLE_ABSENT=None):
            assert "SAMPLE_KEPT" not in os.environ
            assert os.environ["SAMPLE_NEW"] == "1"
            os.environ["SAMPLE_INSIDE"] = "left behind"
            raise ZeroDivisionError
        assert os.environ["SAMPLE_KEPT"] == "before"
        assert os.environ.keys().isdisjoint({"SAMPLE_NEW", "SAMPLE_INSIDE"})
    finally:
        del os.environ["SAMPLE_KEPT"]
