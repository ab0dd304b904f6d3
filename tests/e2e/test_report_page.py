"""The report's page in a browser: it fits a phone and a desk, logs no errors, and hostile answers do no harm."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from mlx_distill.compare.collected import Collected
from mlx_distill.compare.config import CompareConfig
from mlx_distill.compare.render.html import html_page
from mlx_distill.compare.run import run
from mlx_distill.training_run import MetricPoint, TrainingRun
from tests.conftest import skip
from tests.support.adapters import make_adapter
from tests.support.comparing import example, make_prompts, write_lines
from tests.support.reports import HOSTILE, make_answer, make_answered, make_report

BROWSERS = (
    *("chromium", "chromium-browser", "google-chrome"),
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
)
FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--enable-logging=stderr"),
    *("--hide-scrollbars", "--window-size=1600,900"),
)
WIDTHS = (390, 1440)
LOOK = """<script>addEventListener("load", () => {
  const framed = (box) => box.closest("pre, .table, .text.long, .text table, svg, .skip")
  const outside = [...document.querySelectorAll("body *")]
    .filter((box) => !framed(box) && box.getBoundingClientRect().right > innerWidth + 1)
  parent.document.documentElement.setAttribute("data-seen-" + innerWidth, JSON.stringify({
    scroll: document.documentElement.scrollWidth, title: document.title,
    outside: outside.map((box) => box.outerHTML.slice(0, 200)),
    styled: getComputedStyle(document.querySelector("main")).maxWidth,
    paper: getComputedStyle(document.body).backgroundColor }))
})</script></head>"""
"""Goes into a copy of the page whose policy allows scripts: so the page is safe even without the policy."""

ATTACKS = [
    HOSTILE,
    "<script>document.title = 'owned'</script><img src=x onerror=\"document.title='owned'\">",
    "```html\n</code></pre><script>document.title = 'owned'</script>\n```",
    "\x1b[31mred\x1b[0m \x1b]8;;http://x.example\x07link \u202egnp.exe\u202c \u2067x\u2069 \u0645\u0631\u062d\u0628",
    "x" * 20_000,
    "word " * 4_000,
    "```python\n" + "y = 1; " * 2_857 + "\n```",
    ">" * 20_000,
    "| a | b |\n|---|---|\n| " + "wide" * 200 + " | c |",
    "- " * 500 + "deep",
]


@pytest.fixture(scope="module")
def browser() -> str:
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if not found:
        skip("no Chromium is installed")
    return str(found)


def visit(browser: str, file: Path, *flags: str) -> tuple[str, list[str]]:
    """The DOM after a headless browser has shown `file`, and what it wrote to its console."""
    profile = file.with_suffix(".profile")
    done = subprocess.run(
        [browser, *FLAGS, f"--user-data-dir={profile}", *flags, "--dump-dom", file.as_uri()],
        capture_output=True,
        encoding="utf-8",
        timeout=120,
        check=True,
    )
    return done.stdout, [line for line in done.stderr.split("\n") if "CONSOLE" in line]


def look(browser: str, text: str, folder: Path, *flags: str) -> dict[int, dict[str, Any]]:
    """Return what a script sees in a copy of the page, by width. A window is never as narrow as a phone, a frame is."""
    allowing = text.replace("default-src 'none'", "default-src 'none'; script-src 'unsafe-inline'; img-src *", 1)
    copy = html.escape(allowing.replace("</head>", LOOK, 1))
    frames = (f'<iframe width="{width}" height="900" frameborder="0" srcdoc="{copy}"></iframe>' for width in WIDTHS)
    file = folder / "frames.html"
    file.write_text(f'<!doctype html><meta charset="utf-8">{"".join(frames)}', encoding="utf-8")
    dom, console = visit(browser, file, *flags)
    assert not console
    found = {
        int(width): json.loads(html.unescape(seen))
        for width, seen in re.findall(r'data-seen-(\d+)="([^"]*)"', dom.split("<head", 1)[0])
    }
    assert set(found) == set(WIDTHS)
    return found


@cache
def hostile_page() -> str:
    steps = tuple(
        MetricPoint(step=n, train_loss=2 - n / 300, valid_loss=2.0 if n % 50 == 0 else None) for n in range(300)
    )
    collected = Collected(104, 104, ("anthropic:claude-sonnet-4-6",), ("claude-sonnet-4-6",), 1.61, 104)
    training = TrainingRun({"epochs": 3, "model": "m" * 300}, {"n_train_rows": 84, "steps": 300, "epochs": 3.0}, steps)
    answers = []
    for number, attack in enumerate(ATTACKS):
        answer, taught = make_answer(attack, finished=False, n_tokens=512), make_answer(attack, taught=True)
        name, category = f"{number}{attack[:300]}", attack[:300]
        answers.append(make_answered(answer, answer, taught, name=name, category=category, prompt=attack[:2000]))
    return html_page(make_report(answers, (HOSTILE, "w" * 500), collected=collected, training=training))


def test_hostile_answers_neither_run_nor_overflow(browser: str, tmp_path: Path) -> None:
    seen = look(browser, hostile_page(), tmp_path, "--blink-settings=preferredColorScheme=1")
    for width in WIDTHS:
        assert seen[width]["title"] == "demo: base and distilled compared"
        assert (seen[width]["outside"], seen[width]["scroll"]) == ([], width)
        assert seen[width]["styled"] == "1344px"


def test_the_page_as_it_is_logs_no_error(browser: str, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    file.write_text(hostile_page(), encoding="utf-8")
    dom, console = visit(browser, file)
    assert ">Answers</h2>" in dom
    assert not console  # a style sheet that the page's policy refused would be here
    file.write_text(hostile_page().replace("--paper", "--sheet", 1), encoding="utf-8")
    assert visit(browser, file)[1]  # as one is that is not what was hashed


def test_the_page_fits_in_light_and_dark(browser: str, tiny_student: Path, tmp_path: Path) -> None:
    answer = "Count.\n\n```python\ndef count(text: str) -> int:\n    return len(text)\n```"
    rows = [example(f"f{number}", "python", f"Count {number}.", answer) for number in range(5)]
    for name in ("train", "test"):
        write_lines(tmp_path / "data" / f"{name}.jsonl", rows)
    config = CompareConfig(
        model=tiny_student,
        adapter=make_adapter(tiny_student, tmp_path / "adapter"),
        data=tmp_path / "data",
        out=tmp_path / "out",
        test_prompts=make_prompts(tmp_path / "prompts.jsonl"),
        max_tokens=64,
    )
    text = run(config).html_file.read_text(encoding="utf-8")
    light, dark = (look(browser, text, tmp_path, f"--blink-settings=preferredColorScheme={kind}") for kind in (1, 0))
    for seen in (light, dark):
        for width in WIDTHS:
            assert (seen[width]["outside"], seen[width]["scroll"]) == ([], width)
    assert light[390]["paper"] != dark[390]["paper"]
