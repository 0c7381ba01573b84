"""Check that results do not depend on the batch size: no remainder of a batch is lost or repeated."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from small import failures_of
from tasks.datasets import ArrayDataset, DataSource, image_table, load_dataset
from tasks.datasets.decoding import EncodedImage, Listing, decode_listing
from tasks.datasets.image_folder import files_listing
from tasks.environments import corrupted
from tasks.errors import DataError
from tasks.experiences import failure_file
from tasks.experiences.failure_file import read_failures, write_failures
from tasks.experiences.mining import mine
from tasks.experiences.pixels import StackedPixels, digests_of
from tasks.records import Failures, Pixels
from tasks.splits.digests import pixel_digests

IMAGES = np.random.default_rng(0).integers(0, 256, (24, 8, 8, 3), dtype=np.uint8)


def png(image: Pixels) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    return stream.getvalue()


PNGS = [png(image) for image in IMAGES]
counts = st.integers(1, 24)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("images")
    for number, content in enumerate(PNGS):
        (folder / f"{number:02d}.png").write_bytes(content)
    return sorted(folder.iterdir())


def by_id(data: ArrayDataset) -> Pixels:
    return data.images(np.argsort(data.image_ids_N))


@settings(max_examples=40, deadline=None)
@given(count=counts, batch=st.integers(1, 26))
def test_any_number_of_files_is_decoded_in_batches_of_any_size(
    files: list[Path], count: int, batch: int
) -> None:
    labels = [number % 3 for number in range(count)]
    source = DataSource(name="imagefolder", root="nowhere")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tasks.datasets.image_folder.BATCH", batch)
        listing = files_listing(source, "train", ("a", "b", "c"), files[:count], labels, passed_over=())
        data = decode_listing(listing)
    np.testing.assert_array_equal(by_id(data), IMAGES[:count])
    assert data.labels_N[np.argsort(data.image_ids_N)].tolist() == labels


@settings(max_examples=40, deadline=None)
@given(
    count=counts,
    groups=st.integers(1, 26),
    batch=st.integers(1, 26),
    labelled=st.integers(1, 26),
    form=st.sampled_from(["parquet", "file", "stream"]),
    cut=st.integers(0, 24),
)
def test_any_number_of_rows_is_read_in_groups_and_batches_of_any_size(
    count: int, groups: int, batch: int, labelled: int, form: str, cut: int
) -> None:
    labels = [f"class{number % 3}" for number in range(count)]
    made = pa.table({"image": PNGS[:count], "label": labels})
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(image_table, "BATCH", batch)
        patch.setattr(image_table, "LABEL_ROWS", labelled)
        for number, part in enumerate((made[:cut], made[cut:])):  # either may be empty
            path = Path(folder, f"train-{number}.{'parquet' if form == 'parquet' else 'arrow'}")
            if form == "parquet":
                pyarrow.parquet.write_table(part, path, row_group_size=groups)
            else:
                new = pa.ipc.new_file if form == "file" else pa.ipc.new_stream
                with new(path, part.schema) as writer:
                    writer.write_table(part, max_chunksize=groups)
        data = load_dataset(DataSource(name="parquet", root=folder), "train")
    np.testing.assert_array_equal(by_id(data), IMAGES[:count])
    names = [data.classes[label] for label in data.labels_N[np.argsort(data.image_ids_N)]]
    assert names == labels


@pytest.mark.parametrize("there", [1, 4])
def test_fewer_or_more_images_than_listed_are_refused_with_both_counts(there: int, tmp_path: Path) -> None:
    def batches() -> Iterator[Sequence[EncodedImage]]:
        yield [EncodedImage(name=str(i), content=PNGS[i]) for i in range(there)]

    listing = Listing(
        name="parquet",
        split="train",
        classes=("a",),
        labels_N=np.zeros(3, np.int64),
        image_size=None,
        files=[tmp_path / "train.parquet"],
        batches=batches,
    )
    with pytest.raises(
        DataError, match=rf"3 images of the train split of parquet were listed, but {there} were"
    ):
        decode_listing(listing)


def predict(images: Pixels) -> np.ndarray:
    return images.reshape(len(images), -1).sum(1, dtype=np.int64) % 3


@settings(max_examples=25, deadline=None)
@given(count=counts, batch=st.integers(1, 26), keep=st.sampled_from(["stored", "recomputed"]))
def test_mining_in_batches_of_any_size_finds_the_same_failures(count: int, batch: int, keep: Any) -> None:
    data = ArrayDataset(
        name="unit",
        split="train",
        classes=("a", "b", "c"),
        image_ids_N=np.arange(24)[::-1].copy(),
        labels_N=np.arange(24) % 3,
        images_NHWC=IMAGES,
    )
    noisy = corrupted(data, "gaussian_noise", severities=[1, 3], seed=5)
    found = mine(predict, noisy, range(count), seed=5, batch_size=batch, keep=keep)
    alone = mine(predict, noisy, range(count), seed=5, batch_size=1)
    assert (found.examined, found.correct) == (alone.examined, alone.correct)
    assert_same(found.failures, alone.failures)
    if keep == "stored":
        digests = digests_of(alone.failures.images_NHWC, batch_size=batch)
        np.testing.assert_array_equal(digests, pixel_digests(alone.failures.images_NHWC[:]))


def assert_same(one: Failures, other: Failures) -> None:
    for name in ("image_ids_N", "severities_N", "labels_N", "predicted_N"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    np.testing.assert_array_equal(one.images_NHWC[:], other.images_NHWC[:])


@settings(max_examples=40, deadline=None)
@given(
    chunk=st.integers(1, 26),
    cut=st.integers(1, 23),
    rows=st.one_of(st.none(), st.lists(st.integers(0, 23), max_size=30)),
)
def test_failures_are_written_in_chunks_of_any_size(chunk: int, cut: int, rows: list[int] | None) -> None:
    whole = failures_of(np.arange(24) % 3, IMAGES, severities_N=np.arange(24) % 5 + 1, corruption="fog")
    stacked = replace(whole, images_NHWC=StackedPixels([IMAGES[:cut], IMAGES[cut:]]))
    chosen = None if rows is None else np.array(rows, np.int64)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(failure_file, "CHUNK", chunk)
        for number, given_as in enumerate((whole, stacked)):
            path = Path(folder, f"{number}.arrow")
            write_failures(path, given_as, rows=chosen)
            assert_same(read_failures(path), whole if chosen is None else whole.take(chosen))
