"""Check that images that show the same are in one group, and that given groups are kept together."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tasks.datasets import load_dataset
from tasks.splits import near_duplicates as near_duplicates_module
from tasks.splits.near_duplicates import NEAR, group_images, near_duplicates, perceptual_hashes

IMAGES = load_dataset("cifar10_sample", "test").images(slice(0, 400))


def as_jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=quality)
    return np.asarray(Image.open(stream))


def test_photographs_of_different_things_are_in_different_groups() -> None:
    assert len(np.unique(group_images(perceptual_hashes(IMAGES)))) == 400


def test_compressed_and_brightened_copies_join_the_group_of_their_original() -> None:
    copies = np.concatenate(
        [
            [as_jpeg(image, 90) for image in IMAGES],
            np.clip(IMAGES.astype(int) + 6, 0, 255).astype(np.uint8),
            IMAGES[:, ::1],
        ]
    )
    groups = group_images(perceptual_hashes(np.concatenate([IMAGES, copies]))).reshape(4, 400)
    assert (groups[3] == groups[0]).all(), "equal images"
    assert (groups[1] == groups[0]).mean() > 0.95
    assert (groups[2] == groups[0]).mean() > 0.95


def test_images_of_one_given_group_stay_together_also_through_a_near_duplicate() -> None:
    far = np.array([0, 0xFF, 0xFF00, 0xFF0000, 0xFF000000], np.uint64)
    assert group_images(far).tolist() == [0, 1, 2, 3, 4]
    assert group_images(far, np.array([7, 7, 5, 5, 9])).tolist() == [0, 0, 1, 1, 2]
    # The last image repeats one of the first group and belongs to the second.
    chained = np.append(far[:4], far[0])
    assert group_images(chained, np.array([7, 7, 5, 5, 5])).tolist() == [0] * 5


def test_near_duplicates_of_other_images_are_found() -> None:
    others = perceptual_hashes(IMAGES[:50])
    again = perceptual_hashes(np.stack([as_jpeg(image, 95) for image in IMAGES[40:90]]))
    found = near_duplicates(again, others)
    assert found[:10].mean() > 0.8
    assert not found[10:].any()
    assert not near_duplicates(again, others[:0]).any()


@settings(max_examples=50, deadline=None)
@given(
    hashes=st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=30),
    flips=st.lists(st.tuples(st.integers(0, 29), st.sets(st.integers(0, 63), max_size=5)), max_size=20),
)
def test_groups_are_the_connected_near_duplicates(
    hashes: list[int], flips: list[tuple[int, set[int]]]
) -> None:
    for row, bits in flips:  # so that there are some near-duplicates
        hashes.append(hashes[row % len(hashes)] ^ sum(1 << bit for bit in bits))
    expected = list(range(len(hashes)))
    for i, a in enumerate(hashes):
        for j, b in enumerate(hashes[:i]):
            if (a ^ b).bit_count() <= NEAR:
                old, new = expected[i], expected[j]
                expected = [new if e == old else e for e in expected]
    groups = group_images(np.array(hashes, np.uint64))
    same = groups[:, None] == groups[None]
    wanted = np.array(expected)[:, None] == np.array(expected)[None]
    np.testing.assert_array_equal(same, wanted)


def test_hashes_do_not_depend_on_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), np.uint8)
    whole = perceptual_hashes(images)
    monkeypatch.setattr(near_duplicates_module, "_BATCH", 7)
    np.testing.assert_array_equal(perceptual_hashes(images), whole)
    assert perceptual_hashes(images[:0]).shape == (0,)
