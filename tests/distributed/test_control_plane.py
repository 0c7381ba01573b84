"""The control-plane benchmark works on its own small cluster, whose nodes have one CPU each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.distributed


@pytest.mark.soak
def test_mining_and_features_are_spread_over_many_nodes_and_counted(tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    command = [sys.executable, "-m", "benchmarks.control_plane", "--smoke", "--stages", "mine", "pairs"]
    # A separate process, because this one may be connected to the session's cluster.
    done = subprocess.run(
        [*command, "--json", str(out)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=600,
    )
    assert done.returncode == 0
    figures = json.loads(out.read_text(encoding="utf-8"))
    assert figures["nodes"] == 3
    assert set(figures["seconds"]) == {
        "mine 20",
        "mine 40",
        "features 20",
        "features 40",
        "pairs 21",
        "pairs 45",
    }
    assert all(seconds > 0 for seconds in figures["seconds"].values())
    assert set(figures["exponent_driver"]) == {"mine", "features", "pairs"}
