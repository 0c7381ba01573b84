"""Run the store benchmark, and check its figures and the size of its tasks."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import store
from tasks.experiences.failure_file import read_failures
from tasks.records import Experience


def test_the_benchmark_reports_its_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "figures.json"
    monkeypatch.setattr(sys, "argv", ["store", "--smoke", "--folder", str(tmp_path), "--json", str(out)])
    store.main()
    figures = json.loads(out.read_text(encoding="utf-8"))
    assert figures["smoke"]
    assert all(figures[key] > 0 for key in store.MEANING if key != "memory_mib")
    assert list(tmp_path.iterdir()) == [out]
    assert "\ntasks_per_s_cold " in capsys.readouterr().out


def test_a_task_has_the_stated_size(tmp_path: Path) -> None:
    store.write_store(tmp_path / "a.arrow", 500, seed=0)
    failures = read_failures(tmp_path / "a.arrow")
    assert len(np.unique(failures.labels_N)) == store.CLASSES
    drawn = store.draw(Experience(corruption="x", collect=failures, fail=failures), 3, episode=0)
    assert drawn == 3 * 200 * 32 * 32 * 3
