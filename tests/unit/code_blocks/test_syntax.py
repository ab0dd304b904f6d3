"""Python, SQL and Java are parsed; problems are named in a few words."""

from __future__ import annotations

import sys

import pytest

from mlx_distill.code_blocks.blocks import CodeBlock, Syntax, SyntaxCheck
from mlx_distill.code_blocks.syntax import (
    MAX_CHARACTERS,
    check_syntax,
    java_problem,
    parse_sql,
    python_problem,
    sql_problem,
)


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        ("x = 1\n", ""),
        ("await fetch()\n", ""),
        ('pattern = "\\d"\n', ""),
        ("def f(:\n    pass\n", "line 1: "),
        ("x = 1\n  y = 2\n", "line 2: unexpected indent"),
        ("print 'old'\n", "line 1: Missing parentheses"),
        ("x = 1\x00", "null byte"),
    ],
)
def test_python_problems_are_named_with_their_line(code: str, problem: str) -> None:
    found = python_problem(code)
    assert problem in found if problem else found == ""


def test_code_beyond_the_parsers_stack_is_a_problem() -> None:
    assert python_problem("-" * 100_000 + "1")
    assert java_problem("(" * 20_000)


@pytest.mark.parametrize(
    "code",
    ["SELECT 1;", "SELECT a::int FROM t", "SELECT `a` FROM t LIMIT 5, 3", "SELECT TOP 5 * FROM t", "DROP TABLE t"],
)
def test_sql_of_any_usual_dialect_parses(code: str) -> None:
    assert sql_problem(code) == ""


@pytest.mark.parametrize(
    "code", ["", "-- nothing", "hello world", "x = 1", "def f(): return 1", "SELECT 'a", "(" * 5000]
)
def test_problems_of_sql_take_few_words(code: str, caplog: pytest.LogCaptureFixture) -> None:
    assert 0 < len(sql_problem(code)) < 100
    assert not caplog.records


@pytest.mark.parametrize(
    "code",
    [
        "import a.B;\npublic class Main { B b; }",
        "int x = 1; x++;",
        "void f() {}",
        "private int x;\npublic Main(int x) { this.x = x; }",
        "int f(Object o) { return o instanceof Point(int x, int y) ? x : y; }",
        "int f(Object o) { return switch (o) { case Integer i when i > 3 -> i; default -> 0; }; }",
        "try (var executor = Executors.newVirtualThreadPerTaskExecutor()) { executor.submit(() -> 1); }",
    ],
)
def test_java_may_be_a_file_members_or_statements(code: str) -> None:
    assert java_problem(code) == ""


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        ("class X {\n  void f( }", "line 2: syntax error"),
        ("int x = 1", "line 1: ';' is missing"),
        ("def f():\n    return 1", "line 1: syntax error"),
    ],
)
def test_java_problems_are_named_with_their_line(code: str, problem: str) -> None:
    assert java_problem(code) == problem


@pytest.mark.parametrize("code", ["SELECT " + "LEFT JOIN a " * 80, "f(a)." * 1000, "SELECT a" + ".b()" * 4000])
def test_repeated_sql_is_given_up(code: str) -> None:
    assert parse_sql(code) == ([], "nested too deeply, or too repetitive to parse")
    assert sys.getprofile() is None


@pytest.mark.parametrize(
    ("block", "check"),
    [
        (CodeBlock("python", "x = 1"), SyntaxCheck(Syntax.PARSED)),
        (CodeBlock("python", "x = 1", closed=False), SyntaxCheck(Syntax.BROKEN, "the answer ends inside this block")),
        (CodeBlock("java", "class {"), SyntaxCheck(Syntax.BROKEN, "line 1: syntax error")),
        (CodeBlock("cobol", "?"), SyntaxCheck(Syntax.NOT_CHECKED)),
        (CodeBlock("python", "x" * (MAX_CHARACTERS + 1)), SyntaxCheck(Syntax.NOT_CHECKED)),
    ],
)
def test_blocks_are_checked_by_their_language(block: CodeBlock, check: SyntaxCheck) -> None:
    assert check_syntax(block) == check
