"""The page as text: escaped, without scripts, and complete. Browsers see it in tests/e2e."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser
from itertools import pairwise

import pytest

from mlx_distill.compare.metrics.held_out import held_out_by_category
from mlx_distill.compare.render.html import answer_html, html_page, typeset
from mlx_distill.compare.render.plots import interval_plot, ticks, training_plots
from mlx_distill.training_run import MetricPoint, TrainingRun
from tests.support.reports import HOSTILE, make_answer, make_answered, make_comparison, make_report

POINTS = tuple(
    MetricPoint(step=n, train_loss=2 - n / 9, valid_loss=2 - n / 8, train_accuracy=n / 9, valid_accuracy=n / 8)
    for n in range(9)
)
TRAINING = TrainingRun({"epochs": 3}, {"steps": 9}, POINTS)


class Elements(HTMLParser):
    """All elements with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attributes)))


def hostile_page() -> str:
    answer = make_answer(HOSTILE, finished=False, n_tokens=120)
    teacher = make_answer(HOSTILE, finished=False, taught=True)
    prompt = {"name": 'tree"><script>', "category": "<img src=x>", "prompt": "<script>alert(2)</script>\u202e"}
    one = make_answered(answer, answer, teacher, **prompt)
    return html_page(make_report([one], ("<svg onload=alert(3)>",), training=TRAINING))


def test_text_of_a_model_never_becomes_an_element() -> None:
    text = hostile_page()
    elements = Elements(text).found
    assert not {"script", "img", "iframe", "object", "link", "b", "i"} & {tag for tag, _ in elements}
    assert not [name for _, given in elements for name in given if name.startswith("on") or name == "style"]
    assert not set(text) & set("\x1b\x07\x00\u202e")
    assert text.count("alert(2)") == 1


def test_content_policy_allows_one_style_sheet_only() -> None:
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
def test_markdown_of_an_answer_has_no_links(said: str) -> None:
    drawn = answer_html(said)
    assert {tag for tag, _ in Elements(drawn).found} <= {"p", "pre", "code", "span"}
    assert "\u202e" not in drawn
    if "x.example" in said:
        assert "x.example" in drawn  # shown, not hidden


@pytest.mark.parametrize("said", ["> " * 500 + "deep", ">" * 20_000 + "deep", "- " * 19 + "deep", "- " * 500 + "deep"])
def test_deeply_nested_answers_are_shown_in_full(said: str) -> None:
    assert "deep" in answer_html(said)


def test_headings_of_answers_are_not_headings_of_the_page() -> None:
    assert "<h1" not in answer_html("# Big\n\nSmall\n===\n")
    levels = [int(tag[1]) for tag, _ in Elements(hostile_page()).found if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(later - before <= 1 for before, later in pairwise(levels))


def test_page_is_accessible() -> None:
    elements = Elements(hostile_page()).found
    ids = [given["id"] for _, given in elements if "id" in given]
    assert len(ids) == len(set(ids))
    for tag, given in elements:
        assert set((given.get("aria-labelledby") or "").split()) <= set(ids)
        if tag == "svg":
            assert given.get("role") == "img" and given.get("aria-labelledby")
    tags = [tag for tag, _ in elements]
    assert tags.count("table") == tags.count("caption") > 0
    landmarks = [tag for tag in tags if tag in ("header", "nav", "main", "footer")]
    assert landmarks == ["header", "nav", "main", "footer"]


def test_training_curves_are_drawn_and_described() -> None:
    text = hostile_page()
    assert "training batch: 2.000 at step 0, 1.111 at step 8" in text
    drawn = re.findall(r"<svg [^>]*plot-b-training-\w+-says.*?</svg>", text, re.DOTALL)
    assert len(drawn) == 2
    for drawing in drawn:
        for colour in ("soft", "b"):
            (points,) = re.findall(rf'<polyline class="stroke-{colour}" points="([^"]*)"', drawing)
            assert len(points.split()) == len(POINTS)
    assert "plot-b-training" not in html_page(make_report())


def test_long_curves_are_thinned_and_keep_their_end() -> None:
    steps = [MetricPoint(step=step, train_loss=2.0 - step / 9000) for step in range(2000)]
    (drawing,) = training_plots(steps, "a")
    (points,) = re.findall(r'points="([^"]*)"', drawing)
    assert 300 < len(points.split()) <= 401
    assert points.split()[-1].startswith("348.0,")


def test_the_loss_of_kd_is_drawn_as_cross_entropy_beside_its_kl() -> None:
    steps = [
        MetricPoint(step=step, train_loss=0.1, train_cross_entropy=2.0, valid_loss=1.0, valid_kl=0.5 - step / 10)
        for step in range(3)
    ]
    loss, kl = training_plots(steps, "a")
    assert "training batch: 2.000 at step 0" in loss and "validation: 1.000 at step 0" in loss
    assert "KL to the teacher by training step" in kl and "validation: 0.500 at step 0, 0.300 at step 2" in kl


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 100, [0, 50, 100]), (0.9, 2.2, [1, 1.5, 2]), (-0.07, 0.01, [-0.06, -0.04, -0.02, 0]), (3, 3, [3])],
)
def test_ticks_are_round_numbers(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high, 4) == pytest.approx(expected)


def test_intervals_are_drawn_for_each_category() -> None:
    names = ["$x^2$<b>&", "\u6f22\u5b57\u202e", "c" * 40]
    rows = [(f"f{n}", names[n % 3], 2.0, 1.0 + n / 100) for n in range(24)]
    table = held_out_by_category(make_comparison(rows))
    assert table
    drawing = interval_plot(table)
    labels = re.findall(r"<text[^>]*>([^<]*)</text>", drawing)
    assert {"$x^2$&lt;b&gt;&amp;", "\u6f22\u5b57", "c" * 15 + "\u2026"} <= set(labels)
    assert drawing.count('class="dot"') == drawing.count("stroke-b thick") == 3
    assert "\u202e" not in drawing


def test_only_numbers_get_minus_signs() -> None:
    assert typeset("-0.5 %, utf-8, 2026-02-24") == "\u22120.5\u00a0%, utf-8, 2026-02-24"
