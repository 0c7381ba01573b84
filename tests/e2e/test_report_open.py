"""Check that `report --open` opens the page that it has made."""

from __future__ import annotations

import webbrowser
from pathlib import Path

import pytest

from metarepair.cli import main


@pytest.mark.parametrize("elsewhere", [False, True])
def test_the_report_that_was_made_is_opened(
    elsewhere: bool, tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda address: opened.append(address) or True)
    given = ["--config", str(tiny_run / "tiny.yaml"), "--storage", str(tiny_run / "runs")]
    out = tmp_path / "out" if elsewhere else tiny_run / "runs" / "tiny" / "report"
    assert main(["report", *given, "--open", *(["--out", str(out)] if elsewhere else [])]) == 0
    assert opened == [(out / "index.html").as_uri()]
    assert (out / "index.html").is_file()
