"""Test the contact sheet: every corruption at every severity in its place, and its error messages."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from metarepair.cli import main
from metarepair.reports.contact_sheet import (
    GAP,
    HEADER,
    LABEL_WIDTH,
    contact_sheet,
    describe_corruptions,
    load_rgb,
    shrunk,
    table_for,
)
from plugin_packages import install, plugin_path
from tasks.corruptions import CORRUPTIONS, corrupt
from tasks.datasets import load_dataset


@pytest.fixture
def image():
    return load_dataset("cifar10_sample", "test").images_NHWC[7]


@pytest.fixture
def image_path(image, tmp_path):
    path = tmp_path / "dog.png"
    Image.fromarray(image).save(path)
    return path


def test_each_tile_is_the_corrupted_image_enlarged(image):
    sheet = np.asarray(contact_sheet(image, table="cifar", seed=3))
    side = 128
    for row, name in enumerate(CORRUPTIONS):
        for column in range(6):
            top, left = HEADER + row * (side + GAP), LABEL_WIDTH + column * (side + GAP)
            tile = sheet[top : top + side : 4, left : left + side : 4]
            expected = image
            if column:
                (expected,) = corrupt(
                    image[None], image_ids_B=[0], corruption=name, severity=column, seed=3, table="cifar"
                )
            assert np.array_equal(tile, expected), (name, column)


@pytest.mark.parametrize(
    ("size", "shape"), [((300, 500), (134, 224)), ((8, 8), (128, 128)), ((40, 100), (40, 100))]
)
def test_tiles_keep_the_image_s_shape(size, shape):
    rows, columns = shape
    sheet = contact_sheet(np.zeros((*size, 3), np.uint8), table="cifar")
    assert sheet.size == (LABEL_WIDTH + 6 * (columns + GAP), HEADER + 19 * (rows + GAP))


def test_the_table_of_the_nearest_image_size_is_used():
    assert [table_for(s, 400) for s in (8, 32, 40, 64, 100, 150, 224, 3000)] == [
        "cifar",
        "cifar",
        "cifar",
        "tinyimagenet",
        "tinyimagenet",
        "imagenet",
        "imagenet",
        "imagenet",
    ]


def test_the_list_has_all_names_and_constants():
    text = describe_corruptions("imagenet")
    assert len(text.splitlines()) == 20
    for name, corruption in CORRUPTIONS.items():
        assert f"{name} " in text
        assert f" {corruption.short} " in text
    assert "0.08  0.12  0.18  0.26  0.38" in text


def test_the_list_has_plugins_and_the_errors_of_broken_ones(tmp_path, monkeypatch):
    with plugin_path(monkeypatch):
        install(tmp_path / "good", version="1.4")
        install(tmp_path / "bad", code="1 / 0", entries={"broken": "OWN"}, distribution="bad-kit")
        *published, good, bad = describe_corruptions("imagenet").splitlines()
    assert len(published) == 20
    assert good.split() == ["grains", "noise", "10", "20", "40", "60", "80", "(of", "grain-kit==1.4)"]
    assert "'broken' of bad-kit 1.0" in bad


def test_the_command_writes_the_sheet_and_prints_its_path(image_path, tmp_path, capsys):
    out = tmp_path / "new" / "sheet.png"
    assert main(["corruptions", "--image", str(image_path), "--out", str(out)]) == 0
    assert str(out) in capsys.readouterr().out
    with Image.open(out) as sheet:
        assert sheet.size == (LABEL_WIDTH + 6 * 131, HEADER + 19 * 131)
    assert [p.name for p in out.parent.iterdir()] == ["sheet.png"]


def test_a_photograph_is_shrunk_with_a_note_and_progress_is_shown(tmp_path, capsys, monkeypatch):
    sizes = []

    def as_it_was(images, **_):
        sizes.append(images.shape)
        return images

    monkeypatch.setattr("metarepair.reports.contact_sheet.corrupt", as_it_was)
    photo, out = tmp_path / "photo.jpg", tmp_path / "sheet.jpg"
    Image.new("RGB", (2000, 1500), (9, 99, 200)).save(photo)
    assert main(["corruptions", "--image", str(photo), "--out", str(out)]) == 0
    said = capsys.readouterr()
    assert "shrunk from 2000x1500 to 500x375 pixels" in said.out
    assert "Severity constants: table imagenet. Written to" in said.out
    assert "corruptions: 95 of 95 pictures" in said.err
    assert set(sizes) == {(1, 375, 500, 3)}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((500, 300), (500, 300)),
        ((501, 300), (500, 299)),
        ((300, 4000), (38, 500)),
        ((8, 2000), (8, 2000)),
        ((16, 2000), (8, 1000)),
    ],
)
def test_an_image_is_shrunk_to_a_size_that_the_sheet_and_corruptions_accept(given, expected):
    assert shrunk(np.zeros((*given, 3), np.uint8)).shape[:2] == expected


def test_grey_transparent_and_turned_files_are_read_upright_on_white(tmp_path):
    grey = tmp_path / "grey.png"
    Image.new("L", (9, 12), 77).save(grey)
    assert load_rgb(grey).shape == (12, 9, 3)
    deep = tmp_path / "deep.png"
    Image.fromarray(np.full((12, 9), 0x4DFF, np.uint16)).save(deep)
    assert (load_rgb(deep) == 78).all()  # 19,967 of 65,535, rounded as in a data set
    clear = tmp_path / "clear.png"
    Image.new("RGBA", (9, 12), (0, 0, 0, 0)).save(clear)
    assert (load_rgb(clear) == 255).all()
    turned = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.new("RGB", (9, 12)).save(turned, exif=exif)
    assert load_rgb(turned).shape == (9, 12, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--image FILE and --out FILE together"),
        (["--image", "{image}"], "--image FILE and --out FILE together"),
        (["--image", "nowhere.png", "--out", "s.png"], "nowhere.png does not exist"),
        (["--image", "{text}", "--out", "s.png"], "cannot be read as an image"),
        (["--image", "{image}", "--out", "s.gif"], "neither .png nor .jpg"),
        (["--image", "{image}", "--out", "s.png", "--table", "cifr"], "did you mean 'cifar'"),
        (["--image", "{tiny}", "--out", "s.png"], "at least 8x8"),
        (["--image", "{image}", "--out", "{image}"], "is the image itself"),
        (["--image", "{image}", "--out", "{text}/s.png"], "cannot be written"),
        (["--image", "{image}", "--out", "{folder}"], "cannot be written"),
        (["--image", "{image}", "--out", "s" * 300 + ".png"], "cannot be written"),
        (["--image", "s" * 300, "--out", "s.png"], "cannot be read as an image"),
        (["--image", "{image}", "--out", "s.png", "--table", ""], "no severity table ''"),
        (["--image", "{floats}", "--out", "s.png"], "its pixels are floating-point numbers"),
        (["--list", "--table", "cifr"], "did you mean 'cifar'"),
        (["--list", "--table", ""], "no severity table ''"),
        (["--list", "--image", "{image}"], "--image FILE and --out FILE together"),
        (["--list", "--out", "s.png"], "--image FILE and --out FILE together"),
    ],
)
def test_bad_input_is_one_paragraph_and_writes_nothing(
    arguments, message, image_path, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    text, tiny = tmp_path / "text.png", tmp_path / "tiny.png"
    text.write_text("no image")
    Image.new("RGB", (7, 30)).save(tiny)
    floats = tmp_path / "floats.tiff"
    Image.fromarray(np.full((30, 30), 0.5, np.float32)).save(floats)
    folder = tmp_path / "folder.png"
    folder.mkdir()
    before = {p: p.read_bytes() if p.is_file() else b"" for p in tmp_path.rglob("*")}
    given = [
        a.format(image=image_path, text=text, tiny=tiny, folder=folder, floats=floats) for a in arguments
    ]
    assert main(["corruptions", *given]) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert not said.out
    assert {p: p.read_bytes() if p.is_file() else b"" for p in tmp_path.rglob("*")} == before
