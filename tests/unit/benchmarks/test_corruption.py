"""Run the corruption benchmarks and check the figures that they report."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import corruption_agreement, corruptions
from tasks.corruptions import CORRUPTIONS, corrupt

ROOT = Path(__file__).parents[3]


def test_the_benchmark_times_every_corruption_and_reports_its_figures(tmp_path, capsys):
    out = tmp_path / "figures.json"
    cores = _cores()
    corruptions.main(["--smoke", "--json", str(out), "--without", "imagecorruptions"])
    figures = json.loads(out.read_text(encoding="utf-8"))
    assert figures["smoke"]
    for key in ("images_per_s", "reference_images_per_s", "ratio"):
        assert set(figures[key]) == set(CORRUPTIONS)
    ratios = np.array(list(figures["ratio"].values()))
    assert figures["geomean_ratio"] == pytest.approx(np.exp(np.log(ratios).mean()))
    assert figures["min_ratio"] == ratios.min()
    printed = capsys.readouterr().out
    assert "Left out by --without: imagecorruptions." in printed
    assert figures["machine"]["without"] == "imagecorruptions"
    assert all(f"\n{name} " in printed for name in CORRUPTIONS)
    assert _cores() == cores, "the benchmark keeps to one core, and gives the others back"


def _cores() -> set[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="looks at Linux' /proc")
def test_peak_memory_includes_memory_that_was_freed_again():
    work = """
import time
from benchmarks.measure import peak_resident_bytes

def hold_and_drop():
    held = bytearray(b"x") * 2**26
    time.sleep(0.1)  # the watcher looks every 2 ms, whenever this thread lets it
    del held

print(peak_resident_bytes(hold_and_drop))
"""
    # A separate process, so that no memory left by other tests is freed during the measurement.
    said = subprocess.run(
        [sys.executable, "-c", work], stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT
    )
    assert int(said.stdout) > 2**25


def test_a_corruption_agrees_with_itself_and_not_with_another_severity():
    class Peer:
        def __init__(self, shift):
            self.shift = shift

        def corrupt(self, image, *, severity, corruption_name):
            return corrupt(
                image[None],
                image_ids_B=[0],
                corruption=corruption_name,
                severity=min(severity + self.shift, 5),
                seed=0,
                table="imagenet",
            )[0]

    images = corruption_agreement.photographs(1)
    same = corruption_agreement.compared("contrast", Peer(0), images)
    assert same.pop("mean difference") == 0
    assert all(ratio == pytest.approx(1) for ratio in same.values())
    other = corruption_agreement.compared("contrast", Peer(1), images)
    assert other["size"] < 0.95


def test_a_peer_that_fails_is_reported_with_its_error():
    class Broken:
        def corrupt(self, image, *, severity, corruption_name):
            raise TypeError(f"no {corruption_name} {severity} of {image.ndim} axes")

    found = corruption_agreement.compared("fog", Broken(), corruption_agreement.photographs(1))
    assert found == {"fails": "TypeError: no fog 1 of 3 axes"}
    assert "imagecorruptions" not in sys.modules
