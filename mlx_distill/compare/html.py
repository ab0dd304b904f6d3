"""The report as one page that works offline: `report.html`, from the templates beside this module.

What a model or a file said is hostile until escaped. Jinja2 escapes every value; each passes `printable` first, which
takes control characters and marks that reorder text; Markdown in answers is drawn without HTML, links and images; and
the page's content policy allows one style sheet, by its hash, and nothing else: no script, no request.
"""

from __future__ import annotations

import base64
import hashlib
import json
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

from mlx_distill.code_blocks import code_blocks
from mlx_distill.compare import answer_wording, plots, subject_wording, wording
from mlx_distill.compare.code import HABITS, VOICES
from mlx_distill.compare.report import Report
from mlx_distill.sanitize import printable

LONG_ANSWER = 5_000
"""Characters beyond which an answer scrolls in a frame of its own."""
MOST_HIGHLIGHTED = 20_000
"""Characters of a block beyond which it is shown without colours."""


def page(report: Report) -> str:
    """The whole page."""
    environment = Environment(
        loader=PackageLoader("mlx_distill.compare"),
        autoescape=True,
        finalize=_harmless,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "answer": answer_html,
        "code": code_html,
        "count": wording.count,
        "json": lambda value: json.dumps(value, indent=2, ensure_ascii=False),
        "typeset": typeset,
    }
    source, _, _ = PackageLoader("mlx_distill.compare").get_source(environment, "report.css")
    digest = base64.b64encode(hashlib.sha256(source.encode("utf-8")).digest()).decode("ascii")
    return environment.get_template("report.html").render(
        report=report,
        style=Markup(source),  # ours, and hashed as it stands
        style_hash=digest,
        about=subject_wording,
        words=wording,
        answer_words=answer_wording,
        habits=HABITS,
        voices=VOICES,
        courses=[
            (side, plots.training_curves(side.course.moments, key)) for key, side in report.sides.items() if side.course
        ],
        intervals=plots.loss_intervals(report.test, report.names),
        long_answer=LONG_ANSWER,
    )


def typeset(text: str) -> str:
    """A real minus sign before numbers, and no line end between a number and its percent sign."""
    return re.sub(r"(?<![\w-])-(?=\d)", "\u2212", text).replace(" %", "\u00a0%")


def _harmless(value: Any) -> Any:
    """Before escaping: text loses what a page would obey. Markup is ours, made of text that has been through here."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


class _Renderer(RendererHTML):
    """Markdown's elements as they fit into this page: no headings beside its own, code that scrolls and is coloured."""

    def heading_open(self, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
        return '<p class="said-heading">'

    def heading_close(self, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
        return "</p>\n"

    def fence(self, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
        language = next((block.language for block in code_blocks(f"```{tokens[index].info}\n```")), "")
        return code_html(tokens[index].content, language)

    def code_block(self, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
        return code_html(tokens[index].content)


_MARKDOWN = MarkdownIt("commonmark", {"html": False}, renderer_cls=_Renderer).enable("table")
# Entities would bring back what `printable` took; a reference would be hidden text.
_MARKDOWN.disable(["html_block", "html_inline", "link", "image", "autolink", "reference", "entity"])


def answer_html(text: str) -> Markup:
    """An answer's Markdown as elements that can do nothing but be read."""
    text = printable(text)
    tokens = _MARKDOWN.parse(text)
    if max((token.level for token in tokens), default=0) >= _MARKDOWN.options["maxNesting"] - 1:
        return code_html(text)  # what lies deeper is left out by the parser, and an answer is shown whole
    return Markup(_MARKDOWN.renderer.render(tokens, _MARKDOWN.options, {}))


def code_html(code: str, language: str = "") -> Markup:
    """A block of code, coloured where its language is known; named for those who hear the page."""
    code = printable(code)
    name = wording.language_name(language)
    try:
        lexer = get_lexer_by_name(language, stripnl=False) if language and len(code) <= MOST_HIGHLIGHTED else None
    except ClassNotFound:
        lexer = None
    inner = Markup(highlight(code, lexer, HtmlFormatter(nowrap=True))) if lexer else escape(code)
    label = "Code" if name == "code" else f"{name} code"
    return Markup('<pre class="code" tabindex="0" role="group" aria-label="{}"><code>{}</code></pre>\n').format(
        printable(label), inner
    )
