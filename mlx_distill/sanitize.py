"""Make text from models, files and servers safe to show on a terminal or in Markdown.

Such text can contain commands to the terminal: colours, cursor moves, window titles, hidden text.
"""

from __future__ import annotations

import re

_ESCAPE_SEQUENCES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"  # CSI: colours, cursor
    r"|(?:\x1b[P\]X^_]|[\x90\x9d\x98\x9e\x9f])[^\x07\x1b\x90\x98\x9c-\x9f\n]*(?:\x07|\x1b\\|\x9c)"  # OSC, DCS
    r"|\x1b[ -/]+[0-~]|\x1b[0-Z\\^-~]"  # two or three characters: resets, character sets
)
"""Complete ECMA-48 control sequences, in their 7-bit and 8-bit forms. The search takes time linear in the text."""

_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
"""Control characters except tab and newline, and marks that reorder or break the text around them."""

_SURROGATES = re.compile(r"[\ud800-\udfff]")


def printable(text: str, limit: int | None = None) -> str:
    """Return `text` without control sequences and reordering marks; line ends become `\\n`.

    With `limit`, `...` replaces the text after that many characters. Text may arrive in pieces: if an escape sequence
    is cut in two, its escape character is removed, and the rest is harmless text.
    """
    text = _ESCAPE_SEQUENCES.sub("", text.replace("\r\n", "\n"))
    text = encodable(_CONTROLS.sub("", text))
    return text if limit is None or len(text) <= limit else f"{text[:limit]}..."


def json_safe(text: str) -> str:
    """Return JSON with escapes for control characters, marks that reorder text, and lone surrogates."""
    text = _CONTROLS.sub(lambda found: f"\\u{ord(found.group()):04x}", text)
    return _SURROGATES.sub(lambda found: f"\\u{ord(found.group()):04x}", text)


def surrogate_problem(text: str) -> str:
    """Return which lone surrogate `text` contains: JSON can write it, but UTF-8 cannot. Empty if there is none."""
    found = _SURROGATES.search(text)
    return f"contains \\u{ord(found.group()):04x}, which is half of a character" if found else ""


def encodable(text: str) -> str:
    """Return `text` with U+FFFD for lone surrogates, which UTF-8 cannot write."""
    return _SURROGATES.sub("\ufffd", text)


def fenced(text: str, language: str = "") -> str:
    """Return a Markdown code block whose fence is longer than every run of backticks in `text`."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{printable(text)}\n{fence}"


def without_thinking(text: str) -> str:
    """Remove `<think>...</think>`, which some servers leave in the answer's text.

    Some chat templates open the thought in the prompt, so the answer may contain only its end. A thought without an
    end leaves nothing.
    """
    opened = text.lstrip().startswith("<think>")
    before, closing, after = text.partition("</think>")
    if closing and (opened or "<think>" not in before):
        return after.lstrip()
    return "" if opened else text


def thinking_of(text: str) -> str:
    """Return the reasoning that a text begins with, without its tags; "" if there is none, or if it has no end."""
    before, closing, _ = text.partition("</think>")
    return before.rpartition("<think>")[2].strip() if closing else ""
