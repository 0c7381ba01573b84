"""Check that images from Python come back from a saved table as an environment reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from metarepair import save_images
from tasks.datasets import DataSource, ImageSource, list_images, load_dataset
from tasks.datasets.images import decode_image
from tasks.datasets.unsplit import PARTS
from tasks.environments import read_images, write_images
from tasks.errors import ConfigError, DataError
from tasks.splits.digests import pixel_digests
from tasks.storage.manifest import write_manifest

CLASSES = ("cat", "dog", "horse")
IMAGES = np.random.default_rng(0).integers(256, size=(5, 9, 12, 3), dtype=np.uint8)
LABELS = [2, 0, 1, 1, 0]


class Items:
    """A data set with `len()` and `[i]`, as those of torch and Hugging Face."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, number: int) -> Any:
        return self.items[number]


def read(path: Path) -> tuple[list[int], list[str] | None, list[np.ndarray]]:
    listed = list_images(ImageSource(setting="s", location=path), CLASSES)
    pixels = [decode_image(image.content) for batch in listed.batches() for image in batch]
    return listed.labels_N.tolist(), None if listed.groups is None else list(listed.groups), pixels


FORMS: dict[str, Any] = {
    "arrays": (IMAGES, np.array(LABELS)),
    "channels first": (torch.from_numpy(IMAGES.transpose(0, 3, 1, 2).copy()), torch.tensor(LABELS)),
    "pairs of tensors": Items(
        [
            (torch.from_numpy(i.transpose(2, 0, 1).copy()), torch.tensor(n))
            for i, n in zip(IMAGES, LABELS, strict=True)
        ]
    ),
    "pairs with PIL images": [(Image.fromarray(i), n) for i, n in zip(IMAGES, LABELS, strict=True)],
    "mappings, as of Hugging Face": Items(
        [{"image": Image.fromarray(i), "label": n, "id": 7} for i, n in zip(IMAGES, LABELS, strict=True)]
    ),
    "names of classes": [(i, CLASSES[n]) for i, n in zip(IMAGES, LABELS, strict=True)],
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_pixels_and_labels(tmp_path: Path, form: str) -> None:
    path = save_images(FORMS[form], tmp_path / "t.parquet", groups=[1, 1, 2, 2, 3])
    labels, groups, pixels = read(path)
    assert labels == LABELS
    assert groups == ["1", "1", "2", "2", "3"]
    np.testing.assert_array_equal(np.stack(pixels), IMAGES)


def test_images_may_differ_in_size_and_mode(tmp_path: Path) -> None:
    grey, deep = Image.fromarray(IMAGES[0, ..., 0]), Image.fromarray(np.full((4, 5), 65535, np.uint16))
    given = [(grey, 0), (deep, 1), (Image.new("CMYK", (3, 3), (0, 0, 0, 255)), 2), (IMAGES[1, :2], 0)]
    _, groups, pixels = read(save_images(given, tmp_path / "t.parquet"))
    assert groups is None
    assert [p.shape for p in pixels] == [(9, 12, 3), (4, 5, 3), (3, 3, 3), (2, 12, 3)]
    np.testing.assert_array_equal(pixels[0], np.repeat(IMAGES[0, ..., :1], 3, 2))
    assert pixels[1].min() == 255
    assert pixels[2].max() == 0


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (3, "int is neither"),
        ("images", "str is neither"),
        ({"image": 1}, "dict is neither"),
        ([], "there are no images"),
        ((IMAGES, LABELS[:2]), "5 images but 2 labels"),
        ([(IMAGES[0], 1.0)], "the label is 1.0"),
        ([(IMAGES[0], True)], "the label is True"),
        ([(IMAGES[0], -1)], "the label is -1"),
        ([(IMAGES[0], 2**63)], "give the number of a class"),
        ([(IMAGES[0], 1), (IMAGES[0], "dog")], "'dog' is no int"),
        ([(IMAGES[0].astype(np.float32), 1)], "the image is float32"),
        ([("a.png", 1)], "the image is str"),
        ([IMAGES[0]], "item 0 is ndarray"),
        ([{"picture": 1, "label": 1}], "the keys image and label"),
        ([(np.zeros((0, 4, 3), np.uint8), 1)], "the image is uint8 [0, 4, 3]"),
        ([(np.zeros((4, 4, 2), np.uint8), 1)], "the image is uint8 [4, 4, 2]"),
        ([(Image.new("F", (4, 4)), 1)], "floating-point numbers"),
    ],
)
def test_what_cannot_be_saved_is_refused_and_nothing_is_written(
    tmp_path: Path, given: Any, says: str
) -> None:
    with pytest.raises(DataError) as refused:
        save_images(given, tmp_path / "t.parquet")
    assert says in str(refused.value)
    assert not list(tmp_path.iterdir())


def test_another_ending_and_another_number_of_groups_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"ends in \.parquet, not 't\.csv'"):
        save_images((IMAGES, LABELS), tmp_path / "t.csv")
    with pytest.raises(DataError, match="2 groups for 5 images"):
        save_images((IMAGES, LABELS), tmp_path / "t.parquet", groups=[1, 2])


def test_a_file_may_say_what_each_image_is_for(tmp_path: Path) -> None:
    data = load_dataset("cifar10_sample", "test")
    parts_N = np.random.default_rng(0).permutation(np.arange(90) % 3).astype(np.int8)
    path = save_images(
        (data.images_NHWC[:90], data.labels_N[:90]), tmp_path / "t.parquet", parts=parts_N.tolist()
    )
    source = ImageSource(setting="images", location=path)
    listing = list_images(source, data.classes)
    np.testing.assert_array_equal(listing.parts_N, parts_N)
    clean = DataSource(name="images", root=str(path), classes=data.classes)
    digests_N = pixel_digests(data.images_NHWC[:90])
    for split, part in PARTS.items():
        found = load_dataset(clean, split)
        assert set(pixel_digests(found.images_NHWC[:])) == set(digests_N[parts_N == part])
    files, rows, facts = write_images(
        tmp_path, {"collect": listing}, name="one", image_size=32, most_unreadable=0.0
    )
    manifest = write_manifest(
        tmp_path, stage="images", config={}, inputs={}, files=files, rows=rows, facts=facts
    )
    found_N = read_images(tmp_path, manifest, name="one", classes=data.classes, seed=0).parts_N
    np.testing.assert_array_equal(found_N, parts_N)
