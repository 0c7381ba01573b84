"""Test the example package: its four corruptions are found, keyed as ours, graded, and follow their definitions."""

from __future__ import annotations

import importlib
import itertools
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plugin_packages import EXAMPLE, install_example, plugin_path
from tasks.corruptions import CORRUPTIONS, category_of, corrupt, dose_for
from tasks.corruptions.plugins import plugin_names, plugin_versions
from tasks.datasets import DataSource, load_dataset

NAMES = ("checkerboard_cutout", "inverse_sparkles", "plasma_noise", "sparkles")
CATEGORIES = ("occlusion", "light", "noise", "light")


@pytest.fixture(autouse=True)
def _example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with plugin_path(monkeypatch):
        install_example(tmp_path)
        yield


@pytest.fixture(scope="module")
def photos() -> Any:
    return load_dataset(DataSource(name="cifar10_sample"), "test").images(np.arange(60))


def corrupted(images: Any, name: str, *, severity: int = 3, ids: Any = None, **changes: Any) -> Any:
    ids = np.arange(len(images)) if ids is None else ids
    settings: dict[str, Any] = {"seed": 0, **changes}
    return corrupt(images, image_ids_B=ids, corruption=name, severity=severity, **settings)


def grey(count: int, *, size: int = 64, level: int = 200) -> Any:
    return np.full((count, size, size, 3), level, np.uint8)


def test_the_package_declares_the_four_corruptions_and_its_licence() -> None:
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert plugin_names() == NAMES
    assert tuple(map(category_of, NAMES)) == CATEGORIES
    assert plugin_versions(NAMES) == dict.fromkeys(NAMES, f"{project['name']}=={project['version']}")
    assert not set(NAMES) & CORRUPTIONS.keys()
    assert project["license"] == "Apache-2.0"
    readme = (EXAMPLE / "README.md").read_text(encoding="utf-8")
    assert [name for name in NAMES if f"`{name}`" not in readme] == []


@pytest.mark.parametrize("severity", [1, 5])
@pytest.mark.parametrize("name", NAMES)
def test_batches_order_and_chunks_do_not_change_the_bytes(
    name: str, severity: int, photos: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, ids = photos[:11], np.arange(500, 511)
    together = corrupted(images, name, severity=severity, ids=ids)
    order = np.random.default_rng(1).permutation(11)
    assert np.array_equal(corrupted(images[order], name, severity=severity, ids=ids[order]), together[order])
    for i in (0, 10):
        alone = corrupted(images[i : i + 1], name, severity=severity, ids=ids[i : i + 1])
        assert np.array_equal(alone[0], together[i])
    monkeypatch.setattr("tasks.corruptions.CHUNK_VALUES", 2 * 32 * 32 * 3)
    assert np.array_equal(corrupted(images, name, severity=severity, ids=ids), together)


@pytest.mark.parametrize("name", NAMES)
def test_another_id_seed_or_severity_gives_another_draw(name: str) -> None:
    images = grey(6, size=32)
    first = corrupted(images, name)
    assert len({image.tobytes() for image in first}) > 3
    assert not np.array_equal(corrupted(images, name, seed=1), first)
    assert not np.array_equal(corrupted(images, name, severity=4), first)


@pytest.mark.parametrize("table", ["cifar", "tinyimagenet", "imagenet"])
@pytest.mark.parametrize("name", NAMES)
def test_the_mean_change_grows_with_severity(name: str, table: str, photos: Any) -> None:
    images = photos if table == "cifar" else photos[:16].repeat(3, axis=1).repeat(3, axis=2)
    sizes = [
        np.abs(corrupted(images, name, severity=s, table=table).astype(float) - images).mean()
        for s in (1, 2, 3, 4, 5)
    ]
    assert all(more > 1.15 * less for less, more in itertools.pairwise(sizes)), sizes
    assert 1 < sizes[0] < 12, sizes
    assert 15 < sizes[4] < 45, sizes


@pytest.mark.parametrize("shape", [(8, 8, 3), (8, 50, 1), (61, 33, 3), (150, 224, 3)])
@pytest.mark.parametrize("name", NAMES)
def test_any_size_and_grey_images_work(name: str, shape: tuple[int, int, int]) -> None:
    images = np.random.default_rng(0).integers(256, size=(2, *shape), dtype=np.uint8)
    for table in ("cifar", "imagenet"):
        changed = corrupted(images, name, severity=5, table=table)
        assert changed.shape == images.shape
        assert not np.array_equal(changed, images)
    assert corrupted(images[:0], name).shape == (0, *shape)


def test_a_checkerboard_covers_the_stated_part_with_grey_in_whole_fields() -> None:
    images = grey(40)
    for severity, part in ((1, 0.45), (5, 1.0)):
        changed = corrupted(images, "checkerboard_cutout", severity=severity, table="imagenet")
        hidden = (changed != images).all(axis=3)
        assert np.array_equal(changed, np.where(hidden[..., None], np.uint8(128), images))
        assert hidden.mean() == pytest.approx(part**2 / 2, abs=0.02)
    # With whole fields covered, two pixels a field apart are covered and free in turn.
    changed = corrupted(grey(5), "checkerboard_cutout", severity=5, table="cifar")  # fields of 8 px
    hidden = changed[..., 0] == 128
    assert (hidden[:, 8:] != hidden[:, :-8]).all()
    assert (hidden[:, :, 8:] != hidden[:, :, :-8]).all()


def test_plasma_is_added_about_zero_and_is_mostly_coarse() -> None:
    change = corrupted(grey(200, level=128), "plasma_noise", severity=3).astype(float) - 128
    strength = 255 * 0.21
    largest = np.abs(change).max(axis=(1, 2, 3))
    assert np.all(np.abs(largest - strength) <= 1)
    assert abs(change.mean()) < 3
    neighbours = np.abs(np.diff(change, axis=2)).mean()
    far = np.abs(change[:, :, 32:] - change[:, :, :32]).mean()
    assert far > 2 * neighbours
    assert abs(np.corrcoef(change[..., 0].ravel(), change[..., 1].ravel())[0, 1]) < 0.1  # colours differ


def test_sparkles_only_lighten_and_inverse_sparkles_only_darken(photos: Any) -> None:
    lighter, darker = (corrupted(photos, name, severity=5) for name in ("sparkles", "inverse_sparkles"))
    assert (lighter >= photos).all()
    assert (darker <= photos).all()
    assert (lighter.max(axis=(1, 2, 3)) >= 250).mean() > 0.9
    assert (darker.min(axis=(1, 2, 3)) <= 5).mean() > 0.9


def test_a_glint_is_brightest_at_its_core_and_has_four_equal_rays() -> None:
    example = importlib.import_module("corruptions_cbar")
    distance = np.linspace(0, 20, 81, dtype=np.float32)
    zero = np.zeros_like(distance)
    along, across = example.glint(distance**2, zero), example.glint(zero, distance**2)
    diagonal = example.glint(distance**2 / 2, distance**2 / 2)
    assert along[0] == 1
    assert np.array_equal(along, across)
    assert (np.diff(along) < 0).all()
    assert (diagonal[1:] < along[1:]).all()
    assert along[40] > 5 * diagonal[40]


def test_overlapping_glints_share_the_darkness_and_stay_within_one() -> None:
    example = importlib.import_module("corruptions_cbar")
    dose = dose_for(range(8), corruption="sparkles", severity=5, seed=3, table="imagenet")
    light = example.glints((8, 40, 50, 3), dose)
    assert light.shape == (8, 40, 50)
    assert light.dtype == np.float32
    assert 0 < light.min() <= light.max() <= 1


def test_the_plasma_of_one_channel_is_a_grid_interpolated_linearly() -> None:
    example = importlib.import_module("corruptions_cbar")
    grid = np.random.default_rng(2).random((2, 5, 5, 3)).astype(np.float32)
    found = example.enlarged(grid, height=12, width=9)
    at = [(np.arange(size) + 0.5) * 4 / size for size in (12, 9)]
    for b in range(2):
        for c in range(3):
            rows = np.stack([np.interp(at[0], range(5), grid[b, :, n, c]) for n in range(5)], axis=1)
            expected = np.stack([np.interp(at[1], range(5), row) for row in rows])
            np.testing.assert_allclose(found[b, :, :, c], expected, atol=1e-6)
