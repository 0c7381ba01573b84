"""Test in a real browser that no part of a report is wider than the window; skipped where there is no Chromium."""

from __future__ import annotations

import re
import shutil
import subprocess
from html import escape
from pathlib import Path

import pytest

from metarepair.reports.headline import ADOPT, Number
from metarepair.reports.page import headline, html_page, html_table, paragraph

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
# The window of a browser without a screen is at least 500 pixels wide; a frame may be narrower.
FRAME = """<iframe width={width} height=900 frameborder=0 srcdoc="{page}"></iframe><script>onload = () => {{
const inner = document.querySelector("iframe").contentWindow, page = inner.document;
const out = [...page.querySelectorAll("body *")].filter(e => !e.closest(".wide"));
const wide = out.filter(e => e.getBoundingClientRect().right > inner.innerWidth + 1).map(e => e.tagName);
const boxes = [...page.querySelectorAll(".numbers div")].map(e => Math.round(e.getBoundingClientRect().top));
const scrolls = page.documentElement.scrollWidth > inner.innerWidth;
document.body.textContent =
  `WIDTH[${{inner.innerWidth}}] WIDE[${{wide}}] ROWS[${{new Set(boxes).size}}] SCROLL[${{scrolls}}]`;
}}</script>"""


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="needs Chromium or Chrome")
@pytest.mark.parametrize(("width", "rows"), [(400, 3), (900, 1), (1400, 1)])
def test_nothing_is_wider_than_the_window(width: int, rows: int, tmp_path: Path) -> None:
    number = Number(
        name="Environment, % right", value="78.2 → 82.1", interval="+3.9 points, 95% interval +2.0 to +5.8"
    )
    page = html_page(
        "Repair of photographs",
        headline(
            ADOPT, "adopt", ["Repaired, the model gets 82 of 100 images right.", "x" * 300], [number] * 3
        ),
        html_table([f"column {n}" for n in range(30)], [["a long cell"] * 30]),
        paragraph("word " * 200),
    )
    path = tmp_path / "page.html"
    path.write_text(FRAME.format(width=width, page=escape(page)), encoding="utf-8")
    assert BROWSER is not None
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command = [BROWSER, *options, "--window-size=1600,900", "--dump-dom", path.as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    assert re.findall(r"[A-Z]+\[.*?\]", shown) == [
        f"WIDTH[{width}]",
        "WIDE[]",
        f"ROWS[{rows}]",
        "SCROLL[false]",
    ]
