"""Check the counts in the table of DNNs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from torch import nn

from benchmarks import models_table
from metarepair.models.build import build_model
from tasks.corruptions import CORRUPTIONS
from tasks.datasets import DataSource, load_dataset
from tasks.environments import corrupted_images


def test_multiply_adds_of_convolutions_and_matrices_are_counted() -> None:
    module = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.Flatten())
    head = nn.Linear(8 * 6 * 6, 5)
    whole = nn.Sequential(module, head)
    expected = 8 * 8 * 8 * 27 + 6 * 6 * 8 * 9 + 8 * 6 * 6 * 5
    assert models_table.count_multiply_adds(whole, 16) == expected
    assert models_table.count_parameters(head) == 8 * 6 * 6 * 5 + 5


def test_a_dnn_of_the_table_has_the_published_size() -> None:
    assert models_table.count_parameters(build_model("densenet121", 1000)) == 7_978_856


def test_pooled_images_cycle_through_the_severities() -> None:
    data = load_dataset(DataSource(name="cifar10_sample"), "test")
    found = models_table.pooled(data, "contrast", 12)
    for row, severity in ((0, 1), (5, 1), (6, 2), (9, 5), (11, 2)):
        alone = corrupted_images(data, np.array([row]), corruption="contrast", severity=severity, seed=0)
        assert np.array_equal(found[row], alone[0])


@pytest.mark.slow
def test_the_table_has_a_row_for_each_dnn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models_table.main(["--smoke", "--json", str(tmp_path / "table.json")])
    rows = json.loads((tmp_path / "table.json").read_text(encoding="utf-8"))["rows"]
    assert [row["model"] for row in rows] == ["resnet8_cifar", "convnext_cifar", "densenet121"]
    assert all(row["images_per_s"] > 0 and row["clean"] > 0.7 for row in rows[:2])
    assert rows[2]["clean"] is None
    printed = capsys.readouterr().out
    assert all(f"| {corruption} |" in printed for corruption in CORRUPTIONS)
