"""Run the models benchmark, and check that its two ways compute the same and that it reports its figures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import models
from metarepair.models.build import DeployedModel


@pytest.mark.slow
def test_the_benchmark_reports_its_figures_and_both_ways_agree(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "figures.json"
    models.main(["--smoke", "--json", str(out)])
    figures = json.loads(out.read_text(encoding="utf-8"))
    assert figures["smoke"]
    rows = {*models.FAMILIES, *(f"{name} cifar" for name in models.FAMILIES)}
    assert all(set(figures[key]) == rows for key in models.MEANING)
    assert all(value > 0 for value in figures["images_per_s"].values())
    assert all(value < 1e-4 for value in figures["logits_rel_diff"].values())
    assert "\noverhead " in capsys.readouterr().out


def test_the_plain_normalisation_equals_ours() -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    module = torch.nn.Linear(1, 1)
    ours = DeployedModel(name="a", module=module, num_classes=1, mean=models.MEAN, std=models.STD)
    plain = models.plainly(images, torch.device("cpu"))
    torch.testing.assert_close(plain, ours.normalise(images), rtol=1e-5, atol=1e-5)
    assert plain.std() > 0.5


def test_quick_repeats_less_and_measures_the_same() -> None:
    quick, whole = (models.sizes(quick=quick, smoke=False) for quick in (True, False))
    assert quick.batch == whole.batch
    assert quick.rounds < whole.rounds
