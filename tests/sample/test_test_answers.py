"""Runs the code of the teacher's answers to the test prompts."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from queue import Empty
from typing import Any

import pytest

from tests.sample import answers


def run(prompt_id: str) -> Any:
    """The module that the code of a Python answer makes."""
    return answers.run_python(answers.code(prompt_id, "python", "test_answers.jsonl"))


@pytest.fixture
def connect(tmp_path: Path) -> Iterator[partial[sqlite3.Connection]]:
    connect = partial(sqlite3.connect, tmp_path / "shop.db", check_same_thread=False)
    with closing(connect()) as setup:
        setup.execute("CREATE TABLE orders (number INTEGER)")
    yield connect


def numbers(connection: sqlite3.Connection) -> list[int]:
    return [number for [number] in connection.execute("SELECT number FROM orders ORDER BY number")]


def test_answers_have_the_order_of_the_test_prompts() -> None:
    expected = ["test-balanced-tree", "test-connection-pool", "test-above-average", "test-virtual-threads"]
    assert list(answers.records("test_answers.jsonl")) == expected


def test_a_tree_is_balanced_if_every_node_is() -> None:
    tree = run("test-balanced-tree")
    node = tree.Node
    chain = node(node(node()))
    for balanced in (None, node(), node(node(), None), node(node(node()), node())):
        assert tree.is_balanced(balanced)
    for unbalanced in (chain, node(None, node(None, node())), node(chain, node(node(), node(node())))):
        assert not tree.is_balanced(unbalanced)


def test_a_pool_lends_each_connection_once_and_takes_it_back(connect: partial[sqlite3.Connection]) -> None:
    pool = run("test-connection-pool").ConnectionPool(connect, size=2)
    with pool.connection() as first, pool.connection() as second:
        assert first is not second
        with pytest.raises(Empty), pool.connection(timeout=0.01):
            pass
    with pool.connection() as again, pool.connection() as other:
        assert {again, other} == {first, second}
    assert pool.idle.qsize() == 2


def test_a_pool_commits_blocks_and_rolls_back_failed_ones(connect: partial[sqlite3.Connection]) -> None:
    pool = run("test-connection-pool").ConnectionPool(connect, size=1)
    with pool.connection() as connection:
        connection.execute("INSERT INTO orders VALUES (1)")
    with pytest.raises(KeyError), pool.connection() as connection:
        connection.execute("INSERT INTO orders VALUES (2)")
        raise KeyError
    assert pool.idle.qsize() == 1
    with closing(connect()) as observer:
        assert numbers(observer) == [1]


def test_a_pool_can_be_shared_by_threads(connect: partial[sqlite3.Connection]) -> None:
    pool = run("test-connection-pool").ConnectionPool(connect, size=3)

    def insert(number: int) -> None:
        with pool.connection() as connection:
            connection.execute("INSERT INTO orders VALUES (?)", [number])

    with ThreadPoolExecutor(8) as executor:
        list(executor.map(insert, range(30)))
    with closing(connect()) as observer:
        assert numbers(observer) == list(range(30))


def test_the_query_finds_salaries_above_the_average() -> None:
    staff = [("Ann", "IT", 90), ("Bob", "IT", 60), ("Cy", "IT", 30), ("Dee", "IT", 70), ("Eve", "Law", 40)]
    staff += [("Flo", "Law", 50), ("Gus", "Bar", 10)]
    with closing(sqlite3.connect(":memory:")) as database:
        database.execute("CREATE TABLE employees (id INTEGER PRIMARY KEY, name TEXT, department TEXT, salary INTEGER)")
        database.executemany("INSERT INTO employees (name, department, salary) VALUES (?, ?, ?)", staff)
        rows = database.execute(answers.code("test-above-average", "sql", "test_answers.jsonl")).fetchall()
    assert rows == [("Ann", "IT", 90, 62.5), ("Dee", "IT", 70, 62.5), ("Flo", "Law", 50, 45.0)]
