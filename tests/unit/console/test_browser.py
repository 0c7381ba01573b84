"""Check that a report is opened in a browser, or that the user learns where it is."""

from __future__ import annotations

import webbrowser
from pathlib import Path

import pytest

from metarepair.cli import main
from metarepair.console.browser import open_page

SAMPLE = str(Path(__file__).parents[3] / "tune_configs" / "sample.yaml")


@pytest.mark.parametrize("opens", [True, False])
def test_a_page_is_opened_or_named(
    opens: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda address: asked.append(address) or opens)
    open_page(tmp_path / "a b.html")
    assert asked == [f"{tmp_path.as_uri()}/a%20b.html"]
    assert (str(tmp_path / "a b.html") in capsys.readouterr().out) is not opens


@pytest.mark.parametrize("where", [["--storage", "s3://bucket/runs"], ["--out", "gs://bucket/report"]])
def test_a_report_on_an_object_store_is_not_opened_and_not_made(
    where: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["report", "--config", SAMPLE, "--open", *where]) == 2
    assert "Leave --open out, or write the report into a local folder" in capsys.readouterr().err
    assert [*tmp_path.iterdir()] == []
