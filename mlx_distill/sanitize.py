"""Text that a model or a file gave us, made harmless where people look at it: terminals and Markdown.

A model may write anything, also what a terminal obeys: colours, cursor moves, window titles, hidden text.
"""

from __future__ import annotations

import re

_ESCAPE_SEQUENCES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"  # CSI: colours, cursor
    r"|(?:\x1b[P\]X^_]|[\x90\x9d\x98\x9e\x9f])[^\x07\x1b\x9c\n]*(?:\x07|\x1b\\|\x9c)"  # OSC, DCS: titles, links
    r"|\x1b[ -/]+[0-~]|\x1b[0-Z\\^-~]"  # two or three characters: resets, character sets
)
"""ECMA-48 control sequences, in their 7-bit and 8-bit forms, where they are whole."""

_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
"""Control characters but tab and newline, and the marks that reorder or break the text around them."""

_SURROGATES = re.compile(r"[\ud800-\udfff]")


def printable(text: str) -> str:
    """`text` without what a terminal would obey or a page would reorder; line ends become `\\n`.

    Safe piece by piece as well: of an escape sequence that is cut in two, the escape character goes and the rest is
    plain text.
    """
    text = _ESCAPE_SEQUENCES.sub("", text.replace("\r\n", "\n"))
    return encodable(_CONTROLS.sub("", text))


def encodable(text: str) -> str:
    """`text` with lone surrogates, which no file can hold as UTF-8, replaced by U+FFFD."""
    return _SURROGATES.sub("\ufffd", text)


def fenced(text: str, language: str = "") -> str:
    """A Markdown code block that `text` cannot end: its fence is longer than any run of backticks inside."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{printable(text)}\n{fence}"
