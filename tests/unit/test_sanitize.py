"""Text from outside that is safe on a terminal and in Markdown."""

from __future__ import annotations

import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_distill.sanitize import encodable, fenced, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;my title\x07text", "text"),
        ("\x1b]8;;http://evil.example\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x9b2Jgone", "gone"),
        ("a\x1b[2J\x1b[Hb", "ab"),
        ("\x1bcreset", "reset"),
        ("\x1b(Bset", "set"),
        ("one\r\ntwo\rthree", "one\ntwothree"),
        ("bell\a back\b", "bell back"),
        ("tab\tand\nline", "tab\tand\nline"),
        ("\u202egnp.exe\u2066", "gnp.exe"),
        ("naïve 漢字 👩‍👩‍👧 é", "naïve 漢字 👩‍👩‍👧 é"),
        ("half \ud83d", "half \ufffd"),
    ],
)
def test_terminal_commands_are_removed_and_text_stays(text: str, shown: str) -> None:
    assert printable(text) == shown


@given(st.text(alphabet=st.one_of(st.characters(), st.sampled_from("\x1b\x9b]\\[;0m\x07\r\n\u202e"))))
def test_no_text_keeps_a_control_character(text: str) -> None:
    shown = printable(text)
    assert not [char for char in shown if unicodedata.category(char) == "Cc" and char not in "\t\n"]
    assert not set(shown) & set("\u200e\u200f\u061c\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
    shown.encode("utf-8")


def test_a_sequence_cut_in_two_is_harmless() -> None:
    assert "\x1b" not in printable("text \x1b") + printable("[31m red")


def test_long_text_is_cut_after_it_is_cleaned() -> None:
    assert printable("\x1b[31m" + "a" * 400, limit=300) == "a" * 300 + "..."
    assert printable("a" * 300, limit=300) == "a" * 300


def test_lone_surrogates_become_encodable() -> None:
    assert encodable("a\ud800b\x1b") == "a\ufffdb\x1b"


@given(st.text(alphabet="`a\n~ "))
def test_no_text_ends_its_own_code_block(text: str) -> None:
    opening, *inside, closing = fenced(text, "text").split("\n")
    fence = opening.removesuffix("text")
    assert closing == fence
    assert re.fullmatch("`{3,}", fence)
    assert not any(fence in line for line in inside)


@pytest.mark.parametrize("start", ["\x9d", "\x90", "\x98", "\x9e", "\x9f", "\x1b]", "\x9d\x90"])
def test_sequences_without_an_end_take_linear_time(start: str) -> None:
    assert "\x9d" not in printable(start * 200_000)  # hours if the time is quadratic
