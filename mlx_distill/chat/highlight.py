"""Code in an answer made readable while it streams: fenced blocks highlighted line by line, prose left as it is.

What is written is the answer's own text, with colours around it and nothing added or lost.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pygments.lexer import Lexer

_OPENING = re.compile(r" {0,3}(`{3,})([^`]*)")
_MAYBE_OPENING = re.compile(r" {0,3}`{0,2}")
"""The beginning of a line that may still become a fence."""
_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"


class CodePainter:
    """Takes an answer in pieces, made harmless before, and gives back what to write.

    Within a block a line is held back until it is whole: only then is its colour known.
    """

    def __init__(self) -> None:
        self._line = ""
        """What of the current line is not written yet."""
        self._at_start = True
        """Of a line, whose beginning says whether it is a fence."""
        self._fence = ""
        """What opened the block; "" outside of one."""
        self._lexer: Lexer | None = None
        self._code = ""
        """The block so far: a string may go over lines."""

    def feed(self, text: str) -> str:
        """What can be written of the answer so far."""
        written = []
        for part in re.split(r"(?<=\n)", text):
            self._line += part
            written.append(self._whole_line() if part.endswith("\n") else self._beginning())
        return "".join(written)

    def end(self) -> str:
        """What was held back, where the answer ended."""
        return self._whole_line()

    def _beginning(self) -> str:
        """What of an unfinished line can be written already: prose that is surely no fence."""
        if self._fence or (self._at_start and (_MAYBE_OPENING.fullmatch(self._line) or _OPENING.match(self._line))):
            return ""
        return self._take(at_start=not self._line and self._at_start)

    def _whole_line(self) -> str:
        fence, at_start = self._fence, self._at_start
        line = self._take(at_start=True)
        body = line.removesuffix("\n")
        if fence:
            closing = body.strip(" ")
            if len(closing) >= len(fence) and set(closing) == {"`"}:
                self._fence = ""
                return _dim(line)
            return self._paint(line)
        opening = _OPENING.fullmatch(body) if at_start else None
        if opening is None:
            return line
        self._fence, self._code = opening[1], ""
        self._lexer = _lexer(opening[2].strip())
        return _dim(line)

    def _take(self, *, at_start: bool) -> str:
        line, self._line, self._at_start = self._line, "", at_start
        return line

    def _paint(self, line: str) -> str:
        """The block's next line in colours, read together with the lines before it."""
        from pygments import highlight
        from pygments.formatters import TerminalFormatter

        before, self._code = self._code, self._code + line
        if self._lexer is None or not line.strip():
            return line
        painted = highlight(self._code, self._lexer, TerminalFormatter(bg="dark"))
        last = painted.split("\n")[before.count("\n")] + ("\n" if line.endswith("\n") else "")
        return last if plain(last) == line else line


def plain(text: str) -> str:
    """`text` without the colours that a painter adds."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def _dim(line: str) -> str:
    body = line.removesuffix("\n")
    return f"{_DIM}{body}{_PLAIN}{line[len(body) :]}"


def _lexer(language: str) -> Lexer | None:
    """The highlighter of a language by the name behind a fence; None where there is none, or no name."""
    from pygments.lexers import get_lexer_by_name
    from pygments.util import ClassNotFound

    if not language:
        return None
    try:
        found: Lexer = get_lexer_by_name(language.split()[0].lower(), stripnl=False, ensurenl=False)
    except ClassNotFound:
        return None
    return found
