"""scripts/lint_prose.py: the phrases, docstrings and names that it refuses, and those that it accepts."""

from __future__ import annotations

from pathlib import Path

import lint_prose
import pytest


@pytest.mark.parametrize(
    ("source", "line", "words"),
    [
        ('def f():\n    """Of each row its length."""\n', 2, "docstring starts with 'Of'"),
        ('"""What the teacher said."""\n', 1, "docstring starts with 'What'"),
        ('"""How the rows are split."""\n', 1, "docstring starts with 'How'"),
        ('LIMIT = 3\n"""In seconds."""\n', 2, "docstring starts with 'In'"),
        ("x = 1\n# this is no model\n", 2, "'is no': write 'is not a'"),
        ('x = f"{1} rows are\\n" \\\n    "learnt"\n', 2, "'learnt': write 'learned'"),
        ('"""Return it.\n\nThe old row is let\nbe."""\n', 3, "'let be': write 'leave unchanged'"),
        ("# Mend it and try again.\n", 1, "'Mend': write 'fix'"),
        ("MOST_ROWS = 3\n", 1, "name 'MOST_ROWS': write max_, min_ or n_"),
        (f"def test_{'x' * 56}(): ...\n", 1, "test name has 61 characters"),
    ],
)
def test_a_problem_is_reported_with_its_line(source: str, line: int, words: str) -> None:
    [(found_line, message)] = lint_prose.check_python(source)

    assert found_line == line and message.startswith(words)


@pytest.mark.parametrize(
    "source",
    [
        '"""Return the rows if there is no limit; there also are no rows."""\n',
        '"""How often to check for progress."""\n',
        "# The limit is no longer used. Besides, counts.most_common(3) recommends it.\n",
        "anew_ = counts.most_common(1)\n",
        f"def test_{'x' * 55}(): ...\n",
    ],
)
def test_plain_english_passes(source: str) -> None:
    assert list(lint_prose.check_python(source)) == []


def test_the_exit_code_and_the_place_are_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "notes.md").write_text("Try it anew.\n")
    (tmp_path / "good.md").write_text("Try it again.\n")
    assert lint_prose.main([str(tmp_path)]) == 0

    (tmp_path / "bad.md").write_text("Good.\nThere are\nno rows. These are\nno rows.\n")
    assert lint_prose.main([str(tmp_path)]) == 1
    assert capsys.readouterr().out == f"{tmp_path}/bad.md:3: 'are no': write 'is not a' or 'there is no'\n"
