"""Check that tests are distributed over processes as tests/support/scheduling.py defines."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from scheduling import ON_RAY, scope_of

ROOT = Path(__file__).parents[3]


def test_a_file_on_ray_stays_together_and_other_tests_go_one_by_one() -> None:
    jobs = [f"{ON_RAY}test_jobs.py::test_{name}" for name in ("one", "two[a::b]")]
    assert {scope_of(nodeid) for nodeid in jobs} == {f"{ON_RAY}test_jobs.py"}
    units = ["tests/unit/a/test_b.py::test_one", "tests/unit/a/test_b.py::test_two"]
    assert [scope_of(nodeid) for nodeid in units] == units


def test_pytest_uses_the_scheduling() -> None:
    """Run pytest in a separate process on this file alone: xdist prints the scheduling that it uses."""
    command = [sys.executable, "-m", "pytest", str(Path(__file__)), "-k", "one_by_one", "-v"]
    done = subprocess.run(
        [*command, "-n", "2", "--dist", "loadgroup", "-p", "no:cacheprovider"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "scheduling tests via RayFilesFirst" in done.stdout, done.stdout + done.stderr
    assert done.returncode == 0
