"""Write archives in their published layouts and check that they are read back as written."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from tasks.datasets import ArrayDataset
from tasks.datasets.archives import load_archive
from tasks.environments import check_archive, corrupted, corrupted_images
from tasks.errors import ConfigError, DataError
from tasks.experiences.mining import mine

NUM = 12
LABELS = np.arange(NUM) % 4


def write_arrays(root, *, names=("fog", "snow"), labels=LABELS, size=32):
    """Write CIFAR-10-C's layout, with a pixel value for each corruption, severity and row."""
    root.mkdir(parents=True, exist_ok=True)
    np.save(root / "labels.npy", np.tile(labels, 5))
    for number, name in enumerate(names):
        values = 100 * number + 15 * np.repeat(np.arange(5), len(labels)) + np.tile(np.arange(len(labels)), 5)
        images = np.empty((5 * len(labels), size, size, 3), np.uint8)
        images[:] = values[:, None, None, None]
        np.save(root / f"{name}.npy", images)
    return root


def write_folders(root, *, names=("fog", "snow"), classes=("n02", "n01"), per_class=3):
    """Write Tiny-ImageNet-C's layout, with a pixel value for each corruption, severity and class."""
    for number, name in enumerate(names):
        for severity in range(1, 6):
            for label, wnid in enumerate(sorted(classes)):
                folder = root / name / str(severity) / wnid
                folder.mkdir(parents=True)
                for i in range(per_class):
                    value = 100 * number + 15 * severity + 5 * label + i
                    Image.new("RGB", (64, 64), (value,) * 3).save(folder / f"val_{i}.JPEG", quality=85)
    return root


def dataset(*, labels=LABELS, size=32, ids=None):
    images = np.zeros((len(labels), size, size, 3), np.uint8)
    ids = np.arange(len(labels)) if ids is None else np.asarray(ids)
    classes = ("a", "b", "c", "d")
    return ArrayDataset(
        name="cifar10", split="test", classes=classes, image_ids_N=ids, labels_N=labels, images_NHWC=images
    )


def test_arrays_are_read_in_the_order_of_severities(tmp_path):
    archive = load_archive(write_arrays(tmp_path))
    assert archive.corruptions == ("fog", "snow")
    assert archive.image_shape == (32, 32, 3)
    assert np.array_equal(archive.labels_N, LABELS)
    for number, name in enumerate(("fog", "snow")):
        for severity in range(1, 6):
            images = archive.images([7, 0], corruption=name, severity=severity)
            assert images.shape == (2, 32, 32, 3)
            assert images.dtype == np.uint8
            for image, row in zip(images, (7, 0), strict=True):
                assert (image == 100 * number + 15 * (severity - 1) + row).all()
    assert archive.images([], corruption="FOG", severity=1).shape == (0, 32, 32, 3)


def test_folders_are_read_in_the_order_of_their_names(tmp_path):
    archive = load_archive(write_folders(tmp_path))
    assert archive.corruptions == ("fog", "snow")
    assert archive.image_shape == (64, 64, 3)
    assert archive.labels_N.tolist() == [0, 0, 0, 1, 1, 1]
    images = archive.images([4, 0], corruption="snow", severity=2)
    expected = [100 + 30 + 5 + 1, 100 + 30]
    assert np.abs(images.astype(int) - np.array(expected)[:, None, None, None]).max() <= 1


def test_a_grey_file_of_an_archive_is_converted_to_rgb(tmp_path):
    write_folders(tmp_path, names=("fog",), classes=("n01",), per_class=1)
    Image.new("L", (64, 64), 90).save(tmp_path / "fog" / "3" / "n01" / "val_0.JPEG")
    images = load_archive(tmp_path).images([0], corruption="fog", severity=3)
    assert np.abs(images.astype(int) - 90).max() <= 1


def test_another_archive_has_another_digest(tmp_path):
    same = [load_archive(write_arrays(tmp_path / n)).digest for n in ("a", "b")]
    assert same[0] == same[1]
    others = [
        load_archive(write_arrays(tmp_path / "c", names=("fog",))).digest,
        load_archive(write_arrays(tmp_path / "d", labels=LABELS[::-1])).digest,
        load_archive(write_folders(tmp_path / "e")).digest,
    ]
    assert len({same[0], *others}) == 4


def test_mining_an_archive_keeps_its_pixels(tmp_path):
    ids = [9, 2, 5]
    data = dataset(labels=LABELS[ids], ids=ids)
    archived = ArrayDataset(
        name="cifar10",
        split="test",
        classes=data.classes,
        image_ids_N=data.image_ids_N,
        labels_N=data.labels_N,
        images_NHWC=data.images_NHWC,
        archive=load_archive(write_arrays(tmp_path)),
    )
    mined = mine(
        lambda images: np.full(len(images), 3),
        corrupted(archived, "snow", severities=[2, 5], seed=0),
        np.arange(3),
        seed=0,
        batch_size=2,
    )
    values = mined.failures.images_NHWC[:, 0, 0, 0].tolist()
    assert values == [100 + 15 + 9, 100 + 15 + 2, 100 + 15 + 5, 100 + 60 + 9, 100 + 60 + 2, 100 + 60 + 5]
    assert mined.failures.image_ids_N.tolist() == [9, 2, 5, 9, 2, 5]


def test_a_chosen_corruption_table_changes_the_corrupted_images():
    data = dataset()
    data.images_NHWC[:] = 100
    images = {
        table: corrupted_images(
            ArrayDataset(**{**vars(data), "corruption_table": table}),
            np.arange(3),
            corruption="brightness",
            severity=1,
            seed=0,
        )
        for table in (None, "cifar", "imagenet")
    }
    assert np.array_equal(images[None], images["cifar"])
    assert images["cifar"][0, 0, 0, 0] == 112  # V + 0.05
    assert images["imagenet"][0, 0, 0, 0] == 125  # V + 0.1


@pytest.mark.parametrize(
    ("data", "needed", "message"),
    [
        (dataset(), ("fog", "frost"), r"has no frost; it has fog, snow\. Name only these in targets"),
        (dataset(size=64), (), r"images of shape \[64, 64, 3\]\. Give the archive of that data set"),
        (dataset(labels=np.arange(13) % 4), (), "has ids up to 12"),
        (dataset(labels=(LABELS + 1) % 4), (), "The labels of .* differ .* for 12 of 12 images"),
    ],
)
def test_an_archive_of_another_data_set_is_refused(tmp_path, data, needed, message):
    archive = load_archive(write_arrays(tmp_path))
    check_archive(archive, dataset(), needed=("fog", "snow"))
    with pytest.raises(DataError, match=message):
        check_archive(archive, data, needed=needed)


@pytest.mark.parametrize(
    ("asked", "error", "message"),
    [
        ({"corruption": "frost"}, DataError, r"no corruption 'frost'.*There are: fog, snow"),
        ({"corruption": "frst"}, ConfigError, "did you mean 'frost'"),
        ({"severity": 6}, ConfigError, r"severity=6 is outside 1\.\.5"),
        ({"rows": [3, 12]}, DataError, "has 12 images per severity, so its rows are 0 to 11; rows 3 to 12"),
        ({"rows": [-1]}, DataError, "rows -1 to -1"),
    ],
)
def test_a_request_beyond_an_archive_is_refused(tmp_path, asked, error, message):
    archive = load_archive(write_arrays(tmp_path))
    asked = {"rows": [0], "corruption": "fog", "severity": 1} | asked
    with pytest.raises(error, match=message):
        archive.images(asked.pop("rows"), **asked)


def saved(array, **options):
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("fog.npy", b"\x93NUMPY\x01", "fog.npy cannot be read as an array"),
        ("fog.npy", saved(np.zeros((60, 32, 32, 3), np.uint8))[:5000], "fog.npy cannot be read as an array"),
        ("fog.npy", saved(np.zeros((60, 32, 32, 3), np.float32)), "fog.npy is float32"),
        ("fog.npy", saved(np.zeros((55, 32, 32, 3), np.uint8)), r"is uint8 \[55, 32, 32, 3\]"),
        ("fog.npy", saved(np.array([{}]), allow_pickle=True), "fog.npy cannot be read as an array"),
        ("labels.npy", saved(np.arange(60)), "five times, once per severity"),
        ("labels.npy", saved(np.zeros(61, int)), "five times, once per severity"),
        ("labels.npy", saved(np.zeros(60)), "labels.npy is float64"),
        ("labels.npy", saved(np.zeros(0, int)), "five times, once per severity"),
        ("labels.npy", saved(np.array([{}]), allow_pickle=True), "labels.npy cannot be read as an array"),
    ],
)
def test_a_damaged_array_is_refused_by_name(tmp_path, name, content, message):
    write_arrays(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        load_archive(tmp_path).images([1], corruption="fog", severity=5)


def test_a_damaged_folder_is_refused_by_name(tmp_path):
    write_folders(tmp_path)
    odd = tmp_path / "snow" / "4" / "n01" / "val_2.JPEG"
    content = odd.read_bytes()
    odd.write_bytes(content[: len(content) // 2])
    archive = load_archive(tmp_path)
    with pytest.raises(DataError, match=r"val_2\.JPEG cannot be read as an image"):
        archive.images([2], corruption="snow", severity=4)
    Image.new("RGB", (32, 64)).save(odd)
    with pytest.raises(DataError, match="all must have one size"):
        archive.images([2], corruption="snow", severity=4)
    odd.unlink()
    with pytest.raises(DataError, match=r"snow/4 has 5 images, fog/1 has 6 .*n01/val_2\.JPEG"):
        load_archive(tmp_path)


def test_a_folder_that_is_not_an_archive_is_refused_with_the_layouts(tmp_path):
    with pytest.raises(DataError, match=r"not a published archive: .*labels\.npy .*<corruption>/<severity>"):
        load_archive(tmp_path)
    with pytest.raises(DataError, match="is not a folder"):
        load_archive(tmp_path / "nowhere")
    np.save(tmp_path / "labels.npy", np.zeros(5, int))
    with pytest.raises(DataError, match=r"no <corruption>\.npy"):
        load_archive(tmp_path)
    (tmp_path / "labels.npy").unlink()
    (tmp_path / "holidays" / "1" / "beach").mkdir(parents=True)
    with pytest.raises(DataError, match="no folder named after a published corruption"):
        load_archive(tmp_path)
