"""Check that a failing test shows the output of the processes that it started."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parents[2]
FAILING = """\
import subprocess, sys

def test_fails():
    code = "import sys; print('said on output'); print('said on error', file=sys.stderr)"
    assert subprocess.Popen([sys.executable, "-c", code], start_new_session=True).wait() == 7
"""


def test_pytest_shows_the_output_of_a_process_that_inherits_its_streams(tmp_path: Path) -> None:
    (tmp_path / "test_failing.py").write_text(FAILING, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-c", "/dev/null", "test_failing.py"]
    done = subprocess.run(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    assert done.returncode == 1, done.stdout
    for words in ("said on output", "said on error"):
        assert re.search(rf"(?m)^{words}$", done.stdout), done.stdout


def test_no_test_discards_the_output_of_a_process() -> None:
    thrown = "DEV" + "NULL"
    assert [path for path in TESTS.rglob("*.py") if thrown in path.read_text(encoding="utf-8")] == []
