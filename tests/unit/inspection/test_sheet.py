"""Test that the contact sheet of an inspection shows the collected pixels, each in its place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from metarepair.inspection.command import show_inspection as show
from metarepair.inspection.inspect import inspect
from metarepair.inspection.sheet import evenly_spaced, write_sheet
from metarepair.reports.contact_sheet import GAP, TILE
from metarepair.reports.image_rows import CAPTION, COLUMNS, LABEL_WIDTH
from small import failures_of
from tasks.datasets import load_dataset
from tasks.environments import corrupted
from tasks.errors import ConfigError, DataError
from tasks.experiences.failure_file import read_failures, write_failures
from tasks.experiences.mining import mine
from tasks.records import Failures
from tasks.storage.manifest import write_manifest
from tasks.storage.paths import Place

CONFIG = {"seed": 3, "data": {"name": "cifar10_sample", "corruption_table": None}}


def failures(corruption: str) -> Failures:
    generator = np.random.default_rng(0)
    return failures_of(
        corruption=corruption,
        severities_N=np.repeat([1, 5], [7, 19]),
        labels_N=generator.integers(0, 10, 26),
        predicted_N=generator.integers(0, 10, 26),
        images_NHWC=generator.integers(0, 256, (26, 8, 8, 3), dtype=np.uint8),
    )


def finish(folder: Place, collect: Failures, inputs: Sequence[str] = ()) -> None:
    """Write an environment whose D_fail cannot be read."""
    role = folder.parent.name.removesuffix("s")
    write_failures(folder / "collect.arrow", collect)
    (folder / "fail.arrow").write_bytes(b"closed")
    write_manifest(
        folder,
        stage=f"mine {role} {folder.name}",
        config=CONFIG,
        inputs=dict.fromkeys(inputs, "abc"),
        files=["collect.arrow", "fail.arrow"],
        rows={"collect": len(collect), "fail": 1, "unused": 0},
    )


@pytest.fixture
def run(root: Place) -> Place:
    """A run with an experience and a target."""
    finish(root / "sample" / "experiences" / "fog", failures("fog"))
    finish(root / "sample" / "targets" / "snow", failures("snow"))
    return root / "sample"


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A run with an experience, in a local folder."""
    finish(tmp_path / "sample" / "experiences" / "fog", failures("fog"))
    return tmp_path / "sample"


def tile(sheet: np.ndarray, row: int, column: int, size: int) -> np.ndarray:
    top, left = GAP + row * (TILE + CAPTION + GAP), LABEL_WIDTH + column * (TILE + GAP)
    return sheet[top : top + TILE : TILE // size, left : left + TILE : TILE // size]


def test_the_sheet_of_an_environment_has_a_row_for_each_severity(here: Path, tmp_path: Path) -> None:
    folder = here / "experiences" / "fog"
    show(str(folder), sheet=tmp_path / "sheet.png", as_json=False)
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    collect = read_failures(folder / "collect.arrow")
    for line, severity in enumerate((1, 5)):
        rows = evenly_spaced(np.flatnonzero(collect.severities_N == severity))
        for column, row in enumerate(rows):
            assert np.array_equal(tile(sheet, line, column, 8), collect.images_NHWC[row])
    assert len(sheet) == GAP + 2 * (TILE + CAPTION + GAP)


def test_the_sheet_of_a_run_has_a_row_for_each_environment(run: Place, tmp_path: Path) -> None:
    (run / "targets" / "snow" / "collect.arrow").write_bytes(b"damaged")
    with pytest.raises(DataError, match="snow/collect"):
        show(str(run), sheet=tmp_path / "sheet.png", as_json=False)
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    collect = read_failures(run / "experiences" / "fog" / "collect.arrow")
    rows = evenly_spaced(np.arange(len(collect)))
    assert len(rows) == COLUMNS
    for column, row in enumerate(rows):
        assert np.array_equal(tile(sheet, 0, column, 8), collect.images_NHWC[row])
    damaged = sheet[GAP + TILE + CAPTION + GAP :]
    assert (damaged[:, LABEL_WIDTH:] == 255).all()
    assert (damaged[:, :LABEL_WIDTH] != 255).any()


def test_pixels_that_are_not_stored_are_recomputed_for_the_sheet(tmp_path: Path) -> None:
    data = load_dataset("cifar10_sample", "test")
    found = mine(
        lambda images: np.full(len(images), 1),
        corrupted(data, "fog", severities=(1, 5), seed=3),
        np.arange(40),
        seed=3,
        batch_size=20,
        keep="recomputed",
    )
    folder = tmp_path / "sample" / "targets" / "fog"
    finish(folder, found.failures)
    show(str(folder), sheet=tmp_path / "sheet.png", as_json=False)
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    collect = read_failures(folder / "collect.arrow")
    pixels: Any = collect.images_NHWC
    whole = replace(collect, images_NHWC=pixels.read_from(corrupted(data, "fog", severities=(1, 5), seed=3)))
    rows = evenly_spaced(np.flatnonzero(collect.severities_N == 5))
    assert np.array_equal(tile(sheet, 1, 2, 32), whole.images_NHWC[rows[2]])
    facts: Any = inspect(str(folder)).stages[0].details
    assert facts.pixels == "recomputed"
    with pytest.raises(DataError, match=r"stores no pixels.*Inspect the folder"):
        write_sheet(inspect(str(folder / "collect.arrow")), tmp_path / "sheet.png")
    finish(folder, found.failures, inputs=["archive"])
    with pytest.raises(DataError, match="published archive"):
        write_sheet(inspect(str(folder)), tmp_path / "sheet.png")


def test_a_sheet_that_cannot_be_made_is_refused(here: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\.png"):
        show(str(here / "nowhere"), sheet=tmp_path / "sheet.gif", as_json=False)
    (here / "score").mkdir()
    (here / "score" / "heatmap.png").write_bytes(b"a")
    write_manifest(here / "score", stage="score", config={}, inputs={}, files=["heatmap.png"])
    with pytest.raises(DataError, match="is one of the inspected files"):
        show(str(here), sheet=here / "score" / "heatmap.png", as_json=True)
    assert (here / "score" / "heatmap.png").read_bytes() == b"a"
    with pytest.raises(DataError, match="no collected failures to draw"):
        show(str(here / "score"), sheet=tmp_path / "sheet.png", as_json=True)
