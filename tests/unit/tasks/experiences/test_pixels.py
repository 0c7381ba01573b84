"""Check that a store without pixels gives the same bytes as one with pixels, and names what cannot be recomputed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from tasks.datasets import ArrayDataset, load_dataset
from tasks.environments import CorruptedImages, corrupted
from tasks.errors import DataError
from tasks.experiences.failure_file import CHUNK, read_failures, write_failures
from tasks.experiences.mining import MinedShard, mine
from tasks.experiences.pixels import RecomputedPixels, StackedPixels, joined
from tasks.experiences.store import finish_environment, open_side, write_part
from tasks.records import Experience, Failures, Pixels
from tasks.sampling.confidence import Confidence
from tasks.sampling.sampler import sample_task
from tasks.splits.digests import pixel_digests
from tasks.storage.manifest import Manifest
from tasks.storage.paths import Place, size_of

SEED, KINDS = 7, ("stored", "recomputed")


@pytest.fixture(scope="module")
def data() -> ArrayDataset:
    sample = load_dataset("cifar10_sample", "train").head(60)
    order = np.random.default_rng(0).permutation(60)  # ids in any order
    return replace(
        sample,
        image_ids_N=sample.image_ids_N[order],
        labels_N=sample.labels_N[order],
        images_NHWC=sample.images_NHWC[order],
    )


def predict(images_BHWC_u8: Pixels) -> np.ndarray:
    return images_BHWC_u8[:, 5, 5, 0].astype(np.int64) % 10


def mined(
    data: ArrayDataset, rows: Sequence[int], keep: str, corruption: str = "gaussian_noise"
) -> MinedShard:
    return mine(
        predict,
        corrupted(data, corruption, severities=[1, 4], seed=SEED),
        rows,
        seed=SEED,
        batch_size=7,
        keep=keep,  # type: ignore[arg-type]  # the strings of the loop are valid kinds
    )


def noisy(data: ArrayDataset) -> CorruptedImages:
    return corrupted(data, "gaussian_noise", severities=[1, 4], seed=SEED)


def environment(folder: Place, data: ArrayDataset, keep: str) -> Manifest:
    parts = [folder / "parts" / f"{i}.arrow" for i in range(2)]
    for path, rows in zip(parts, (range(30), range(30, 60)), strict=True):
        write_part(path, mined(data, rows, keep))

    def sides(found: Failures) -> np.ndarray:
        return (np.arange(len(found)) % 3 % 2).astype(np.int8)

    return finish_environment(folder, parts, sides, stage="mine", config={}, inputs={}, num_classes=10)


def tensors(folder: Place, data: ArrayDataset, manifest: Manifest) -> list[np.ndarray]:
    """The pixels and labels of some tasks."""
    sides = {side: open_side(folder, side, manifest, noisy(data)) for side in ("collect", "fail")}  # type: ignore[arg-type]
    experience = Experience(corruption="gaussian_noise", **sides)
    one = Confidence(
        names=("gaussian_noise",), probabilities_K=np.ones(1), rule="uniform", alpha=0.0, beta=0.0
    )
    found: list[np.ndarray] = []
    for slot in range(3):
        task = sample_task(
            {"gaussian_noise": experience}, one, seed=1, episode=0, slot=slot, shots=2, query_size=9
        )
        found += [experience.collect.images_NHWC[task.support_rows], task.support_rows]
        found += [experience.fail.images_NHWC[task.query_rows], experience.fail.labels_N[task.query_rows]]
    return found


def test_both_kinds_of_store_give_the_same_tasks_byte_for_byte(root: Place, data: ArrayDataset) -> None:
    manifests = {kind: environment(root / kind, data, kind) for kind in KINDS}
    tasks = [tensors(root / kind, data, manifests[kind]) for kind in KINDS]
    for stored, recomputed in zip(*tasks, strict=True):
        np.testing.assert_array_equal(stored, recomputed)
    assert manifests["stored"].rows == manifests["recomputed"].rows
    sizes = [size_of(root / kind / "fail.arrow") for kind in KINDS]
    assert sizes[1] is not None
    assert sizes[0] is not None
    assert sizes[1] < sizes[0] / 20


@pytest.mark.parametrize("corruption", ["frost", "glass_blur", "jpeg_compression", "contrast"])
def test_rows_are_recomputed_singly_in_any_order_and_as_a_slice(data: ArrayDataset, corruption: str) -> None:
    stored = mined(data, range(40), "stored", corruption).failures.images_NHWC
    made = mined(data, range(40), "recomputed", corruption).failures.images_NHWC
    assert isinstance(made, RecomputedPixels)
    assert made.shape == stored.shape
    rows = np.array([len(made) - 1, 0, 3, 3])
    np.testing.assert_array_equal(made[rows], stored[rows])
    np.testing.assert_array_equal(made[2:9:3], stored[2:9:3])
    np.testing.assert_array_equal(made[-1], stored[-1])
    np.testing.assert_array_equal(made[made.severities_N == 4], stored[made.severities_N == 4])
    np.testing.assert_array_equal(np.asarray(made), stored)
    np.testing.assert_array_equal(made.select(rows)[:], stored[rows])
    np.testing.assert_array_equal(joined([made, made.select(rows)])[-4:], stored[rows])


def test_a_row_beyond_the_end_is_an_error(data: ArrayDataset) -> None:
    made = mined(data, range(5), "recomputed").failures.images_NHWC
    with pytest.raises(IndexError):
        made[len(made)]


def test_pixels_are_not_recomputed_without_the_clean_images(root: Place, data: ArrayDataset) -> None:
    manifest = environment(root, data, "recomputed")
    collect = open_side(root, "collect", manifest)
    assert len(collect.images_NHWC) == manifest.rows["collect"]
    with pytest.raises(DataError, match=r"recomputed.*data set"):
        collect.images_NHWC[0]


def test_another_split_or_seed_is_detected(data: ArrayDataset) -> None:
    made = mined(data, range(40), "recomputed").failures.images_NHWC
    assert isinstance(made, RecomputedPixels)
    with pytest.raises(DataError, match="no such image among its 3"):
        made.read_from(noisy(data.head(3)))[:]
    other = replace(data, images_NHWC=data.images_NHWC[::-1].copy())
    with pytest.raises(DataError, match=r"other pixels than were mined.*manifest\.json"):
        made.read_from(noisy(other))[:]
    with pytest.raises(DataError, match="other pixels"):
        made.read_from(replace(noisy(data), seed=SEED + 1))[0]


def test_an_absurd_size_of_the_recomputed_images_is_refused(data: ArrayDataset) -> None:
    images = mined(data, range(60), "recomputed").failures.images_NHWC
    assert isinstance(images, RecomputedPixels)
    with pytest.raises(
        DataError, match=r"has images of \[1000000, 1000000, 3\], and the given data set of \[\d+, "
    ):
        replace(images, image_shape=(1_000_000, 1_000_000, 3))[:]


def test_a_digest_covers_every_byte() -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 3), dtype=np.uint8)
    before = pixel_digests(images)
    changed = images.copy()
    changed[1, 3, 3, 2] ^= 1
    assert (pixel_digests(changed) != before).tolist() == [False, True, False]
    np.testing.assert_array_equal(pixel_digests(images[:, ::-1][:, ::-1]), before)


def test_rows_of_stacked_pixels_equal_those_of_the_parts() -> None:
    generator = np.random.default_rng(0)
    parts = [generator.integers(0, 256, (n, 2, 2, 3), dtype=np.uint8) for n in (3, 0, 5)]
    stacked, whole = StackedPixels(parts), np.concatenate(parts)
    assert stacked.shape == whole.shape
    for rows in (slice(None), slice(1, 7, 2), np.array([7, 0, 3, 3]), np.array([], np.int64), 4, -1):
        np.testing.assert_array_equal(stacked[rows], whole[rows])


def test_more_rows_than_a_chunk_go_through_the_scratch_file_unchanged(root: Place) -> None:
    count = CHUNK + 11
    images = np.random.default_rng(0).integers(0, 256, (count, 2, 2, 3), dtype=np.uint8)
    columns = {f"{name}_N": np.arange(count) for name in ("image_ids", "labels", "predicted")}
    failures = Failures(
        corruption="fog", severities_N=np.ones(count, np.int64), images_NHWC=images, **columns
    )
    rows = np.arange(count)[::-1].copy()
    write_failures(root / "a.arrow", failures, rows=rows)
    found = read_failures(root / "a.arrow")
    np.testing.assert_array_equal(found.images_NHWC[:], images[::-1])
    np.testing.assert_array_equal(found.image_ids_N, rows)
