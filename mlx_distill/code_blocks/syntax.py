"""Check whether a code block parses: Python with `ast`, SQL with sqlglot, Java with tree-sitter. Nothing runs."""

from __future__ import annotations

import ast
import contextlib
import logging
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import sqlglot
import tree_sitter
import tree_sitter_java
from sqlglot import exp
from sqlglot.errors import ParseError, SqlglotError

from mlx_distill.code_blocks.blocks import CodeBlock, Syntax, SyntaxCheck

MAX_CHARACTERS = 20_000
"""Longer blocks are not checked."""
SQL_DIALECTS = ("", "postgres", "mysql", "sqlite", "tsql", "oracle")
"""sqlglot's names, its own superset first. Code that parses in one of these is SQL."""

MAX_CALLS = 1_000_000
"""Function calls and returns for one dialect. Usual code of 20,000 characters needs half of them.

sqlglot tries all readings of some repeated text, such as `LEFT JOIN a LEFT JOIN a ...`, which would take years.
"""

logging.getLogger("sqlglot").setLevel(logging.ERROR)  # it warns about statements that it keeps as plain text


def check_syntax(block: CodeBlock) -> SyntaxCheck:
    """Parse a block. Blocks in other languages, and long ones, are not checked."""
    find_problem = {"python": python_problem, "sql": sql_problem, "java": java_problem}.get(block.language)
    if not find_problem or len(block.code) > MAX_CHARACTERS:
        return SyntaxCheck(Syntax.NOT_CHECKED)
    problem = find_problem(block.code) or ("" if block.closed else "the answer ends inside this block")
    return SyntaxCheck(Syntax.BROKEN, problem) if problem else SyntaxCheck(Syntax.PARSED)


def python_problem(code: str) -> str:
    """Return why Python's parser rejects the code, or an empty string."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an invalid escape in a string still parses
            ast.parse(code)
    except SyntaxError as error:
        return f"line {error.lineno or 1}: {error.msg}"
    except (ValueError, MemoryError, RecursionError) as error:  # a null byte; nesting beyond the parser's stack
        return str(error) or "nested too deeply"
    return ""


def java_problem(code: str) -> str:
    """Return why the code is not Java, or an empty string. It may be a file, statements, or members of a class."""
    parser = tree_sitter.Parser(tree_sitter.Language(tree_sitter_java.language()))
    tree, as_members = (parser.parse(text.encode("utf-8", "replace")) for text in (code, f"class Block {{{code}\n}}"))
    if not (tree.root_node.has_error and as_members.root_node.has_error):
        return ""
    node = tree.root_node
    while child := next((child for child in node.children if child.has_error or child.is_missing), None):
        node = child
    return f"line {node.start_point.row + 1}: {f'{node.type!r} is missing' if node.is_missing else 'syntax error'}"


def sql_problem(code: str) -> str:
    """Return why the code is not SQL in any usual dialect, or an empty string."""
    return parse_sql(code)[1]


def parse_sql(code: str) -> tuple[list[exp.Expr], str]:
    """Return the statements of the code, or an empty list and the reason."""
    problem = ""
    for dialect in SQL_DIALECTS:
        try:
            with _limited_calls():
                parts = sqlglot.parse(code, read=dialect)
            found = [part for part in parts if part and not isinstance(part, exp.Semicolon)]
        except ParseError as error:
            first = error.errors[0] if error.errors else {}
            line = f"line {first['line']}: " if first.get("line") else ""
            reason = str(first.get("description") or "not SQL").split(" but got <")[0]
            problem = problem or f"{line}{reason}".rstrip(".")
        except SqlglotError:  # the tokenizer's message describes sqlglot, not the code
            problem = problem or "an open quotation, or a character that SQL does not have"
        except RecursionError:  # also for too many calls
            return [], "nested too deeply, or too repetitive to parse"
        else:
            # A single word or expression parses too, but is not a statement.
            if found and not any(isinstance(part, (exp.Condition, exp.Alias, exp.Command)) for part in found):
                return found, ""
            problem = problem or "no SQL statement"
    return [], problem


@contextlib.contextmanager
def _limited_calls() -> Iterator[None]:
    """Raise RecursionError in the block after MAX_CALLS calls and returns of functions: the same on every machine."""
    left, before = MAX_CALLS, sys.getprofile()

    def count(*_event: Any) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise RecursionError

    sys.setprofile(count)
    try:
        yield
    finally:
        sys.setprofile(before)
