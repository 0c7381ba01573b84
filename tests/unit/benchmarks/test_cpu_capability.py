"""Test the tables of benchmarks/cpu_capability.py and that complete runs are not run again."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from benchmarks.cpu_capability import AS_IS, VARIABLE, differences, means, measure
from metarepair.runs.layout import Run
from tasks.storage.manifest import write_manifest

FOUND = {
    (name, seed): {"metarepair": {"d_fail": 0.5 + 0.01 * seed + change, "clean": 0.9}}
    for seed in (0, 1)
    for name, change in (("default", 0.02 * seed), (AS_IS, 0.0))
}


def test_means_and_differences_are_in_percent_over_seeds() -> None:
    *_, default, as_is = means(FOUND, ["default", AS_IS])
    assert [cell.strip() for cell in default.split("|")[1:5]] == ["MetaRepair", "default", "51.5 ± 2.1", "—"]
    assert "| 50.5 ± 0.7 |" in as_is
    *_, line = differences(FOUND, ["default", AS_IS])
    assert [cell.strip() for cell in line.split("|")[2:6]] == ["default", "+1.00 (2.00)", "—", "+0.00 (0.00)"]


def test_only_a_run_that_is_not_complete_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[tuple[list[str], dict[str, str]]] = []

    def run(command: list[str], *, env: dict[str, str], **_: Any) -> None:
        called.append((command, env))

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setenv(VARIABLE, "avx512")
    for name in ("avx2", AS_IS):
        measure(Run(tmp_path / f"{name}-0"), name, ["--config", "c.yaml"], ["seed=0"])
    assert [env.get(VARIABLE) for _, env in called] == ["avx2", None]
    assert called[0][0][-5:] == ["--set", "seed=0", "--set", "name=avx2-0", "--quiet"]
    folder = tmp_path / "avx2-0" / "repaired" / "fog"
    folder.mkdir(parents=True)
    write_manifest(folder, stage="repair fog", config={}, inputs={}, files=[])
    measure(Run(tmp_path / "avx2-0"), "avx2", [], [])
    assert len(called) == 2
