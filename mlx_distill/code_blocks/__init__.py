"""Code in an answer: its fenced blocks, whether they parse, and their shape with every name taken out.

`execution` runs Python blocks where that is asked for; nothing else here executes anything.

A language that can be parsed is one entry of `PARSERS`; blocks in any other language are passed over, never guessed at.
"""

from __future__ import annotations

import ast
import importlib.metadata
import keyword
import logging
import re
import textwrap
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlglot import exp

_OPENING = re.compile(r"^(?P<indent>[ \t]*)(?P<fence>`{3,}|~{3,})[ \t]*(?P<info>[^`\n]*)$")


@dataclass(frozen=True)
class CodeBlock:
    """One fenced block of an answer."""

    language: str
    """Lower case, aliases folded (`py` is `python`); empty where the fence names none."""
    code: str
    """Without the fences and without the indentation they share, such as that of a list item."""
    closed: bool = True
    """False where the answer ends before the closing fence."""


def code_blocks(answer: str) -> list[CodeBlock]:
    """The fenced code blocks of a Markdown answer, in order (CommonMark 4.5; any indentation, as in lists)."""
    blocks: list[CodeBlock] = []
    fence, language, lines = "", "", list[str]()
    for line in answer.replace("\r\n", "\n").split("\n"):
        if not fence:
            opening = _OPENING.match(line)
            if opening:
                fence, language, lines = opening["fence"], _language(opening["info"]), []
        elif _closes(line, fence):
            blocks.append(CodeBlock(language, _dedented(lines)))
            fence = ""
        else:
            lines.append(line)
    if fence:
        blocks.append(CodeBlock(language, _dedented(lines), closed=False))
    return blocks


def parse_fault(block: CodeBlock) -> str | None:
    """Why the block does not parse, "" where it does, None where its language has no parser here."""
    parser = PARSERS.get(block.language)
    return parser(block.code) if parser else None


def python_fault(code: str) -> str:
    """Why this Python's grammar rejects `code`, in a few words; "" where it does not. Nothing is executed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an odd escape in a string still parses
            ast.parse(code)
    except SyntaxError as error:
        return f"line {error.lineno or 1}: {error.msg}"
    except (ValueError, MemoryError, RecursionError) as error:  # a null byte; nesting beyond the parser's stack
        return str(error) or "nested too deeply"
    return ""


PARSERS: Mapping[str, Callable[[str], str]] = {"python": python_fault}
"""Language to the function that says why code in it does not parse ("" where it does)."""

SQL_DIALECTS = ("", "postgres", "mysql", "sqlite", "tsql", "oracle")
"""sqlglot's names, its own superset first: a block that is SQL in any of these is SQL."""


def sql_parser() -> str:
    """What `sql_fault` parses with, in words."""
    version = importlib.metadata.version("sqlglot")
    return f"sqlglot {version}, in any of its own, PostgreSQL, MySQL, SQLite, T-SQL and Oracle dialects"


def sql_fault(code: str) -> str:
    """Why `code` is not SQL in any usual dialect, in a few words; "" where it is. Nothing is executed.

    No entry of `PARSERS`: that decides which answers are learnt from, and dialects are too many to reject one by this.
    """
    return _parse_sql(code)[1]


def sql_statements(code: str) -> list[exp.Expr]:
    """The statements of `code`; none where it does not parse."""
    return _parse_sql(code)[0]


def _parse_sql(code: str) -> tuple[list[exp.Expr], str]:
    """(statements, "") or ([], why there are none)."""
    import sqlglot
    from sqlglot import exp
    from sqlglot.errors import ParseError, SqlglotError

    logging.getLogger("sqlglot").setLevel(logging.ERROR)  # it warns of statements that it keeps as plain text
    fault = ""
    for dialect in SQL_DIALECTS:
        try:
            found = [part for part in sqlglot.parse(code, read=dialect) if part and not isinstance(part, exp.Semicolon)]
        except ParseError as error:
            first = error.errors[0] if error.errors else {}
            where = f"line {first['line']}: " if first.get("line") else ""
            says = str(first.get("description") or "not SQL").split(" but got <")[0]
            fault = fault or f"{where}{says}".rstrip(".")
        except SqlglotError:  # of its tokenizer, whose words are about itself
            fault = fault or "an open quotation, or a character that SQL does not have"
        except RecursionError:
            return [], "nested too deeply"
        else:
            # a lone word or expression parses as well, and is no statement
            if found and not any(isinstance(part, (exp.Condition, exp.Alias, exp.Command)) for part in found):
                return found, ""
            fault = fault or "no statement of SQL"
    return [], fault


_ALIASES = {"py": "python", "python3": "python", "py3": "python"}


def shape(block: CodeBlock) -> tuple[str, ...]:
    """The tokens of a block with comments left out and every name and literal replaced by a placeholder.

    Two pieces of code that differ only in names, texts, comments and layout have the same shape: a type-2 clone in
    the sense of Roy & Cordy, "A Survey on Software Clone Detection Research" (2007). Keywords of Python, SQL and Java
    stay; in another language every word is a name.
    """
    keywords, comment = _LEXICON.get(block.language, (frozenset(), r"/\*[\s\S]*?\*/|//[^\n]*|\#[^\n]*"))
    tokens: list[str] = []
    for match in re.finditer(rf"(?P<comment>{comment})|{_TOKEN}", block.code):
        kind, text = match.lastgroup, match.group()
        if kind == "word":
            tokens.append(text.lower() if text.lower() in keywords else "name")
        elif kind in ("text", "number"):
            tokens.append(kind)
        elif kind == "sign":
            tokens.append(text)
    return tuple(tokens)


_TOKEN = (
    r'(?P<text>"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\')'
    r"|(?P<word>[^\W\d]\w*)|(?P<number>\d[\w.]*)|(?P<sign>[^\w\s])"
)
_SQL_KEYWORDS = """
select from where with recursive as over partition by order group having window rows range unbounded preceding
following current row avg sum count min max row_number rank dense_rank lag lead first_value last_value join left right
full outer inner cross on and or not in exists desc asc limit union all distinct case when then else end is null
between insert into values update set delete create table
"""
_JAVA_KEYWORDS = """
class record interface enum sealed permits extends implements final static abstract void new return try catch finally
throw throws public private protected for while do if else switch case default break continue var int long double float
boolean char byte this super null true false instanceof synchronized
"""
_LEXICON: Mapping[str, tuple[frozenset[str], str]] = {
    "python": (
        frozenset(word.lower() for word in keyword.kwlist),
        r'"""[\s\S]*?"""|\'\'\'[\s\S]*?\'\'\'|\#[^\n]*',
    ),
    "sql": (frozenset(_SQL_KEYWORDS.split()), r"/\*[\s\S]*?\*/|--[^\n]*"),
    "java": (frozenset(_JAVA_KEYWORDS.split()), r"/\*[\s\S]*?\*/|//[^\n]*"),
}
"""Language to its keywords in lower case and the pattern of its comments, docstrings being comments."""


def _language(info: str) -> str:
    """The language of a fence's info string: `python`, `Python title=x` and `{.python}` are all python."""
    word = re.match(r"[{.\s]*([\w+#-]*)", info)
    name = word[1].lower() if word else ""
    return _ALIASES.get(name, name)


def _closes(line: str, fence: str) -> bool:
    text = line.strip()
    return len(text) >= len(fence) and set(text) == {fence[0]}


def _dedented(lines: list[str]) -> str:
    return textwrap.dedent("\n".join(lines)) + "\n" if lines else ""
