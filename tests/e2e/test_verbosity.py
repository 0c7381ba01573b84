"""`--quiet` and `--verbose`: both print results and warnings; they differ in what else is printed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from metarepair.cli import main


def run(folder: Path, *options: str) -> int:
    return main(["run", "--config", str(folder / "tiny.yaml"), "--storage", str(folder / "runs"), *options])


def test_a_quiet_run_prints_only_its_table_and_output_paths(
    tiny_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tiny_run) == 0
    usual = capsys.readouterr().out
    assert run(tiny_run, "--quiet") == 0
    quiet = capsys.readouterr()
    assert "already complete" in usual
    assert "already complete" not in quiet.out
    assert quiet.err == ""
    assert set(quiet.out.splitlines()) < set(usual.splitlines())
    assert "Report: " in quiet.out
    assert f"Written to {tiny_run / 'runs' / 'tiny'}" in quiet.out


def test_a_quiet_run_still_warns_of_damage(tiny_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damaged = tiny_run / "runs" / "tiny" / "score" / "heatmap.png"
    damaged.write_bytes(b"\0" * damaged.stat().st_size)
    assert run(tiny_run, "--quiet") == 0
    assert f"{damaged} is damaged" in capsys.readouterr().out


def test_a_verbose_run_logs_times_loggers_and_the_start_of_stages(
    tiny_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tiny_run, "--verbose") == 0
    text = capsys.readouterr().out
    assert re.search(
        r"^[-\d]{10} [:,\d]{12} INFO metarepair\.runs\.run_stage: score: already complete", text, re.MULTILINE
    )
    (tiny_run / "runs" / "tiny" / "score" / "manifest.json").unlink()
    assert run(tiny_run, "--verbose") == 0
    assert "DEBUG metarepair.runs.run_stage: score: starts" in capsys.readouterr().out


def test_quiet_and_verbose_together_are_refused(tiny_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        run(tiny_run, "--quiet", "--verbose")
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("metarepair: argument --verbose: not allowed with argument --quiet.")
    assert "--help" in line


def test_a_wrong_verb_is_one_line_with_the_right_ones(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["runn"])
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "invalid choice: 'runn'" in line
    assert "'pretrain'" in line
