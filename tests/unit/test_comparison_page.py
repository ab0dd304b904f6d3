"""The page as text: escaped, without script, and with everything that the report holds. Browsers see it in e2e."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import re
from html.parser import HTMLParser
from itertools import pairwise

import pytest

import mlx_distill.compare.report as reports
from mlx_distill.compare.answers import PromptAnswers, StudentAnswer, TeacherAnswer
from mlx_distill.compare.figures import PairedRow, held_out
from mlx_distill.compare.history import Course, Moment
from mlx_distill.compare.html import answer_html, page, typeset
from mlx_distill.compare.plots import loss_intervals, training_curves
from mlx_distill.models.score import RowScore
from tests.support.reports import HOSTILE, make_report

MOMENTS = tuple(Moment(step, 2 - step / 9, 2 - step / 8, step / 9, step / 8) for step in range(9))
COURSE = Course({"epochs": 3}, {"steps": 9}, MOMENTS)


class Elements(HTMLParser):
    """All elements with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attributes)))


def hostile_page() -> str:
    answer = StudentAnswer(HOSTILE, finished=False, n_tokens=120, tokens_per_second=30.4)
    teacher = TeacherAnswer(HOSTILE, finished=False, stop_reason="<b>", model="<i>")
    one = PromptAnswers('tree"><script>', "<img src=x>", "<script>alert(2)</script>\u202e", answer, answer, teacher)
    return page(make_report((one,), ("<svg onload=alert(3)>",), course=COURSE))


def test_nothing_that_a_model_says_becomes_an_element() -> None:
    text = hostile_page()
    elements = Elements(text).found
    assert not {"script", "img", "iframe", "object", "link", "b", "i"} & {tag for tag, _ in elements}
    assert not [name for _, given in elements for name in given if name.startswith("on") or name == "style"]
    assert not set(text) & set("\x1b\x07\x00\u202e")
    assert text.count("alert(2)") == 1


def test_the_content_policy_lets_in_the_one_style_sheet_and_nothing_else() -> None:
    text = hostile_page()
    style = re.search(r"<style>(.*?)</style>", text, re.DOTALL)
    assert style
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert f"content=\"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'\"" in text
    assert text.index("Content-Security-Policy") < text.index("<style>")
    assert "http" not in text.replace("http-equiv", "")


@pytest.mark.parametrize(
    "said",
    [
        "[go](javascript:alert(1)) [go](http://x.example)",
        "![x](http://x.example/a.png)",
        "<http://x.example>",
        "[a]: http://x.example\n\n[a]",
        "<a href='http://x.example'>go</a>",
        '```"><script>\nx\n```',
        "&lt;script&gt;&#x202e;",
    ],
)
def test_markdown_of_an_answer_is_read_and_never_followed(said: str) -> None:
    drawn = answer_html(said)
    assert {tag for tag, _ in Elements(drawn).found} <= {"p", "pre", "code", "span"}
    assert "\u202e" not in drawn
    if "x.example" in said:
        assert "x.example" in drawn  # shown, not hidden


@pytest.mark.parametrize("said", ["> " * 500 + "deep", ">" * 20_000 + "deep", "- " * 19 + "deep", "- " * 500 + "deep"])
def test_an_answer_that_is_nested_too_deeply_is_still_shown_whole(said: str) -> None:
    assert "deep" in answer_html(said)


def test_headings_of_answers_are_no_headings_of_the_page() -> None:
    assert "<h1" not in answer_html("# Big\n\nSmall\n===\n")
    levels = [int(tag[1]) for tag, _ in Elements(hostile_page()).found if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(later - before <= 1 for before, later in pairwise(levels))


def test_everything_that_is_seen_can_be_heard() -> None:
    elements = Elements(hostile_page()).found
    ids = [given["id"] for _, given in elements if "id" in given]
    assert len(ids) == len(set(ids))
    for tag, given in elements:
        assert set((given.get("aria-labelledby") or "").split()) <= set(ids)
        if tag == "svg":
            assert given.get("aria-hidden") == "true" or (given.get("role") == "img" and given.get("aria-labelledby"))
    tags = [tag for tag, _ in elements]
    assert tags.count("table") == tags.count("caption") > 0
    landmarks = [tag for tag in tags if tag in ("header", "nav", "main", "footer")]
    assert landmarks == ["header", "nav", "main", "footer"]


def test_curves_are_drawn_where_training_left_them_and_told_in_words() -> None:
    text = hostile_page()
    assert "Loss by training step. training batch: 2.000 at step 0, 1.111 at step 8" in text
    drawn = re.findall(r"<svg viewBox=[^>]*plot-distilled-\w+-says.*?</svg>", text, re.DOTALL)
    assert len(drawn) == 2
    for drawing in drawn:
        for colour in ("soft", "distilled"):
            lines = re.findall(rf'<path d="([^"]*)"[^>]*class="stroke-{colour}"', drawing)
            assert any(line.count("L") == len(MOMENTS) - 1 for line in lines)
    assert "plot-distilled-loss" not in page(make_report(()))


def test_a_drawing_is_coloured_by_the_page_alone_and_repeats_itself() -> None:
    moments = tuple(Moment(step, 2.0 - step / 9, None, None, None) for step in range(9))
    first, again = (training_curves(moments, "a")[0].drawing for _ in range(2))
    assert first == again
    other = training_curves(moments, "b")[0].drawing
    elements = Elements(first).found
    assert not [value for _, given in elements for value in given.values() if value and "#0d0e" in value]
    ids = {given["id"] for _, given in elements if "id" in given}
    assert ids
    assert not ids & {given["id"] for _, given in Elements(other).found if "id" in given}
    referred = set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', first))
    assert {one or two for one, two in referred} <= ids


def test_a_category_is_drawn_as_it_is_called() -> None:
    """Two dollar signs would be a formula to Matplotlib, an angle bracket an element to the page."""
    rows = [
        PairedRow(f"f{n}", category, RowScore(20.0, 4, 10), RowScore(12.5, 6, 10))
        for n, category in enumerate(["$x^2$<b>&", "\u6f22\u5b57\u202e", "c" * 40])
    ]
    drawing = loss_intervals(held_out(rows, 0), {"base": "base", "distilled": "d"}).drawing
    labels = re.findall(r"<text[^>]*>([^<]*)</text>", drawing)
    assert "$x^2$&lt;b&gt;&amp;" in labels
    assert "\u6f22\u5b57" in labels
    assert "cccccccccccc\u2026" in labels
    assert "\u202e" not in drawing


def test_the_schema_in_words_names_every_field() -> None:
    named = re.findall(r"^(\w+) +\S.*$", str(reports.__doc__), re.MULTILINE)
    for field in dataclasses.fields(reports.Report):
        assert field.name in named


def test_minus_signs_are_set_before_numbers_alone() -> None:
    assert typeset("-0.5 %, utf-8, 2026-02-24") == "\u22120.5\u00a0%, utf-8, 2026-02-24"
