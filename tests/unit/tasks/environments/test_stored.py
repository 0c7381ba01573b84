"""Check that a user's images are decoded once into storage, and that what cannot be used is listed or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.csv
import pytest
from PIL import Image

from tasks.datasets import ImageSource, list_images, load_dataset
from tasks.datasets.images import decode_image
from tasks.environments import UserImages, listing_digest, read_images, write_images
from tasks.errors import DataError
from tasks.splits import JUDGE
from tasks.storage.manifest import Manifest, write_manifest

TEST = load_dataset("cifar10_sample", "test")
CLASSES = TEST.classes


def photographs(folder: Path, rows: range = range(40), *, suffix: str = "png") -> Path:
    """Write images of the sample into class folders."""
    for row in rows:
        path = folder / CLASSES[TEST.labels_N[row]] / f"{row}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(TEST.images_NHWC[row]).save(path)
    return folder


def stored(folder: Path, *, most: float = 0.05, side: int = 32, **locations: Path) -> Manifest:
    parts = {
        part: list_images(ImageSource(setting="environments.cam.images", location=path), CLASSES)
        for part, path in locations.items()
    }
    files, rows, facts = write_images(folder, parts, name="cam", image_size=side, most_unreadable=most)
    return write_manifest(
        folder, stage="images cam", config={}, inputs={}, files=files, rows=rows, facts=facts
    )


def opened(folder: Path, manifest: Manifest) -> UserImages:
    return read_images(folder, manifest, name="cam", classes=CLASSES, seed=0)


def test_images_come_back_as_one_reader_decodes_them(tmp_path: Path) -> None:
    given = photographs(tmp_path / "given", range(12))
    Image.open(given / CLASSES[TEST.labels_N[0]] / "0.png").convert("CMYK").save(given / "cat" / "c.jpg")
    Image.fromarray(np.full((40, 60), 40000, np.uint16)).save(given / "cat" / "grey16.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(TEST.images_NHWC[3]).save(given / "cat" / "turned.jpg", exif=exif)
    manifest = stored(tmp_path / "store", collect=given)
    found = opened(tmp_path / "store", manifest)
    assert len(found.names) == 15
    for name, label, pixels in zip(found.names, found.labels_N, found.images_NHWC, strict=True):
        np.testing.assert_array_equal(pixels, decode_image(Path(name), 32))
        assert CLASSES[label] == Path(name).parent.name
    assert found.images(np.array([2, 1]), 0).shape == (2, 32, 32, 3)
    assert manifest.facts["image_size"] == 32


def test_the_same_images_are_set_aside_each_time(tmp_path: Path) -> None:
    given = photographs(tmp_path / "given")
    one = stored(tmp_path / "one", collect=given)
    two = stored(tmp_path / "two", collect=given)
    assert one.files == two.files
    first, second = opened(tmp_path / "one", one), opened(tmp_path / "two", two)
    np.testing.assert_array_equal(first.parts_N, second.parts_N)
    assert (first.parts_N == JUDGE).sum() == 8


def test_a_holdout_judges_and_its_near_duplicates_are_not_learned_from(tmp_path: Path) -> None:
    given = photographs(tmp_path / "given")
    held = photographs(tmp_path / "held", range(40, 50))
    near = given / CLASSES[TEST.labels_N[41]] / "near.jpg"
    Image.fromarray(TEST.images_NHWC[41]).save(near, quality=95)
    found = opened(tmp_path / "store", stored(tmp_path / "store", collect=given, holdout=held))
    names = [Path(name).name for name in found.names]
    judges = {name for name, part in zip(names, found.parts_N, strict=True) if part == JUDGE}
    assert judges == {f"{row}.png" for row in range(40, 50)}
    assert found.parts_N[names.index("near.jpg")] not in (JUDGE, 0, 1)


def test_unreadable_images_are_listed_with_their_reasons(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    given = photographs(tmp_path / "given")
    (given / "cat" / "text.jpg").write_text("no image")
    whole = (given / CLASSES[TEST.labels_N[0]] / "0.png").read_bytes()
    (given / "cat" / "cut.png").write_bytes(whole[: len(whole) // 2])
    manifest = stored(tmp_path / "store", collect=given)
    assert manifest.rows == {"images": 40, "holdout": 0, "unreadable": 2}
    table = pyarrow.csv.read_csv(tmp_path / "store" / "unreadable.csv").to_pydict()
    assert [Path(name).name for name in table["file"]] == ["cut.png", "text.jpg"]
    assert table["reason"][1] == "not an image"
    assert "2 images cannot be read and are left out" in caplog.text
    with pytest.raises(
        DataError, match=r"2 of 42 images cannot be read, more than 4%\..*environments\.cam\.unread"
    ):
        stored(tmp_path / "other", collect=given, most=0.04)
    assert not list((tmp_path / "other").glob("*"))


def test_an_image_with_two_labels_is_refused(tmp_path: Path) -> None:
    given = photographs(tmp_path / "given")
    content = (given / CLASSES[TEST.labels_N[0]] / "0.png").read_bytes()
    other = next(name for name in CLASSES if name != CLASSES[TEST.labels_N[0]])
    (given / other / "copy.png").write_bytes(content)
    with pytest.raises(DataError, match=r"the same image has two labels: .*0\.png") as refused:
        stored(tmp_path / "store", collect=given)
    assert "copy.png" in str(refused.value)


def test_a_holdout_that_shares_images_is_refused_with_their_names(tmp_path: Path) -> None:
    given = photographs(tmp_path / "given")
    held = photographs(tmp_path / "held", range(38, 50))
    with pytest.raises(DataError, match="the holdout shares images") as refused:
        stored(tmp_path / "store", collect=given, holdout=held)
    for row in (38, 39):
        assert f"/held/{CLASSES[TEST.labels_N[row]]}/{row}.png" in str(refused.value)


@pytest.mark.parametrize("how", ["gone", "folder"])
def test_a_file_that_changes_after_it_was_listed_is_unreadable(tmp_path: Path, how: str) -> None:
    given = photographs(tmp_path / "given")
    parts = {"collect": list_images(ImageSource(setting="s", location=given), CLASSES)}
    path = given / CLASSES[TEST.labels_N[0]] / "0.png"
    path.unlink()
    if how == "folder":
        path.mkdir()
    _, rows, _ = write_images(tmp_path / "store", parts, name="cam", image_size=32, most_unreadable=0.1)
    assert rows["unreadable"] == 1


def test_the_digest_of_a_listing_changes_with_files_labels_and_groups(tmp_path: Path) -> None:
    def digest(text: str) -> str:
        (tmp_path / "t.csv").write_text(text, encoding="utf-8")
        return listing_digest(
            {"collect": list_images(ImageSource(setting="s", location=tmp_path / "t.csv"), CLASSES)}
        )

    texts = [
        "path,label,group\na.png,cat,x\nb.png,dog,y\n",
        "path,label,group\na.png,dog,x\nb.png,dog,y\n",
        "path,label,group\na.png,cat,x\nb.png,dog,z\n",
        "path,label,group\na.png,cat,x\nc.png,dog,y\n",
        "path,label\na.png,cat\nb.png,dog\n",
    ]
    assert len(set(map(digest, texts))) == len(texts)
    (tmp_path / "a.png").write_bytes(b"123")
    assert digest(texts[0]) != digest(texts[0].replace("a.png", "b.png"))


@pytest.mark.parametrize("damage", ["cut", "rows"])
def test_damaged_storage_is_refused(tmp_path: Path, damage: str) -> None:
    manifest = stored(tmp_path / "store", collect=photographs(tmp_path / "given"))
    changed: Any = manifest
    if damage == "cut":
        path = tmp_path / "store" / "images.bin"
        path.write_bytes(path.read_bytes()[:-1])
    else:
        changed = Manifest(**{**vars(manifest), "rows": {"images": 39}})
    with pytest.raises(DataError, match="does not match its manifest"):
        opened(tmp_path / "store", changed)
