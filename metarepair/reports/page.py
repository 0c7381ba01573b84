"""Build tables, lists and pictures of an HTML page that opens offline; all given text is escaped."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Iterable, Sequence

from metarepair.reports import figures
from tasks.storage.paths import Place

STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; --strong: #0072b2; }
@media (prefers-color-scheme: dark) { :root { --strong: #56b4e9; } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 68rem; margin: 2rem auto; padding: 0 1rem; }
h2 { border-top: 3px solid var(--strong); padding-top: .6rem; margin-top: 3rem; }
.verdict { background: var(--soft); border-left: 5px solid var(--strong); padding: .7rem 1rem .7rem 2.2rem; }
.verdict li:first-child { font-weight: 600; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; margin: .8rem 0; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
figure { margin: 1.2rem 0; } figcaption, .small { font-size: .85rem; opacity: .85; }
img { max-width: 100%; background: white; border-radius: 4px; }
pre { background: var(--soft); padding: .8rem; overflow-x: auto; font-size: .8rem; }
summary { cursor: pointer; } a { color: var(--strong); }
@media print { body { max-width: none; font-size: 11pt; } figure, tr, .verdict { break-inside: avoid; }
  .wide { overflow: visible; } td, th { padding: .15rem .3rem; font-size: .72rem; white-space: normal; }
  pre { white-space: pre-wrap; } }
"""


def html_page(title: str, body: str) -> str:
    """Return a whole page. `body` is HTML, and is not escaped."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escaped(title)}</title><style>{STYLE}</style></head><body>\n"
        f"<h1>{escaped(title)}</h1>\n{body}\n</body></html>\n"
    )


def escaped(content: object) -> str:
    """Return the content as text, with HTML characters escaped."""
    return html.escape(str(content))


def file_name(name: str) -> str:
    """Return the name of a target as part of a file's name."""
    return re.sub(r"[^A-Za-z0-9.-]", "_", name)


def bullets(lines: Iterable[object], kind: str = "") -> str:
    """Return an HTML list; `kind` is its CSS class."""
    return f'<ul class="{kind}">' + "".join(f"<li>{escaped(line)}</li>" for line in lines) + "</ul>\n"


def html_table(header: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """Return an HTML table with a header row."""
    head = "".join(f'<th scope="col">{escaped(cell)}</th>' for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{escaped(cell)}</td>" for cell in row) + "</tr>\n" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table></div>\n'


def picture(folder: Place, name: str, content: bytes, caption: str) -> str:
    """Save the picture, PNG or SVG by its name, in `folder`, and return an HTML figure with the picture embedded."""
    figures.save(folder / name, content)
    kind = "svg+xml" if name.endswith(".svg") else "png"
    data = base64.b64encode(content).decode()
    return (
        f'<figure><img src="data:image/{kind};base64,{data}" alt="{escaped(caption)}">'
        f"<figcaption>{escaped(caption)} ({escaped(name)})</figcaption></figure>\n"
    )
