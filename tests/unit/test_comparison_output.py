"""What people look at: the Markdown page and the terminal."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from mlx_distill.cli import main
from mlx_distill.compare.answers import PromptAnswers, StudentAnswer, TeacherAnswer
from mlx_distill.compare.markdown import page
from mlx_distill.compare.report import definitions
from mlx_distill.compare.subject_wording import command, millions
from tests.support.adapters import make_adapter
from tests.support.comparing import PROMPTS, make_data, make_prompts
from tests.support.reports import HOSTILE, make_report


def test_the_page_says_what_was_compared_with_which_figures() -> None:
    text = page(make_report(()))
    assert "| loss | 2.000 | 1.250 | -0.750 (-37.5 %) | -0.750 to -0.750 |" in text
    assert "| perplexity | 7.39 | 3.49 | -3.90 | -3.90 to -3.90 |" in text
    assert "| token accuracy | 40.0 % | 60.0 % | +20.0 points | +20.0 to +20.0 |" in text
    assert "Over 90 answer tokens of 9 test rows in 9 families" in text
    assert "| sql | 3 | 3 | 30 | 2.000 → 1.250 | -0.750 | - |" in text
    assert "fewer than 5 families has no interval" in text
    assert "494M parameters" in text
    assert "best, step 40; rank 8, scale 4" in text
    assert "1.7M (0.3 % of the student)" in text
    for definition in definitions({"base": "base", "distilled": "distilled"}).values():
        assert definition in text


def test_no_answer_breaks_out_of_its_block() -> None:
    answer = StudentAnswer(HOSTILE, finished=False, n_tokens=120, tokens_per_second=30.4)
    teacher = TeacherAnswer("Done.", finished=False, stop_reason="max_tokens", model="claude-sonnet-4-6")
    text = page(make_report((PromptAnswers("tree|<b>", "python", "Is `it`?", answer, answer, teacher),)))
    assert "### 1. tree\\|\\<b\\> (python, test prompt)" in text
    assert text.count("`````text\nUse this:") == 2
    assert "**Base** (cut off at the limit, 120 tokens, 30 tokens/s. Python parses)" in text
    assert "**Teacher** (not finished: max\\_tokens)" in text
    assert not set(text) & set("\x1b\x07\u202e")
    outside = re.sub(r"^(`{3,})text\n.*?\n\1$", "", text, flags=re.DOTALL | re.MULTILINE)
    assert "<script>" not in outside
    assert "# no heading" not in outside


def test_cautions_stand_above_the_figures() -> None:
    text = page(make_report((), ("The adapter changes nothing.",)))
    assert text.index("> **Note:** The adapter changes nothing.") < text.index("## Figures")


def test_the_page_holds_the_command_that_repeats_it() -> None:
    settings = {"model": "models/a b", "teacher": "", "max_tokens": 512}
    assert command(settings) == "mlx-distill compare --model 'models/a b' --no-teacher --max-tokens 512"


@pytest.mark.parametrize(("number", "said"), [(1_700_000, "1.7M"), (494_032_768, "494M"), (7_600_000_000, "7.6B")])
def test_parameters_are_counted_as_people_write_them(number: int, said: str) -> None:
    assert millions(number) == said


@pytest.fixture
def compare(
    tiny_student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., str]:
    """Run `mlx-distill compare` with these further options; returns what it printed."""
    monkeypatch.chdir(tmp_path)  # no distill.toml here
    options = {
        "model": tiny_student,
        "adapter": make_adapter(tiny_student, tmp_path / "adapter"),
        "data": make_data(tmp_path / "data"),
        "out": tmp_path / "out",
        "test-prompts": make_prompts(tmp_path / "prompts.jsonl"),
        "max-tokens": 8,
    }
    given = [word for name, value in options.items() for word in (f"--{name}", str(value))]

    def run(*more: str) -> str:
        with pytest.raises(SystemExit) as ended:
            main(["compare", *given, *more])
        assert ended.value.code == 0
        return capsys.readouterr().out

    return run


def test_a_pipe_gets_plain_lines(compare: Callable[..., str], tmp_path: Path) -> None:
    out = compare("--no-teacher")
    assert re.search(r"^loss +\d+\.\d{3} +\d+\.\d{3} +[+-]\d\.\d{3} \(", out, re.MULTILINE)
    assert re.search(r"^python +2 +\d", out, re.MULTILINE)
    for number, (_, _, prompt) in enumerate(PROMPTS, start=1):
        assert f"{number}. {prompt}" in out
    assert re.search(r"^--- base \((finished|cut off at the limit), \d tokens?, \d+ tokens/s\)$", out, re.MULTILINE)
    assert str(tmp_path / "out" / "report.md") in out
    assert "\x1b" not in out


def test_a_wide_terminal_gets_the_answers_side_by_side(
    compare: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("COLUMNS", "140")
    assert re.search(r"^ *base \(.*\) +distilled \(.*\)", compare(), re.MULTILINE)
    monkeypatch.setenv("COLUMNS", "90")
    assert re.search(r"^--- base \(.*\)$", compare(), re.MULTILINE)


def test_a_program_gets_the_findings_as_json(compare: Callable[..., str], tmp_path: Path) -> None:
    found = json.loads(compare("--json"))
    written = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert found["test"] == written["test"]
    assert found["answers"] == written["answers"]
    assert found["report"] == str(tmp_path / "out" / "report.json")
