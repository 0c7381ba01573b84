"""Check that every layout of CIFAR-10 is read correctly and that others are refused with a remedy."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tasks.datasets import DATA_VARIABLE, SAMPLE, load_dataset
from tasks.errors import ConfigError, DataError

IMAGES = np.random.default_rng(0).integers(0, 256, (10, 32, 32, 3), dtype=np.uint8)
LABELS = np.arange(10)[::-1].copy()


def write_batches(root: Path, images: np.ndarray, labels: list[int]) -> Path:
    """Write the published layout: pickles of protocol 2 with bytes keys, rows of 3,072 values, channel by channel."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    rows = images.transpose(0, 3, 1, 2).reshape(len(images), 3072)
    for i in range(5):
        part = slice(i * len(images) // 5, (i + 1) * len(images) // 5)
        batch = {
            b"batch_label": b"a batch",
            b"labels": labels[part],
            b"data": rows[part],
            b"filenames": [b"a.png"],
        }
        (folder / f"data_batch_{i + 1}").write_bytes(pickle.dumps(batch, protocol=2))
    (folder / "test_batch").write_bytes(pickle.dumps({b"labels": labels, b"data": rows}, protocol=2))
    return folder


def write_npz(root: Path, **arrays: Any) -> None:
    (root / "cifar10").mkdir()
    np.savez(root / "cifar10" / "test.npz", **arrays)


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def webp(images: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(images.reshape(-1, 32, 3)).save(stream, "WEBP", lossless=True, quality=0)
    return stream.getvalue()


def write_zip(root: Path, members: dict[str, bytes]) -> Path:
    path = root / "cifar10" / "cifar10_test_webp.zip"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize(
    ("split", "count", "digest"),
    [
        ("train", 3000, "0c2008946efc6f044f5bf0acfa7211fce4701b6c33581ebb62dadadc9386d81a"),
        ("test", 2000, "6a61395e869f0f549206a86049792a67f3208eaac2bd345e4f263af7158a1fb2"),
    ],
)
def test_the_shipped_sample_is_balanced_and_pixel_for_pixel_as_published(
    split: Any, count: int, digest: str
) -> None:
    data = load_dataset("cifar10_sample", split)
    assert np.bincount(data.labels_N).tolist() == [count // 10] * 10
    assert len(np.unique(data.image_ids_N)) == count
    assert data.image_shape == (32, 32, 3)
    assert hashlib.sha256(data.images_NHWC.tobytes()).hexdigest() == digest


def test_the_published_python_batches_are_read_in_order_with_channels_last(tmp_path: Path) -> None:
    write_batches(tmp_path, IMAGES, LABELS.tolist())
    for split in ("train", "test"):
        data = load_dataset("cifar10", split, root=str(tmp_path))  # type: ignore[arg-type]
        np.testing.assert_array_equal(data.images_NHWC, IMAGES)
        np.testing.assert_array_equal(data.labels_N, LABELS)
        np.testing.assert_array_equal(data.image_ids_N, np.arange(10))


def test_a_batch_pickled_by_an_old_numpy_gives_the_same_pixels(tmp_path: Path) -> None:
    folder = write_batches(tmp_path, IMAGES, LABELS.tolist())
    written = (folder / "test_batch").read_bytes()
    old = written.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")
    assert old != written
    (folder / "test_batch").write_bytes(old)
    np.testing.assert_array_equal(load_dataset("cifar10", "test", root=str(tmp_path)).images_NHWC, IMAGES)


def test_a_batch_that_would_run_code_is_refused_and_runs_nothing(tmp_path: Path) -> None:
    trace = tmp_path / "ran"

    class Attack:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, (f"touch {trace}",)

    folder = write_batches(tmp_path, IMAGES, LABELS.tolist())
    attack = pickle.dumps({b"data": Attack(), b"labels": []}, protocol=2)
    (folder / "test_batch").write_bytes(attack)
    with pytest.raises(DataError, match=r"test_batch.*(posix|nt)\.system.*published archive"):
        load_dataset("cifar10", "test", root=str(tmp_path))
    assert not trace.exists()
    pickle.loads(attack)  # a plain unpickler runs the attack
    assert trace.exists()


@pytest.mark.parametrize(
    "content",
    [pickle.dumps([1, 2]), pickle.dumps({b"labels": [1]}), b"", b"\x80\x02}", b"not a pickle", b"cnumpy\n"],
)
def test_a_file_that_is_not_a_batch_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    folder = write_batches(tmp_path, IMAGES, LABELS.tolist())
    (folder / "test_batch").write_bytes(content)
    with pytest.raises(DataError, match="test_batch cannot be read as a CIFAR-10 batch"):
        load_dataset("cifar10", "test", root=str(tmp_path))


def test_a_truncated_or_missing_batch_is_refused_by_name(tmp_path: Path) -> None:
    folder = write_batches(tmp_path, IMAGES, LABELS.tolist())
    whole = (folder / "data_batch_3").read_bytes()
    (folder / "data_batch_3").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="data_batch_3"):
        load_dataset("cifar10", "train", root=str(tmp_path))
    (folder / "data_batch_3").unlink()
    with pytest.raises(DataError, match=r"data_batch_3 cannot be read .*No such file"):
        load_dataset("cifar10", "train", root=str(tmp_path))


def test_npz_arrays_are_read_as_written(tmp_path: Path) -> None:
    write_npz(tmp_path, images=IMAGES, labels=LABELS)
    data = load_dataset("cifar10", "test", root=str(tmp_path))
    np.testing.assert_array_equal(data.images_NHWC, IMAGES)
    np.testing.assert_array_equal(data.labels_N, LABELS)


def test_npz_with_a_pickled_array_is_refused(tmp_path: Path) -> None:
    write_npz(tmp_path, images=IMAGES, labels=np.array([{}] * 10, dtype=object))
    with pytest.raises(DataError, match=r"test\.npz cannot be read.*`images` .*numpy\.savez"):
        load_dataset("cifar10", "test", root=str(tmp_path))


@pytest.mark.parametrize("arrays", [{"images": IMAGES}, {"images": IMAGES, "labels": np.array(["cat"] * 10)}])
def test_npz_without_numeric_labels_is_refused(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    write_npz(tmp_path, **arrays)
    with pytest.raises(DataError, match="labels"):
        load_dataset("cifar10", "test", root=str(tmp_path))


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (LABELS + 0.7, r"labels are float64 \[10\]"),
        (LABELS.astype(float), r"labels are float64 \[10\]"),
        (LABELS > 4, r"labels are bool \[10\]"),
        (LABELS.astype(str), r"labels are <U\d+ \[10\]"),
        (LABELS[:, None], r"\[10, 1\].*labels\[:, 0\]"),
        (np.eye(10, dtype=np.int64), r"\[10, 10\].*argmax"),
        (np.int64(3), r"labels are int64 \[\]"),
        (LABELS.astype(np.uint64) + 2**63, r"labels are uint64"),
        (LABELS.astype(complex), r"labels are complex128"),
    ],
    ids=["fractions", "floats", "booleans", "text", "a column", "one-hot", "one number", "huge", "complex"],
)
def test_labels_that_are_not_whole_numbers_are_refused_and_not_rounded(
    labels: np.ndarray, words: str, tmp_path: Path
) -> None:
    write_npz(tmp_path, images=IMAGES, labels=labels)
    with pytest.raises(DataError, match=words):
        load_dataset("cifar10", "test", root=str(tmp_path))


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.uint64])
def test_labels_of_any_integer_type_are_read(kind: Any, tmp_path: Path) -> None:
    write_npz(tmp_path, images=IMAGES, labels=LABELS.astype(kind))
    np.testing.assert_array_equal(load_dataset("cifar10", "test", root=str(tmp_path)).labels_N, LABELS)


def test_a_split_without_images_is_refused(tmp_path: Path) -> None:
    write_npz(tmp_path, images=IMAGES[:0], labels=LABELS[:0])
    with pytest.raises(DataError, match="has no images"):
        load_dataset("cifar10", "test", root=str(tmp_path))


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "cifar10").mkdir()
    os.mkfifo(tmp_path / "cifar10" / "test.npz")
    with pytest.raises(DataError, match="give a regular file"):
        load_dataset("cifar10", "test", root=str(tmp_path))


def test_a_file_that_is_not_an_npz_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cifar10").mkdir()
    for content in (b"", b"nonsense", npy(IMAGES)):
        (tmp_path / "cifar10" / "test.npz").write_bytes(content)
        with pytest.raises(DataError, match=r"test\.npz"):
            load_dataset("cifar10", "test", root=str(tmp_path))


def test_strips_of_a_zip_are_joined_in_the_order_of_their_names(tmp_path: Path) -> None:
    members = {
        "b.webp": webp(IMAGES[6:]),
        "a.webp": webp(IMAGES[:6]),
        "labels_u1.npy": npy(LABELS.astype(np.uint8)),
    }
    write_zip(tmp_path, members | {"ids.npy": npy(np.arange(10) * 7)})
    data = load_dataset("cifar10", "test", root=str(tmp_path))
    np.testing.assert_array_equal(data.images_NHWC, IMAGES)
    np.testing.assert_array_equal(data.labels_N, LABELS)
    np.testing.assert_array_equal(data.image_ids_N, np.arange(10) * 7)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_truncated_zip_is_refused(tmp_path: Path, share: float) -> None:
    path = write_zip(tmp_path, {"a.webp": webp(IMAGES), "labels_u1.npy": npy(LABELS)})
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(DataError, match=r"webp\.zip.*Give a zip of lossless WebP strips"):
        load_dataset("cifar10", "test", root=str(tmp_path))


@pytest.mark.parametrize("share", [0.0, 0.3, 0.95])
def test_a_truncated_strip_is_refused_by_name(tmp_path: Path, share: float) -> None:
    strip = webp(IMAGES)
    write_zip(tmp_path, {"a.webp": strip[: int(len(strip) * share)], "labels_u1.npy": npy(LABELS)})
    with pytest.raises(DataError, match=r"a\.webp cannot be read.*Give a zip of lossless WebP strips"):
        load_dataset("cifar10", "test", root=str(tmp_path))


def test_a_damaged_byte_in_a_strip_is_refused(tmp_path: Path) -> None:
    path = write_zip(tmp_path, {"a.webp": webp(IMAGES), "labels_u1.npy": npy(LABELS)})
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.webp"):
        load_dataset("cifar10", "test", root=str(tmp_path))


def test_a_zip_without_strips_or_labels_is_refused(tmp_path: Path) -> None:
    path = write_zip(tmp_path, {"a.webp": webp(IMAGES)})
    with pytest.raises(DataError, match="labels_u1"):
        load_dataset("cifar10", "test", root=str(tmp_path))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("labels_u1.npy", npy(LABELS))
    with pytest.raises(DataError, match=r"no \.webp"):
        load_dataset("cifar10", "test", root=str(tmp_path))


@pytest.mark.parametrize("label", [10, -1])
def test_a_label_outside_the_classes_is_refused_with_its_row(tmp_path: Path, label: int) -> None:
    labels = LABELS.copy()
    labels[4] = label
    write_npz(tmp_path, images=IMAGES, labels=labels)
    with pytest.raises(
        DataError, match=rf"label of image 4 is {label}, outside the 10 classes 0\.\.9.*Correct"
    ):
        load_dataset("cifar10", "test", root=str(tmp_path))


def test_fewer_labels_than_images_are_refused_with_both_counts(tmp_path: Path) -> None:
    write_npz(tmp_path, images=IMAGES, labels=LABELS[:7])
    with pytest.raises(DataError, match="10 images but 7 labels"):
        load_dataset("cifar10", "test", root=str(tmp_path))


@pytest.mark.parametrize("images", [IMAGES.astype(np.float32), IMAGES[..., :1], IMAGES[..., 0]])
def test_images_that_are_not_uint8_colour_are_refused(tmp_path: Path, images: np.ndarray) -> None:
    write_npz(tmp_path, images=images, labels=LABELS)
    with pytest.raises(DataError, match=r"must be uint8 \[N, H, W, 3\]"):
        load_dataset("cifar10", "test", root=str(tmp_path))


def test_an_empty_folder_is_refused_with_all_layouts_and_the_sample_as_remedy(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"cifar-10-batches-py.*train\.npz.*webp\.zip.*data\.name=cifar10_sample"
    ):
        load_dataset("cifar10", "train", root=str(tmp_path))


def test_a_root_that_is_not_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name in ("file", "missing"):
        with pytest.raises(DataError, match=f"{name} is not a folder.*{DATA_VARIABLE}"):
            load_dataset("cifar10", "test", root=str(tmp_path / name))


def test_a_missing_root_is_refused_with_the_ways_to_give_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(DATA_VARIABLE, raising=False)
    with pytest.raises(DataError, match=rf"Set data\.root.*{DATA_VARIABLE}"):
        load_dataset("cifar10", "test")


def test_the_environment_variable_names_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_npz(tmp_path, images=IMAGES, labels=LABELS)
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path))
    np.testing.assert_array_equal(load_dataset("cifar10", "test").images_NHWC, IMAGES)


def test_an_unknown_data_set_is_refused_with_near_names() -> None:
    with pytest.raises(ConfigError, match="no data set 'cifar_10'; did you mean 'cifar10'"):
        load_dataset("cifar_10", "test")


def test_a_head_keeps_the_first_rows_with_their_ids() -> None:
    data = load_dataset("cifar10_sample", "test")
    head = data.head(7)
    np.testing.assert_array_equal(head.image_ids_N, data.image_ids_N[:7])
    np.testing.assert_array_equal(head.images(slice(None)), data.images(np.arange(7)))
    assert len(data.head(10**6).labels_N) == 2000
    assert SAMPLE.is_dir()
