"""The report as one page that works offline: `report.html`.

Text from models and files is hostile. `printable` removes control characters and marks that reorder text from every
value, then Jinja2 escapes it. Markdown in answers is rendered without HTML, links and images. The content security
policy of the page allows one style sheet, by its hash, and nothing else.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from markupsafe import Markup, escape
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name
from pygments.util import ClassNotFound

from mlx_distill.code_blocks.blocks import fence_language
from mlx_distill.compare.render import header
from mlx_distill.compare.render.plots import interval_plot, training_plots
from mlx_distill.compare.report import Report, language_name
from mlx_distill.sanitize import printable

MAX_HIGHLIGHTED = 20_000
"""Longer blocks of code are shown without colours."""


def html_page(report: Report) -> str:
    """Return the whole page."""
    loader = PackageLoader("mlx_distill.compare.render")
    environment = Environment(
        loader=loader,
        autoescape=True,
        finalize=_clean,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "answer": answer_html,
        "code": code_html,
        "typeset": typeset,
    }
    style, _, _ = loader.get_source(environment, "report.css")
    return environment.get_template("report.html").render(
        report=report,
        header=header,
        style=Markup(style),  # our own file, hashed as it is
        style_hash=base64.b64encode(hashlib.sha256(style.encode()).digest()).decode(),
        plots={table.id: interval_plot(table) for table in report.tables.values() if table.plot is not None},
        trainings=[
            (model, training_plots(model.training.points, f"{voice}-training"))
            for voice, model in (("a", report.a), ("b", report.b))
            if model.training
        ],
    )


def typeset(text: str) -> str:
    """Put real minus signs before numbers, and keep a percent sign on the line of its number."""
    return re.sub(r"(?<![\w-])-(?=\d)", "\u2212", text).replace(" %", "\u00a0%")


def _clean(value: Any) -> Any:
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


class _Renderer(RendererHTML):
    """Markdown for answers: headings become paragraphs, and code is coloured."""

    def heading_open(self, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
        return '<p class="answer-heading">'

    def heading_close(self, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
        return "</p>\n"

    def fence(self, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
        return code_html(tokens[index].content, fence_language(tokens[index].info))

    def code_block(self, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
        return code_html(tokens[index].content)


_MARKDOWN = MarkdownIt("commonmark", {"html": False}, renderer_cls=_Renderer).enable("table")
# Entities would bring back the characters that `printable` removes; references would be hidden text.
_MARKDOWN.disable(["html_block", "html_inline", "link", "image", "autolink", "reference", "entity"])


def answer_html(text: str) -> Markup:
    """Return an answer's Markdown as elements without links, images, styles and scripts."""
    text = printable(text)
    tokens = _MARKDOWN.parse(text)
    if max((token.level for token in tokens), default=0) >= _MARKDOWN.options["maxNesting"] - 1:
        return code_html(text)  # the parser drops deeper text, and an answer is shown in full
    return Markup(_MARKDOWN.renderer.render(tokens, _MARKDOWN.options, {}))


def code_html(code: str, language: str = "") -> Markup:
    """Return a block of code, coloured if its language is known, with a label for screen readers."""
    code, name = printable(code), language_name(language)
    try:
        lexer = get_lexer_by_name(language, stripnl=False) if language and len(code) <= MAX_HIGHLIGHTED else None
    except ClassNotFound:
        lexer = None
    inner = Markup(highlight(code, lexer, HtmlFormatter(nowrap=True))) if lexer else escape(code)
    label = "Code" if name == "code" else f"{name} code"
    return Markup('<pre class="code" tabindex="0" role="group" aria-label="{}"><code>{}</code></pre>\n').format(
        printable(label), inner
    )
