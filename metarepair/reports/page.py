"""Build an HTML page that opens offline from its parts, by Jinja2 templates that escape all text.

A part is Markup. Text that is not Markup is escaped wherever it is put.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from metarepair.reports import figures
from tasks.storage.paths import Place

_TEMPLATES = Environment(
    loader=PackageLoader("metarepair.reports"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_PARTS: Any = _TEMPLATES.get_template("parts.html").module


def html_page(title: str, *parts: Markup) -> str:
    """Return a whole page."""
    return _TEMPLATES.get_template("page.html").render(title=title, body=joined(parts))


def joined(parts: Iterable[Markup]) -> Markup:
    """Return the parts one after another."""
    return Markup("").join(parts)


def section(name: str, title: str, parts: Iterable[Markup]) -> Markup:
    """Return a section with a heading; `name` is its address on the page."""
    return Markup(_PARTS.section(name, title, joined(parts)))


def heading(text: str, level: int = 3) -> Markup:
    """Return a heading, h2 to h6 by `level`."""
    return Markup("<h{0}>{1}</h{0}>\n").format(level, text)


def paragraph(text: object) -> Markup:
    """Return a paragraph."""
    return Markup("<p>{}</p>\n").format(text)


def block(text: str) -> Markup:
    """Return text whose lines and spaces stay as they are."""
    return Markup("<pre>{}</pre>\n").format(text)


def bullets(lines: Iterable[object], kind: str = "") -> Markup:
    """Return a list; `kind` is its CSS class."""
    return Markup(_PARTS.bullets(list(lines), kind))


def links(found: Iterable[tuple[str, str, str]]) -> Markup:
    """Return a list of links to sections: the section's name, what to call it, and a text."""
    return Markup(_PARTS.links(list(found)))


def html_table(header: Sequence[object], rows: Iterable[Sequence[object]]) -> Markup:
    """Return a table with a header row."""
    return Markup(_PARTS.table(header, list(rows)))


def details(summary: str, parts: Iterable[Markup]) -> Markup:
    """Return parts that are hidden until a reader opens them by their summary."""
    return Markup(_PARTS.details(summary, joined(parts)))


def headline(decision: str, kind: str, sentences: Sequence[str], numbers: Sequence[Any]) -> Markup:
    """Return the first screen: a decision, why, and numbers (`metarepair.reports.headline`)."""
    return Markup(_PARTS.headline(decision, kind, sentences, numbers))


def picture(folder: Place, name: str, content: bytes, caption: str) -> Markup:
    """Save the picture, PNG or SVG by its name, in `folder`, and return a figure with the picture embedded."""
    figures.save(folder / name, content)
    if name.endswith(".svg"):
        return Markup(_PARTS.figure(_inline(content, caption), caption, name))
    source = f"data:image/png;base64,{base64.b64encode(content).decode()}"
    image = Markup('<img src="{}" alt="{}">').format(source, caption)
    return Markup(_PARTS.figure(image, caption, name))


def _inline(svg: bytes, caption: str) -> Markup:
    """An SVG element of matplotlib, which escapes its text, without what only a file of its own needs."""
    text = re.sub(r"<metadata>.*?</metadata>", "", svg.decode(), flags=re.DOTALL)
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text)
    return Markup('<svg role="img" aria-label="{}"').format(caption) + Markup(text.removeprefix("<svg"))


def file_name(name: str) -> str:
    """Return the name of a target as part of a file's name."""
    return re.sub(r"[^A-Za-z0-9.-]", "_", name)
