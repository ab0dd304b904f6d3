"""Runs every SQL answer in the embedded sample in SQLite on a few rows, and compares all rows that it returns."""

from __future__ import annotations

import re
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tests.sample.answers import code, ids

SCRIPT = Path(__file__).with_name("sql_checks.sql").read_text(encoding="utf-8")
CHECKS = dict(re.findall(r"^-- (sql-\S+)\n(.+?;)\s*(?=^-- |\Z)", SCRIPT, re.DOTALL | re.MULTILINE))


def test_every_sql_answer_has_a_check() -> None:
    assert list(CHECKS) == ids("sql")


@pytest.mark.parametrize("prompt_id", CHECKS)
def test_the_answer_returns_the_expected_rows_in_order(prompt_id: str) -> None:
    *tables, expected = CHECKS[prompt_id].split(";\n")
    query = tables.pop() if tables[-1].startswith("SELECT") else ""
    with closing(sqlite3.connect(":memory:")) as database:
        database.executescript(";".join(tables))
        rows = database.execute(code(prompt_id, "sql")).fetchall()
        if query:
            rows = database.execute(query).fetchall()
        assert rows == database.execute(expected).fetchall()
