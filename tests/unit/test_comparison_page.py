"""The page as text: escaped, without script, and with everything that the report holds. Browsers see it in e2e."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import re
from html.parser import HTMLParser
from itertools import pairwise

import pytest

import mlx_distill.comparison.report as reports
from mlx_distill.comparison.answers import PromptAnswers, StudentAnswer, TeacherAnswer
from mlx_distill.comparison.history import Course, History, Moment
from mlx_distill.comparison.html import answer_html, page, typeset
from mlx_distill.comparison.plots import marks
from tests.reports import HOSTILE, make_report

MOMENTS = tuple(Moment(step, 2 - step / 9, 2 - step / 8, step / 9, step / 8) for step in range(9))
HISTORY = History("sample", "", None, Course({"epochs": 3}, {"steps": 9}, MOMENTS), ())


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
    return page(make_report((one,), ("<svg onload=alert(3)>",), HISTORY))


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
    assert text.count("<polyline") == 4
    assert "Loss by training step. training batch: 2.000 at step 0, 1.111 at step 8" in text
    assert "<polyline" not in page(make_report(()))


def test_the_schema_in_words_names_every_field() -> None:
    named = re.findall(r"^(\w+) +\S.*$", str(reports.__doc__), re.MULTILINE)
    for field in dataclasses.fields(reports.Report):
        assert field.name in named


@pytest.mark.parametrize(("low", "high"), [(0, 9), (1.73, 3.3), (-0.22, 0), (5, 5), (0, 0), (1e-9, 2e-9), (0, 12_345)])
def test_axes_are_marked_at_round_numbers_within(low: float, high: float) -> None:
    found = marks(low, high, 4)
    assert 1 <= len(found) <= 7
    assert found == sorted(found)
    assert all(low - 1e-9 <= mark <= high + 1e-9 for mark in found)


def test_minus_signs_are_set_before_numbers_alone() -> None:
    assert typeset("-0.5 %, utf-8, 2026-02-24") == "\u22120.5\u00a0%, utf-8, 2026-02-24"
