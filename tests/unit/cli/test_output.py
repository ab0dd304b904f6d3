"""Text from outside cannot command the terminal, wherever the command line prints it."""

from __future__ import annotations

import json
import sys

import pytest

from mlx_distill.cli.output import MAX_CHARACTERS, print_error, print_facts, print_json, reporting
from mlx_distill.errors import InputError
from mlx_distill.events import Note, Progress, Warning

HOSTILE = "\x1b]0;title\x07\x1b[31mname\x9b2J\u202e"


def test_hostile_text_is_printed_as_plain_text(capsys: pytest.CaptureFixture[str]) -> None:
    print_error(InputError(f"{HOSTILE}: wrong", f"Remove {HOSTILE}.", [HOSTILE]))
    print_facts(HOSTILE, [("model", HOSTILE)])
    with reporting() as report:
        for event in (Note(HOSTILE), Warning(HOSTILE), Progress(HOSTILE, 1, 1, HOSTILE, HOSTILE)):
            report(event)
    captured = capsys.readouterr()
    text = captured.out + captured.err
    assert text.count("name") == 10
    assert text.replace("\n", "").isprintable()


def test_progress_on_a_terminal_shows_brackets_as_they_are(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with reporting() as report:
        report(Progress("[/job]", 1, 2, "[/unit]", "[link=x]batch[/]"))
    shown = capsys.readouterr().err
    assert all(text in shown for text in ("[/job]", "[/unit]", "[link=x]batch[/]"))


def test_json_holds_no_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"id": f"{HOSTILE}\ud800", "text": "ü"})
    shown = capsys.readouterr().out
    assert shown.replace("\n", "").isprintable() and "ü" in shown
    assert json.loads(shown) == {"id": f"{HOSTILE}\ud800", "text": "ü"}


def test_long_text_is_cut(capsys: pytest.CaptureFixture[str]) -> None:
    print_error(InputError("x" * 100_000, "y" * 100_000, ["z" * 100_000]))
    assert len(capsys.readouterr().err) < 3 * MAX_CHARACTERS + 100
