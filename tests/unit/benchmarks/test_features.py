"""Run the features benchmark, which has a process for each network, and check its figures."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from benchmarks import features
from tasks.distances.frechet import frechet_distance, moments


@pytest.mark.soak
def test_the_benchmark_reports_its_figures_and_both_networks_agree(tmp_path, capsys):
    out = tmp_path / "figures.json"
    features.main(["--smoke", "--json", str(out)])
    figures = json.loads(out.read_text(encoding="utf-8"))
    assert figures["smoke"]
    assert {"ours", "torchmetrics", "deployed"} <= set(figures["images_per_s"])
    assert figures["ratio_torchmetrics"] > 0
    assert figures["fid"] > 1  # calibrated features distinguish foggy images from clean ones
    assert figures["fid_rel_diff"] < 1e-3
    assert figures["machine"]["versions"]["torch-fidelity"] != "not installed"
    assert "\nratio_torchmetrics " in capsys.readouterr().out


def test_torchmetrics_gives_our_distance_for_given_features(monkeypatch):
    monkeypatch.setattr(features.Given, "num_features", 12)
    generator = np.random.default_rng(0)
    x, y = (generator.normal(shift, 1, (40, 12)).astype(np.float32) for shift in (0, 0.5))
    assert features.torchmetrics_fid(x, y) == pytest.approx(
        frechet_distance(moments(x), moments(y)), rel=1e-5
    )


def test_even_rounds_are_clean_and_odd_ones_foggy():
    size = features.sizes(quick=True, smoke=True)
    clean, foggy, later = (features.images_of(number, size) for number in range(3))
    assert clean.shape == foggy.shape == (size.batch, 32, 32, 3)
    assert not np.array_equal(clean, later)
    assert foggy.std(axis=(1, 2)).mean() < 0.8 * clean.std(axis=(1, 2)).mean()


@pytest.mark.slow
def test_a_network_that_fails_in_its_process_ends_the_benchmark(tmp_path):
    ways = features.processes(["ours"], tmp_path / "missing.pth", torch.device("cpu"))
    with pytest.raises((EOFError, OSError)), ways as found:
        found["ours"](np.zeros((1, 8, 8, 3), np.uint8))
