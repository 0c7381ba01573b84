"""A whole run on Ray with several targets runs independent stages concurrently, with equal results."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from distributed.stages.executor import executor_for
from equal_runs import without_measured
from metarepair.config.run import Config
from metarepair.runs.layout import Run
from metarepair.stages.pipeline import Pipeline

pytestmark = [pytest.mark.distributed, pytest.mark.soak]
TARGETS = ("gaussian_noise", "fog")


def test_targets_trained_concurrently_give_the_same_results_as_in_sequence(
    cluster: None, tiny: Callable[..., Config], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    changes = {
        "targets": list(TARGETS),
        "train": {"episodes": 6, "round_episodes": 2},
        "repair": {"methods": ["none", "metarepair"]},
        "evaluate": {"others": []},
    }
    found = []
    for workers in (0, 1):
        caplog.clear()
        pipeline = Pipeline(tiny(tmp_path / str(workers), workers=workers, **changes), executor_for)
        pipeline.whole()
        found.append(results(pipeline.run))
        lines = caplog.messages
        assert all(any(f"{target}: repaired by metarepair" in line for line in lines) for target in TARGETS)
    assert found[0] == found[1]
    began, ended = zip(*(lifetime(pipeline.run.meta(target)) for target in TARGETS), strict=True)
    assert max(began) < min(ended)  # the two trainings overlapped


def results(run: Run) -> dict[str, object]:
    """Return the results of each target's methods, and the exact values of θ_meta."""
    found: dict[str, object] = {}
    for target in TARGETS:
        rows = json.loads((run.repaired(target) / "result.json").read_text())["methods"]
        found[target] = without_measured(rows)
        theta = load_file(run.meta(target) / "start.safetensors")
        found[f"θ {target}"] = {k: v.tolist() for k, v in theta.items()}
    return found


def lifetime(folder: Path) -> tuple[int, int]:
    """Return when the training in `folder` started and ended, in nanoseconds."""
    return (folder / "begun.json").stat().st_mtime_ns, (folder / "manifest.json").stat().st_mtime_ns
