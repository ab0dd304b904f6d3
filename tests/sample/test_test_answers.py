"""Executes the code of the teacher's answers to the test prompts."""

import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from queue import Empty
from types import ModuleType

import pytest

from tests.sample import answers


def source(prompt_id: str, language: str) -> str:
    """The only code block of a test answer."""
    [block] = answers.blocks(answers.records(answers.TEST_ANSWERS)[prompt_id]["answer"], language)
    return block


@pytest.fixture
def tree() -> ModuleType:
    return answers.run_python(source("test-balanced-tree", "python"))


@pytest.fixture
def connect(tmp_path: Path) -> Iterator[partial[sqlite3.Connection]]:
    connect = partial(sqlite3.connect, tmp_path / "shop.db", check_same_thread=False)
    with closing(connect()) as setup:
        setup.execute("CREATE TABLE orders (number INTEGER)")
    yield connect


def numbers(connection: sqlite3.Connection) -> list[int]:
    return [number for [number] in connection.execute("SELECT number FROM orders ORDER BY number")]


def test_the_answers_follow_the_order_of_the_test_prompts() -> None:
    expected = ["test-balanced-tree", "test-connection-pool", "test-above-average", "test-virtual-threads"]
    assert list(answers.records(answers.TEST_ANSWERS)) == expected


def test_trees_whose_subtrees_differ_by_at_most_one_are_balanced(tree: ModuleType) -> None:
    node = tree.Node
    assert tree.is_balanced(None)
    assert tree.is_balanced(node())
    assert tree.is_balanced(node(node(), None))
    assert tree.is_balanced(node(node(node()), node()))


def test_a_tree_is_unbalanced_when_any_node_is(tree: ModuleType) -> None:
    node = tree.Node
    chain = node(node(node()))
    assert not tree.is_balanced(chain)
    assert not tree.is_balanced(node(None, node(None, node())))
    assert not tree.is_balanced(node(chain, node(node(), node(node()))))


def test_a_pool_lends_each_connection_once_and_takes_it_back(connect: partial[sqlite3.Connection]) -> None:
    pool = answers.run_python(source("test-connection-pool", "python")).ConnectionPool(connect, size=2)
    with pool.connection() as first, pool.connection() as second:
        assert first is not second
        with pytest.raises(Empty), pool.connection(timeout=0.01):
            pass
    with pool.connection() as again, pool.connection() as other:
        assert {again, other} == {first, second}
    assert pool.idle.qsize() == 2


def test_a_pool_commits_good_blocks_and_rolls_failed_ones_back(connect: partial[sqlite3.Connection]) -> None:
    pool = answers.run_python(source("test-connection-pool", "python")).ConnectionPool(connect, size=1)
    with pool.connection() as connection:
        connection.execute("INSERT INTO orders VALUES (1)")
    with pytest.raises(KeyError), pool.connection() as connection:
        connection.execute("INSERT INTO orders VALUES (2)")
        raise KeyError
    assert pool.idle.qsize() == 1
    with closing(connect()) as observer:
        assert numbers(observer) == [1]


def test_a_pool_can_be_shared_by_threads(connect: partial[sqlite3.Connection]) -> None:
    pool = answers.run_python(source("test-connection-pool", "python")).ConnectionPool(connect, size=3)

    def insert(number: int) -> None:
        with pool.connection() as connection:
            connection.execute("INSERT INTO orders VALUES (?)", [number])

    with ThreadPoolExecutor(8) as executor:
        list(executor.map(insert, range(30)))
    with closing(connect()) as observer:
        assert numbers(observer) == list(range(30))


def test_the_query_lists_those_above_the_average_of_their_department() -> None:
    staff = [("Ann", "IT", 90), ("Bob", "IT", 60), ("Cy", "IT", 30), ("Dee", "IT", 70), ("Eve", "Law", 40)]
    staff += [("Flo", "Law", 50), ("Gus", "Bar", 10)]
    with closing(sqlite3.connect(":memory:")) as database:
        database.execute("CREATE TABLE employees (id INTEGER PRIMARY KEY, name TEXT, department TEXT, salary INTEGER)")
        database.executemany("INSERT INTO employees (name, department, salary) VALUES (?, ?, ?)", staff)
        rows = database.execute(source("test-above-average", "sql")).fetchall()
    assert rows == [("Ann", "IT", 90, 62.5), ("Dee", "IT", 70, 62.5), ("Flo", "Law", 50, 45.0)]
