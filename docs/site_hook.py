"""Bring the pages that lie outside docs/ into the site, and lead links to files of the repository to them.

mkdocs calls these functions. A link to a file that the site does not show (a YAML file, a module) becomes plain text.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
# Where a page of the repository is shown in the site.
OUTSIDE = {
    "README.md": "project.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "benchmarks/README.md": "benchmarks.md",
    "cluster/README.md": "cluster.md",
}
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)#\s]+)(#[^)]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    for source, shown in OUTSIDE.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, shown, content=_relinked(text, source, shown)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    shown = page.file.src_uri
    return markdown if shown in OUTSIDE.values() else _relinked(markdown, f"docs/{shown}", shown)


def _relinked(text: str, source: str, shown: str) -> str:
    """The text of the page `source` with its links as they are from `shown` in the site."""

    def link(found: re.Match[str]) -> str:
        words, target, anchor = found[1], found[2], found[3] or ""
        if "://" in target or target.startswith("mailto:"):
            return found[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        if not (ROOT / path).exists():
            return found[0]  # mkdocs warns of it
        in_site = OUTSIDE.get(path, path.removeprefix("docs/") if path.startswith("docs/") else None)
        if in_site is None:
            return words
        return f"[{words}]({posixpath.relpath(in_site, posixpath.dirname(shown) or '.')}{anchor})"

    return LINK.sub(link, text)
