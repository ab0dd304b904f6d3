"""Runs every SQL answer of the embedded sample in SQLite against a small fixture and compares all its rows."""

import sqlite3
from contextlib import closing
from dataclasses import dataclass

import pytest

from tests.sample.answers import code, ids

Rows = list[tuple[object, ...]]


@dataclass(frozen=True)
class Check:
    """Tables with awkward data, and the rows that a correct query makes of them."""

    setup: str
    expected: Rows
    afterwards: str | None = None  # for a statement that changes data: the query that shows what it left


CHECKS = {
    "sql-running-balance": Check(
        """
        CREATE TABLE transactions (id INTEGER PRIMARY KEY, account_id INT, booked_on TEXT, amount INT);
        INSERT INTO transactions VALUES (1, 7, '2024-01-02', 100), (2, 7, '2024-01-01', 50), (3, 7, '2024-01-02', -30),
            (4, 8, '2024-01-01', 5);
        """,
        [(2, 7, 50, 50), (1, 7, 100, 150), (3, 7, -30, 120), (4, 8, 5, 5)],
    ),
    "sql-running-balance-month-to-date": Check(
        """
        CREATE TABLE daily_sales (day TEXT, revenue INT);
        INSERT INTO daily_sales VALUES ('2024-02-01', 10), ('2024-01-30', 100), ('2024-01-31', 200), ('2025-01-01', 4);
        """,
        [("2024-01-30", 100, 33.3), ("2024-01-31", 300, 66.7), ("2024-02-01", 10, 100.0), ("2025-01-01", 4, 100.0)],
    ),
    "sql-running-balance-goal-reached": Check(
        """
        CREATE TABLE campaigns (name TEXT, goal INT);
        CREATE TABLE donations (campaign TEXT, donated_on TEXT, amount INT);
        INSERT INTO campaigns VALUES ('roof', 100), ('bells', 500), ('garden', 10);
        INSERT INTO donations VALUES ('roof', '2024-03-03', 10), ('roof', '2024-03-01', 60), ('roof', '2024-03-02', 40),
            ('bells', '2024-03-01', 499);
        """,
        [("bells", None), ("garden", None), ("roof", "2024-03-02")],
    ),
    "sql-running-balance-pareto": Check(
        """
        CREATE TABLE order_lines (product TEXT, revenue INT);
        INSERT INTO order_lines VALUES ('pen', 15), ('desk', 30), ('lamp', 25), ('desk', 20), ('clip', 6), ('pad', 4);
        """,
        [("desk", 50), ("lamp", 25), ("pen", 15)],
    ),
    "sql-top-per-group": Check(
        """
        CREATE TABLE laps (driver TEXT, lap INT, seconds REAL);
        INSERT INTO laps VALUES ('Ann', 3, 90.5), ('Ann', 1, 92.0), ('Ann', 2, 90.5), ('Ann', 4, 90.5),
            ('Bob', 1, 99.0);
        """,
        [("Ann", 2, 90.5), ("Ann", 3, 90.5), ("Bob", 1, 99.0)],
    ),
    "sql-top-per-group-podium": Check(
        """
        CREATE TABLE scores (game TEXT, player TEXT, points INT);
        INSERT INTO scores VALUES ('chess', 'Ann', 9), ('chess', 'Bob', 9), ('chess', 'Cid', 7), ('chess', 'Dee', 5),
            ('chess', 'Eve', 1), ('go', 'Ann', 2);
        """,
        [
            ("chess", 1, "Ann", 9),
            ("chess", 1, "Bob", 9),
            ("chess", 2, "Cid", 7),
            ("chess", 3, "Dee", 5),
            ("go", 1, "Ann", 2),
        ],
    ),
    "sql-top-per-group-latest-status": Check(
        """
        CREATE TABLE shipment_events (id INTEGER PRIMARY KEY, shipment_id INT, status TEXT, occurred_at TEXT);
        INSERT INTO shipment_events VALUES (1, 1, 'packed', '2024-01-01 08:00:00'),
            (2, 1, 'sent', '2024-01-02 08:00:00'), (3, 2, 'delivered', '2024-01-03 08:00:00'),
            (4, 2, 'sent', '2024-01-02 08:00:00'),
            (5, 3, 'packed', '2024-01-01 08:00:00'), (6, 3, 'sent', '2024-01-01 08:00:00');
        """,
        [(1, "sent", "2024-01-02 08:00:00"), (3, "sent", "2024-01-01 08:00:00")],
    ),
    "sql-top-per-group-dedupe": Check(
        """
        CREATE TABLE subscribers (id INTEGER PRIMARY KEY, email TEXT, created_at TEXT);
        INSERT INTO subscribers VALUES (1, 'a@x.org', '2024-02-01'), (2, 'A@x.org', '2024-01-01'),
            (3, 'b@x.org', '2024-01-01'), (4, 'B@X.org', '2024-01-01'), (5, 'c@x.org', '2024-01-01');
        """,
        [(1, "a@x.org"), (4, "B@X.org"), (5, "c@x.org")],
        afterwards="SELECT id, email FROM subscribers ORDER BY id",
    ),
    "sql-streaks": Check(
        """
        CREATE TABLE logins (user_id INT, login_date TEXT);
        INSERT INTO logins VALUES (1, '2024-02-28'), (1, '2024-02-29'), (1, '2024-02-29'), (1, '2024-03-01'),
            (1, '2024-03-05'), (1, '2024-03-06'), (2, '2024-02-28'), (2, '2024-03-01'),
            (2, '2024-03-03'), (2, '2024-03-04');
        """,
        [(1, 3), (2, 2)],
    ),
    "sql-streaks-missing-numbers": Check(
        """
        CREATE TABLE invoices (number INTEGER PRIMARY KEY);
        INSERT INTO invoices VALUES (101), (102), (104), (108), (109);
        """,
        [(103, 103), (105, 107)],
    ),
    "sql-streaks-visit-sessions": Check(
        """
        CREATE TABLE page_views (user_id INT, viewed_at TEXT);
        INSERT INTO page_views VALUES (1, '2024-05-01 09:00:00'), (1, '2024-05-01 09:30:00'),
            (1, '2024-05-01 10:00:01'), (1, '2024-05-01 23:50:00'),
            (1, '2024-05-02 00:10:00'), (2, '2024-05-01 09:05:00'),
            (2, '2024-05-01 09:45:00');
        """,
        [
            (1, "2024-05-01 09:00:00", "2024-05-01 09:30:00", 2),
            (1, "2024-05-01 10:00:01", "2024-05-01 10:00:01", 1),
            (1, "2024-05-01 23:50:00", "2024-05-02 00:10:00", 2),
            (2, "2024-05-01 09:05:00", "2024-05-01 09:05:00", 1),
            (2, "2024-05-01 09:45:00", "2024-05-01 09:45:00", 1),
        ],
    ),
    "sql-hierarchy": Check(
        """
        CREATE TABLE staff (id INTEGER PRIMARY KEY, name TEXT, manager_id INT);
        INSERT INTO staff VALUES (1, 'Chief', NULL), (2, 'Ann', 1), (3, 'Bob', 1), (4, 'Cid', 2), (5, 'Dee', 4),
            (6, 'Eve', 3), (7, 'Abe', 2);
        """,
        [("Abe", 1), ("Cid", 1), ("Dee", 2)],
    ),
    "sql-hierarchy-breadcrumbs": Check(
        """
        CREATE TABLE categories (id INTEGER PRIMARY KEY, name TEXT, parent_id INT);
        INSERT INTO categories VALUES (1, 'Garden', NULL), (2, 'Rakes', 3), (3, 'Tools', 1), (4, 'Books', NULL);
        """,
        [(4, "Books"), (1, "Garden"), (3, "Garden > Tools"), (2, "Garden > Tools > Rakes")],
    ),
    "sql-hierarchy-bill-of-materials": Check(
        """
        CREATE TABLE components (assembly TEXT, part TEXT, quantity INT);
        INSERT INTO components VALUES ('bike', 'wheel', 2), ('bike', 'bolt', 4), ('wheel', 'spoke', 32),
            ('wheel', 'bolt', 2), ('car', 'wheel', 4), ('bike', 'bell', 1);
        """,
        [("bell", 1), ("bolt", 8), ("spoke", 64)],
    ),
    "sql-missing-rows": Check(
        """
        CREATE TABLE customers (id INTEGER PRIMARY KEY, name TEXT);
        CREATE TABLE orders (id INTEGER PRIMARY KEY, customer_id INT, ordered_on TEXT);
        INSERT INTO customers VALUES (1, 'Ann'), (2, 'Bob'), (3, 'Cid'), (4, 'Dee'), (5, 'Eve');
        INSERT INTO orders VALUES (1, 1, '2023-12-31'), (2, 2, '2024-12-31'), (3, 4, '2025-01-01'),
            (4, 4, '2024-01-01'), (5, NULL, '2024-06-01'), (6, 5, '2025-01-01');
        """,
        [("Ann",), ("Cid",), ("Eve",)],
    ),
    "sql-missing-rows-all-courses": Check(
        """
        CREATE TABLE required_courses (course TEXT);
        CREATE TABLE completions (student TEXT, course TEXT);
        INSERT INTO required_courses VALUES ('law'), ('math');
        INSERT INTO completions VALUES ('Ann', 'law'), ('Ann', 'math'), ('Ann', 'art'), ('Bob', 'law'), ('Bob', 'law'),
            ('Cid', 'law'), ('Cid', 'art'), ('Dee', 'math'), ('Dee', 'law'), ('Dee', 'law');
        """,
        [("Ann",), ("Dee",)],
    ),
    "sql-missing-rows-stock-reconciliation": Check(
        """
        CREATE TABLE warehouse_stock (sku TEXT, quantity INT);
        CREATE TABLE shop_stock (sku TEXT, quantity INT);
        INSERT INTO warehouse_stock VALUES ('A', 1), ('B', 2), ('C', 3), ('E', 0);
        INSERT INTO shop_stock VALUES ('A', 1), ('B', 5), ('D', 4);
        """,
        [("B", 2, 5), ("C", 3, None), ("D", None, 4), ("E", 0, None)],
    ),
    "sql-period-comparison": Check(
        """
        CREATE TABLE orders (id INTEGER PRIMARY KEY, ordered_on TEXT, total INT);
        INSERT INTO orders VALUES (1, '2024-01-31', 100), (2, '2024-01-01', 200), (3, '2024-02-10', 400),
            (4, '2024-03-10', 100);
        """,
        [("2024-01", 300, None), ("2024-02", 400, 33.3), ("2024-03", 100, -75.0)],
    ),
    "sql-period-comparison-moving-average": Check(
        """
        CREATE TABLE visits (day TEXT, visitors INT);
        INSERT INTO visits VALUES ('2024-02-27', 7), ('2024-02-29', 14), ('2024-03-06', 21);
        """,
        [
            ("2024-02-27", 7 / 1),
            ("2024-02-28", 7 / 2),
            ("2024-02-29", 21 / 3),
            ("2024-03-01", 21 / 4),
            ("2024-03-02", 21 / 5),
            ("2024-03-03", 21 / 6),
            ("2024-03-04", 21 / 7),
            ("2024-03-05", 14 / 7),
            ("2024-03-06", 35 / 7),
        ],
    ),
    "sql-period-comparison-retention": Check(
        """
        CREATE TABLE signups (user_id INT, signed_up_on TEXT);
        CREATE TABLE activity (user_id INT, active_on TEXT);
        INSERT INTO signups VALUES (1, '2024-01-31'), (2, '2024-01-05'), (3, '2024-01-09'), (4, '2024-12-31'),
            (5, '2024-06-01');
        INSERT INTO activity VALUES (1, '2024-02-01'), (1, '2024-02-29'), (2, '2024-01-31'), (2, '2024-03-01'),
            (4, '2025-01-31'), (5, '2025-07-01');
        """,
        [("2024-01", 3, 33.3), ("2024-06", 1, 0.0), ("2024-12", 1, 100.0)],
    ),
}


def test_every_sql_answer_has_a_check() -> None:
    assert sorted(CHECKS) == sorted(ids("sql"))


@pytest.mark.parametrize("prompt_id", CHECKS)
def test_the_query_returns_exactly_the_expected_rows_in_their_order(prompt_id: str) -> None:
    check = CHECKS[prompt_id]
    assert run(prompt_id, check) == check.expected


def run(prompt_id: str, check: Check) -> Rows:
    """The rows that the answer's only statement makes of the check's tables."""
    [statement] = code(prompt_id, "sql")
    with closing(sqlite3.connect(":memory:")) as database:
        database.executescript(check.setup)
        rows = database.execute(statement).fetchall()
        return database.execute(check.afterwards).fetchall() if check.afterwards else rows
