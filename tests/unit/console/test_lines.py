"""Check the log lines of the command line: their stream, their amount, and redrawn progress on a terminal."""

from __future__ import annotations

import io
import logging
import re

import pytest

from metarepair.console.lines import Verbosity, printed
from metarepair.runs import progress
from metarepair.runs.logs import RESULTS
from metarepair.runs.progress import Progress

logger = logging.getLogger("tasks.somewhere")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def on_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Replace both streams by one terminal. (A fixture's replacement would be undone before the test starts.)"""
    monkeypatch.setattr(progress, "REDRAWN_S", 0.0)
    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    monkeypatch.setattr("sys.stderr", terminal)
    return terminal


def log_all_levels() -> None:
    logger.debug("a detail")
    logger.info("a line")
    logger.log(RESULTS, "a result")
    logger.warning("a warning")
    Progress("mine", 1, "shards").advance()


@pytest.mark.parametrize(
    ("verbosity", "out", "err"),
    [
        ("quiet", ["a result", "a warning"], 0),
        ("usual", ["a line", "a result", "a warning"], 1),
        ("verbose", ["a detail", "a line", "a result", "a warning"], 1),
    ],
)
def test_lines_go_to_stdout_and_progress_to_stderr_at_each_verbosity(
    verbosity: Verbosity, out: list[str], err: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with printed(verbosity):
        log_all_levels()
    shown = capsys.readouterr()
    assert [line.rpartition(": ")[2] for line in shown.out.splitlines()] == out
    assert shown.err.count("mine: 1 of 1 shards") == len(shown.err.splitlines()) == err
    detailed = re.compile(r"[-\d]{10} [:,\d]{12} (DEBUG|INFO|WARNING) tasks\.somewhere: ")
    assert len(detailed.findall(shown.out)) == (3 if verbosity == "verbose" else 0)


def test_nothing_is_printed_after_the_block_and_levels_are_restored(
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = ("tasks", "metarepair", "distributed", progress.logger.name)
    before = [logging.getLogger(name).level for name in names]
    with printed("verbose"):
        pass
    log_all_levels()
    assert capsys.readouterr().out == ""
    assert [logging.getLogger(name).level for name in names] == before


def test_a_file_does_not_get_the_progress_lines_that_a_terminal_redraws(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "REDRAWN_S", 0.0)
    with printed("verbose"):
        shown = Progress("mine", 3, "shards")
        for _ in range(3):
            shown.advance()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("mine: 3 of 3 shards")


def test_a_terminal_has_one_line_redrawn_until_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_terminal(monkeypatch)
    with printed():
        shown = Progress("train", 4, "episodes")
        for _ in range(4):
            shown.advance()
    assert terminal.getvalue().count("\r") == 4
    assert terminal.getvalue().count("\n") == 1
    assert terminal.getvalue().endswith("took 0 s\n")


def test_a_quiet_terminal_draws_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_terminal(monkeypatch)
    with printed("quiet"):
        Progress("train", 2, "episodes").advance()
    assert terminal.getvalue() == ""


def test_concurrent_steps_have_a_progress_line_each_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_terminal(monkeypatch)
    with printed():
        first, second = (Progress(name, 2, "episodes") for name in ("train fog", "train snow"))
        for shown in (first, second, first, second):
            shown.advance()
    assert [line.partition(",")[0] for line in screen(terminal.getvalue())] == [
        "train fog: 2 of 2 episodes",
        "train snow: 2 of 2 episodes",
    ]


def test_log_lines_stand_above_the_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_terminal(monkeypatch)
    with printed():
        Progress("train", 2, "episodes").advance()
        progress.log_step(logging.INFO, "a table\nof two lines", "search", over=False)
        logger.info("a line")
        progress.log_step(logging.INFO, "a table\nof three\nlines", "search", over=True)
        logger.info("another")
    lines = screen(terminal.getvalue())
    assert lines[:-1] == ["a line", "a table", "of three", "lines", "another"]
    assert lines[-1].startswith("train: 1 of 2 episodes")


def screen(written: str) -> list[str]:
    """The lines that a terminal shows after everything in `written`."""
    lines, row = [""], 0
    for piece in re.split(r"(\r|\n|\x1b\[\d+A|\x1b\[J)", written):
        if piece == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif piece == "\x1b[J":
            lines = [*lines[:row], ""]
        elif piece.endswith("A") and piece.startswith("\x1b["):
            row -= int(piece[2:-1])
        elif piece != "\r":
            lines[row] += piece
    return [line for line in lines if line]
