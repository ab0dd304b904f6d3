"""Find the fenced code blocks of a Markdown answer."""

from __future__ import annotations

import enum
import re
import textwrap

import msgspec

_OPENING = re.compile(r"^[ \t]*(?P<fence>`{3,}|~{3,})[ \t]*(?P<info>[^`\n]*)$")
_ALIASES = {"py": "python", "python3": "python", "py3": "python"}


class CodeBlock(msgspec.Struct, frozen=True):
    """One fenced block of an answer."""

    language: str
    """Lower case, with `py` and the like as `python`. Empty if the fence names no language."""
    code: str
    """The lines between the fences, without their common indentation (a block in a list is indented)."""
    closed: bool = True
    """False if the answer ends before the closing fence."""


class Syntax(enum.Enum):
    """The result of a syntax check."""

    PARSED = "parsed"
    BROKEN = "broken"
    NOT_CHECKED = "not checked"


class SyntaxCheck(msgspec.Struct, frozen=True):
    """The syntax of one block, and why it is broken."""

    status: Syntax
    problem: str = ""


def code_blocks(answer: str) -> list[CodeBlock]:
    """Return the fenced blocks in order (CommonMark 4.5, with any indentation)."""
    blocks: list[CodeBlock] = []
    fence, language, lines = "", "", list[str]()
    for line in answer.replace("\r\n", "\n").split("\n"):
        if not fence:
            opening = _OPENING.match(line)
            if opening:
                fence, language, lines = opening["fence"], fence_language(opening["info"]), []
        elif _closes(line, fence):
            blocks.append(CodeBlock(language, _dedent(lines)))
            fence = ""
        else:
            lines.append(line)
    if fence:
        blocks.append(CodeBlock(language, _dedent(lines), closed=False))
    return blocks


def fence_language(info: str) -> str:
    """Return the language of a fence's info string: `python`, `Python title=x` and `{.python}` are all python."""
    word = re.match(r"[{.\s]*([\w+#-]*)", info)
    name = word[1].lower() if word else ""
    return _ALIASES.get(name, name)


def _closes(line: str, fence: str) -> bool:
    text = line.strip()
    return len(text) >= len(fence) and set(text) == {fence[0]}


def _dedent(lines: list[str]) -> str:
    return textwrap.dedent("\n".join(lines)) + "\n" if lines else ""
