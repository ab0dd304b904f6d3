"""A Matplotlib figure as an SVG element of the page: coloured by the page's style sheet, heard by screen readers.

Matplotlib writes a document of its own, with style attributes, a style sheet and fixed colours. The page's policy
refuses the first two, and fixed colours know no dark mode.
"""

from __future__ import annotations

import io
import re
from xml.etree import ElementTree

import matplotlib
from markupsafe import Markup
from matplotlib.figure import Figure

from mlx_distill.sanitize import printable

UNITS_AN_INCH = 72
"""Of the view box, as Matplotlib writes it."""
COLOURS = {name: f"#0d0e{number:02x}" for number, name in enumerate(("ink", "soft", "line", "paper", "distilled"))}
"""A name in the page's style sheet (`.fill-ink`, `.stroke-ink`) to the colour that stands for it until then."""
_NAMES = {colour: name for name, colour in COLOURS.items()}
_KEPT = frozenset({"d", "x", "y", "width", "height", "transform", "clip-path", "points", "viewBox"})
_STYLES = frozenset(
    {"fill", "stroke", "stroke-width", "stroke-linecap", "stroke-linejoin", "text-anchor", "font-weight"}
)
"""What is taken over of the styles; the page has its own fonts."""


def as_element(figure: Figure, name: str, title: str, description: str) -> Markup:
    """The figure as an element whose ids begin with `plot-NAME`; the same figure gives the same text."""
    file = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "mlx-distill"}):
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    root = ElementTree.fromstring(file.getvalue())
    prefix = f"plot-{name}"
    for parent in list(root.iter()):
        for child in list(parent):
            if _tag(child) in ("metadata", "style"):
                parent.remove(child)
    referred = set(re.findall(r'"(?:url\()?#([^")]+)', ElementTree.tostring(root, encoding="unicode")))
    for element in root.iter():
        element.tag = _tag(element)
        element.attrib = _attributes(element.attrib, prefix, referred)
        element.tail = None
        element.text = printable(element.text) if element.text and element.text.strip() else None
    root.attrib = {"viewBox": root.attrib["viewBox"], "role": "img", "aria-labelledby": f"{prefix} {prefix}-says"}
    for position, (tag, id_, text) in enumerate((("title", prefix, title), ("desc", f"{prefix}-says", description))):
        said = ElementTree.Element(tag, {"id": id_})
        said.text = printable(text)
        root.insert(position, said)
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _tag(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2]


def _attributes(given: dict[str, str], prefix: str, referred: set[str]) -> dict[str, str]:
    """Geometry as it is, styles as attributes, our colours as classes, ids that are referred to with the prefix."""
    found: dict[str, str] = {}
    classes = []
    for name, value in given.items():
        plain = name.rpartition("}")[2]
        if plain == "style":
            for part in value.split(";"):
                style, _, setting = (piece.strip() for piece in part.partition(":"))
                if setting in _NAMES:
                    classes.append(f"{style}-{_NAMES[setting]}")
                elif style in _STYLES:
                    found[style] = setting
        elif plain == "id":
            found |= {"id": f"{prefix}-{value}"} if value in referred else {}
        elif plain == "href":
            found["href"] = value.replace("#", f"#{prefix}-", 1)
        elif plain in _KEPT:
            found[plain] = value.replace("url(#", f"url(#{prefix}-")
    if classes:
        found["class"] = " ".join(classes)
    return found
