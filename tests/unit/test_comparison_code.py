"""Blocks of code that stand, and the habits in them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from mlx_distill.code_blocks import sql_fault
from mlx_distill.compare.answers import PromptAnswers, StudentAnswer, TeacherAnswer
from mlx_distill.compare.code import CUT_OFF, BlockCheck, Share, examine, python_habits, sql_habits
from mlx_distill.compare.java import java_faults
from mlx_distill.compare.wording import check_words, code_note, code_rows
from tests.conftest import skip

POOL = """
def helper(x: int) -> int:
    \"\"\"Double.\"\"\"
    return 2 * x

class Pool:
    def size(self, n: int, *more: int) -> int:
        with open("x") as file:
            return helper(n)

    def bare(self, n):
        return self.size(n)
"""


def answers(base: str, distilled: str, teacher: str | None = None) -> PromptAnswers:
    said = [StudentAnswer(text, finished=True, n_tokens=9, tokens_per_second=9.0) for text in (base, distilled)]
    taught = TeacherAnswer(teacher, finished=True, stop_reason="end_turn", model="m") if teacher else None
    return PromptAnswers("p", "python", "?", said[0], said[1], taught)


def test_habits_of_python_are_counted_by_function_and_block() -> None:
    assert python_habits(POOL) == {
        "docstrings": [True, False, False],
        "type hints": [True, True, False],
        "helper functions": [True, True, False],
        "context managers": [True],
    }
    assert python_habits("def f(n):\n    return f(n - 1)")["helper functions"] == [False]  # itself is no other


def test_habits_of_sql_are_counted_by_statement() -> None:
    code = "WITH a AS (SELECT 1 AS x) SELECT * FROM a JOIN b ON a.x = b.x; SELECT SUM(x) OVER (PARTITION BY y) FROM t;"
    assert sql_habits(code) == {"CTEs": [True, False], "window functions": [False, True], "joins": [True, False]}


@pytest.mark.parametrize(
    "code",
    ["SELECT 1;", "SELECT a::int FROM t", "SELECT `a` FROM t LIMIT 5, 3", "SELECT TOP 5 * FROM t", "DROP TABLE t"],
)
def test_sql_of_any_usual_dialect_parses(code: str) -> None:
    assert sql_fault(code) == ""


@pytest.mark.parametrize(
    "code", ["", "-- nothing", "hello world", "x = 1", "def f(): return 1", "SELECT 'a", "(" * 5000]
)
def test_what_is_no_sql_is_told_in_few_words(code: str, caplog: pytest.LogCaptureFixture) -> None:
    assert 0 < len(sql_fault(code)) < 100
    assert not caplog.records


def test_a_block_stands_if_it_is_whole_and_parses() -> None:
    base = "```python\nx = 1\n```\n```python\nx = \n```\n```bash\nls\n```"
    found = examine([answers(base, "```python\nx = 1\n", "```sql\nSELECT 1\n```")])
    checks = found.checks["p"]["base"]
    assert [check.fault == "" for check in checks] == [True, False, False]
    assert checks[2] == BlockCheck("bash", None)
    assert found.unchecked == ("bash",)
    assert found.checks["p"]["distilled"] == (BlockCheck("python", CUT_OFF),)
    assert found.stands["python"] == {"base": Share(1, 2), "distilled": Share(0, 1), "teacher": Share(0, 0)}
    assert found.stands["sql"]["teacher"] == Share(1, 1)
    assert set(found.parsers) == {"python", "sql"}


def test_without_a_teacher_there_is_no_column_for_it() -> None:
    found = examine([answers("```python\nx = 1\n```", "Nothing.")])
    assert found.stands["python"] == {"base": Share(1, 1), "distilled": Share(0, 0)}
    assert examine([answers("No code.", "None.")]).stands == {}


def test_java_is_parsed_as_file_members_or_statements() -> None:
    if not shutil.which("javac"):
        skip("no JDK is installed")
    whole = "import a.B;\npublic class Main { B b; }"
    found = java_faults([whole, "int x = 1; x++;", "void f() {}", "class X { void f( }", "(" * 20_000])
    assert found
    assert found.version.startswith("javac ")
    assert found.faults[:3] == ("", "", "")
    assert found.faults[3].startswith("line 1: ")
    assert found.faults[4]


def test_java_that_is_newer_than_the_compiler_is_marked_not_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a stand-in for a javac of Java 17, since the one installed may be any."""
    if not shutil.which("javac"):
        skip("no JDK is installed")
    (tmp_path / "javac").write_text(
        f"#!/bin/sh\n{shutil.which('javac')} --release 17 \"$@\" 2>&1 | sed 's/^javac .*/javac 17.0.1/'\nexit 1\n"
    )
    (tmp_path / "javac").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    threads = "void f() { try (var executor = Executors.newVirtualThreadPerTaskExecutor()) { } }"
    pattern = "int f(Object o) { return o instanceof Point(int x, int y) ? x : y; }"
    switch = "int f(Object o) { return switch (o) { case Integer i -> i; default -> 0; }; }"
    found = java_faults([threads, pattern, switch, "void f( {}", "void f() {}"])
    assert found
    assert found.newer == (
        "virtual threads (Java 21)",
        "record patterns (Java 21)",
        "type patterns in switch (Java 21)",
        "",
        "",
    )
    assert found.faults[:3] == ("", None, None)
    assert found.faults[3]
    assert found.faults[4] == ""
    block = f"```java\n{threads}\n```\n```java\n{pattern}\n```"
    checked = examine([answers(block, block)])
    assert [check_words(check) for check in checked.checks["p"]["base"]] == [
        "Java parses; virtual threads (Java 21) is newer than the compiler here, not checked",
        "Java: not checked; record patterns (Java 21) is newer than the compiler here",
    ]
    assert checked.stands["java"]["base"] == Share(1, 1)


def test_without_a_jdk_java_is_not_checked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    block = "```java\nclass A {}\n```"
    found = examine([answers(block, block)])
    assert found.checks["p"]["base"] == (BlockCheck("java", None),)
    assert found.unchecked == ("java",)
    assert not found.stands
    stub = tmp_path / "javac"  # as macOS has one where no JDK is
    stub.write_text("#!/bin/sh\necho 'Unable to locate a Java Runtime.' >&2\nexit 1\n")
    stub.chmod(0o755)
    assert java_faults(["class A {}"]) is None


def test_python_is_executed_where_asked_and_counted_by_who_wrote_it() -> None:
    runs, fails = "```python\ndef f():\n    return 1\n```\nUse:\n```python\nprint(f())\n```", "```python\nx = \n```"
    base = f"{runs}\n{fails}\n```sql\nSELECT 1\n```"
    given = [answers(base, "```python\nprint(tree)\n```", "Nothing.")]
    found = examine(given, execute=True)
    assert [check.ran for check in found.checks["p"]["base"]] == ["", "", None, None]
    assert found.checks["p"]["distilled"] == (BlockCheck("python", "", "NameError: name 'tree' is not defined"),)
    assert found.executed == {"base": Share(2, 2), "distilled": Share(0, 1), "teacher": Share(0, 0)}
    assert "10 s, 1024 MiB" in code_note(found)
    header, rows = code_rows(found, {"base": "A", "distilled": "B", "teacher": "teacher"})
    assert header == ("", "A", "B", "teacher")
    assert ("Python blocks that run to their end", "2 of 2", "0 of 1", "-") in rows
    said = [check_words(check) for check in (*found.checks["p"]["base"][1:3], *found.checks["p"]["distilled"])]
    assert said[0] == "Python parses and runs"
    assert said[1].startswith("Python does not stand: line 1")
    assert said[2] == "Python parses, and does not run to its end: NameError: name 'tree' is not defined"


def test_nothing_is_executed_unless_asked(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    block = f"```python\nimport pathlib\npathlib.Path({str(mark)!r}).touch()\n```"
    found = examine([answers(block, block)])
    assert not mark.exists()
    assert found.executed is None
    assert "Nothing was executed." in code_note(found)
    examine([answers(block, block)], execute=True)
    assert mark.exists()
