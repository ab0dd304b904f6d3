"""The Markdown page, the terminal, and a metric that is added from outside."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from mlx_distill.cli import main
from mlx_distill.compare import report as reports
from mlx_distill.compare.collected import Collected
from mlx_distill.compare.metrics import METRICS
from mlx_distill.compare.models import Comparison
from mlx_distill.compare.render.header import command, facts, format_parameters
from mlx_distill.compare.render.markdown import markdown_page
from mlx_distill.compare.render.terminal import print_report
from mlx_distill.compare.run import run
from mlx_distill.compare.table import Table, number
from tests.support.adapters import make_adapter
from tests.support.comparing import PROMPTS, make_config, make_data, make_prompts
from tests.support.reports import HOSTILE, make_answer, make_answered, make_report


def words(data: Comparison) -> Table:
    """A metric from outside: the words of all answers."""
    counts = (
        sum(len(text.split()) for text in texts)
        for texts in zip(*((one.a.text, one.b.text) for one in data.answers), strict=True)
    )
    return Table(
        id="words",
        title="Words in all answers",
        columns=(data.a.name, data.b.name),
        rows={"words <b>": tuple(number(count) for count in counts)},
        note="Text between spaces.",
        finding="The answers have words.",
    )


def test_an_added_metric_is_in_every_form_of_the_report(
    tiny_student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = run(make_config(tiny_student, tmp_path, max_tokens=8), metrics=(*METRICS, words))
    print_report(result.report)
    out = capsys.readouterr().out
    assert "Words in all answers" in out and "words <b>" in out and "- The answers have words." in out
    markdown = result.markdown_file.read_text(encoding="utf-8")
    assert "## Words in all answers" in markdown and "| words \\<b\\> |" in markdown
    page = result.html_file.read_text(encoding="utf-8")
    assert '<h2 id="words">Words in all answers</h2>' in page and "words &lt;b&gt;" in page
    assert "Text between spaces." in page and "<li>The answers have words.</li>" in page
    assert list(json.loads(result.json_file.read_text(encoding="utf-8"))["tables"])[-1] == "words"


def test_markdown_shows_facts_and_figures() -> None:
    collected = Collected(104, 103, ("anthropic:x",), ("x-1",), 1.5, 100)
    text = markdown_page(make_report([make_answered("A.", "B.")], ("It changes nothing.",), collected=collected))
    assert text.index("> **Warning:** It changes nothing.") < text.index("## Held-out rows")
    assert "# demo: base and distilled compared" in text
    assert re.search(r"\| loss \| 2.000 \| 1.290 \| -0.710 \(-35.5 %\) \\\[-0.7\d\d, -0.6\d\d\\\] \|", text)
    assert "| token accuracy | 40.0 % | 60.0 % | +20.0 points |" in text
    assert "494M parameters" in text
    assert "adapters/demo (best, step 40); rank 8, scale 4; 1.7M parameters (0.3 %)" in text
    assert "103 of 104 prompts answered by x-1" in text
    assert "1.50 USD; 3 answers have no price" in text


def test_answers_cannot_break_out_of_their_block() -> None:
    answer = make_answer(HOSTILE, finished=False, n_tokens=120)
    teacher = make_answer("Done.", finished=False, taught=True)
    text = markdown_page(make_report([make_answered(answer, answer, teacher, name="tree|<b>", prompt="Is `it`?")]))
    assert "### 1. tree\\|\\<b\\> (python, test prompt)" in text
    assert text.count("`````text\nUse this:") == 2
    assert "**base** (not finished: reached the token limit, 120 tokens, 30 tokens/s; Python parses)" in text
    assert "**teacher** (not finished: max\\_tokens, 9 tokens)" in text
    assert not set(text) & set("\x1b\x07\u202e")
    outside = re.sub(r"^(`{3,})text\n.*?\n\1$", "", text, flags=re.DOTALL | re.MULTILINE)
    assert "<script>" not in outside
    assert "# no heading" not in outside


def test_terminal_gets_no_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    print_report(make_report([make_answered(HOSTILE, HOSTILE, prompt=HOSTILE, name=HOSTILE)]))
    assert not set(capsys.readouterr().out) & set("\x1b\x07\u202e")


def test_report_holds_the_command_that_repeats_it() -> None:
    wanted = "mlx-distill compare --model 'models/a b' --no-teacher --system 'You are a | pipe.' --max-tokens 512"
    assert command(make_report()) == wanted


def test_report_docstring_names_every_field() -> None:
    named = re.findall(r"\w+", " ".join(re.findall(r"^(.{13})\S.*$", str(reports.__doc__), re.MULTILINE)))
    assert set(msgspec.structs.asdict(make_report())) <= set(named)


def test_facts_leave_out_what_is_unknown() -> None:
    assert "Cost of the answers" not in facts(make_report())
    assert [format_parameters(n) for n in (1_700_000, 494_032_768, 7_600_000_000)] == ["1.7M", "494M", "7.6B"]
    recorded = facts(make_report(collected=Collected(4, 4, ("recorded:sample",), (), None, 0)))
    assert recorded["Cost of the answers"] == "none: the answers are recorded"


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
    for place, (_, _, prompt) in enumerate(PROMPTS, start=1):
        assert f"{place}. {prompt}" in out
    state = r"\((finished|not finished: reached the token limit), \d tokens?, \d+ tokens/s\)"
    assert re.search(rf"^--- base {state}$", out, re.MULTILINE)
    assert str(tmp_path / "out" / "report.md") in out
    assert "\x1b" not in out


def test_a_wide_terminal_shows_answers_side_by_side(
    compare: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("COLUMNS", "200")  # a title in one line, at any speed of the machine
    assert re.search(r"^ *base \(.* +distilled \(.*", compare(), re.MULTILINE)
    monkeypatch.setenv("COLUMNS", "90")
    assert re.search(r"--- base \(", compare())


def test_json_option_prints_the_report(compare: Callable[..., str], tmp_path: Path) -> None:
    found = json.loads(compare("--json"))
    assert found["report"] == json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert found["html_file"] == str(tmp_path / "out" / "report.html")
