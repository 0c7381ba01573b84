"""Check the environments of benchmarks/environments.py: their files, their table, and that they depend on ids alone."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import environments
from benchmarks.environment_chains import ORIENTATION, Draws, Strengths, change_colours, compress, move_camera
from benchmarks.environments import RECIPES, Photograph, encode, photograph, write_environment
from tasks.datasets import ArrayDataset, load_dataset
from tasks.datasets.images import UnreadableImageError, decode_image
from tasks.errors import DataError
from tasks.keys import keyed_generator

IMAGES, SEED = 120, 3
Written = dict[str, tuple[Photograph, ...]]


@pytest.fixture(scope="module")
def data() -> ArrayDataset:
    return load_dataset("cifar10_sample", "test")


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("environments")


@pytest.fixture(scope="module")
def written(out: Path, data: ArrayDataset) -> Written:
    return {name: write_environment(out, data, recipe=name, images=IMAGES, seed=SEED) for name in RECIPES}


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "labels.csv").open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def clean_of(data: ArrayDataset, one: Photograph) -> np.ndarray:
    (row,) = np.flatnonzero(data.image_ids_N == one.image_id)
    assert data.classes[data.labels_N[row]] == one.label
    return data.images_NHWC[row]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_table_lists_exactly_the_files_that_are_there(out: Path, written: Written, recipe: str) -> None:
    rows = table(out / recipe)
    files = {str(p.relative_to(out / recipe)) for p in (out / recipe).rglob("*") if p.is_file()}
    assert len(rows) == len(written[recipe]) == IMAGES
    assert {row["path"] for row in rows} == files - {"labels.csv"}
    assert (out / recipe / "labels.csv").read_bytes().startswith(b"path,label,group\n")
    assert all(Path(row["path"]).parent.name == row["label"] for row in rows)
    assert {row["path"].rpartition(".")[2] for row in rows} == {"jpg", "JPG"}
    assert not list(out.glob("*.part"))


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_group_has_several_photographs_and_several_classes(
    out: Path, written: Written, recipe: str
) -> None:
    rows = table(out / recipe)
    groups = Counter(row["group"] for row in rows)
    assert len(groups) > 5
    assert np.median(list(groups.values())) >= 3
    common, _ = groups.most_common(1)[0]
    assert len({row["label"] for row in rows if row["group"] == common}) > 1


@pytest.mark.parametrize("recipe", RECIPES)
def test_all_but_two_files_are_read_and_differ_plausibly_from_the_clean_images(
    out: Path, data: ArrayDataset, written: Written, recipe: str
) -> None:
    unreadable, differences = [], []
    for one in written[recipe]:
        try:
            pixels = decode_image(out / recipe / one.path)
        except UnreadableImageError:
            unreadable.append(one.kind)
            continue
        clean = clean_of(data, one).astype(int)
        assert pixels.shape == clean.shape
        differences.append(np.abs(pixels - clean).mean())
    assert sorted(unreadable) == ["no image", "truncated"]
    low, high = {"compression": (5, 20), "colour": (35, 75), "geometric": (12, 40)}[recipe]
    assert low < np.mean(differences) < high
    assert min(differences) > 1


@pytest.mark.parametrize("recipe", RECIPES)
def test_one_file_is_cmyk_and_one_is_stored_on_its_side(
    out: Path, data: ArrayDataset, written: Written, recipe: str
) -> None:
    modes, turned = Counter[str](), []
    for one in written[recipe]:
        if one.kind != "no image":
            with Image.open(out / recipe / one.path) as image:
                assert image.format == "JPEG"
                modes[image.mode] += 1
                turned += [one] if image.getexif().get(ORIENTATION) else []
    assert modes == {"CMYK": 1, "RGB": IMAGES - 2}
    special = {one.kind: one for one in written[recipe]}
    assert turned == [special["rotated"]]
    for kind in ("CMYK", "rotated"):
        one = special[kind]
        wanted = photograph(clean_of(data, one), recipe, seed=SEED, image_id=one.image_id).astype(int)
        read = decode_image(out / recipe / one.path).astype(int)
        upright = np.abs(read - wanted).mean()
        assert upright < 12  # the rounding of JPEG
        assert all(np.abs(np.rot90(read, k) - wanted).mean() > 2 * upright for k in (1, 2, 3))


def test_every_truncated_file_is_refused_and_starts_like_a_jpeg(data: ArrayDataset) -> None:
    for recipe in RECIPES:
        for image in data.images_NHWC[:50]:
            content = encode(image, recipe, kind="truncated")
            assert content.startswith(b"\xff\xd8")
            with pytest.raises(UnreadableImageError):
                decode_image(content)
            assert decode_image(encode(image, recipe)).shape == image.shape


def test_odd_names_are_there_and_no_name_is_longer_than_allowed(written: Written) -> None:
    for photographs in written.values():
        names = [one.path.split("/")[1] for one in photographs]
        assert len(set(names)) == IMAGES
        assert max(len(name.encode()) for name in names) in range(190, 201)
        for part in (" ", ",", '"', "'", "#", "e\u0301", "写"):
            assert any(part in name for name in names), part
        assert any(name.startswith("-") for name in names)
        assert any(name.endswith(".JPG") for name in names)
        usual = Counter(len(name) for name in names).most_common(1)[0][1]
        assert usual > IMAGES / 2


def test_the_same_command_writes_the_same_bytes_and_another_seed_does_not(
    tmp_path: Path, out: Path, data: ArrayDataset, written: Written
) -> None:
    write_environment(tmp_path / "a", data, recipe="colour", images=IMAGES, seed=SEED)
    write_environment(tmp_path / "b", data, recipe="colour", images=IMAGES, seed=SEED + 1)
    first = contents(out / "colour")
    assert contents(tmp_path / "a/colour") == first
    assert set(contents(tmp_path / "b/colour")) != set(first)


def test_a_photograph_depends_on_neither_order_nor_number_of_the_images(
    tmp_path: Path, out: Path, data: ArrayDataset, written: Written
) -> None:
    turned = dataclasses.replace(
        data,
        image_ids_N=data.image_ids_N[::-1],
        labels_N=data.labels_N[::-1],
        images_NHWC=np.ascontiguousarray(data.images_NHWC[::-1]),
    )
    write_environment(tmp_path, turned, recipe="geometric", images=IMAGES, seed=SEED)
    assert contents(tmp_path / "geometric") == contents(out / "geometric")
    fewer = write_environment(tmp_path / "fewer", data, recipe="compression", images=60, seed=SEED)
    more = {one.image_id: one for one in written["compression"]}
    usual = [one for one in fewer if one.kind == "usual" and more[one.image_id].kind == "usual"]
    assert len(usual) == 56
    for one in usual:
        other = more[one.image_id]
        assert one.group == other.group
        there = (tmp_path / "fewer/compression" / one.path).read_bytes()
        assert there == (out / "compression" / other.path).read_bytes()


def test_no_image_is_in_two_environments_of_a_large_split(written: Written) -> None:
    ids = [one.image_id for photographs in written.values() for one in photographs]
    assert len(set(ids)) == len(RECIPES) * IMAGES


def test_every_environment_of_a_whole_split_has_each_image_once(data: ArrayDataset) -> None:
    for recipe in RECIPES:
        rows = environments.choose_rows(data.head(50), recipe, images=50, seed=SEED)
        assert sorted(rows) == list(range(50))


def test_draws_stay_between_their_limits_and_a_group_shares_half_of_them() -> None:
    drawn = np.array(
        [
            [Draws("colour", seed=0, group=g, image_id=100 * g + i).between((2.0, 4.0)) for i in range(50)]
            for g in range(20)
        ]
    )
    assert drawn.min() >= 2
    assert drawn.max() <= 4
    # Half of a uniform draw over [2, 4] has the variance 4 / 12 / 4, within a group and between groups.
    assert drawn.var(axis=1).mean() == pytest.approx(1 / 12, rel=0.2)
    assert drawn.mean(axis=1).var() == pytest.approx(1 / 12, rel=0.6)
    own = keyed_generator("environment photograph", "colour", 0, 7).random()
    group = keyed_generator("environment group", "colour", 0, 3).random()
    assert Draws("colour", seed=0, group=3, image_id=7).between((0.0, 2.0)) == own + group


def fixed(**values: tuple[float, float]) -> Strengths:
    return dataclasses.replace(Strengths(), **values)  # type: ignore[arg-type]


def draws() -> Draws:
    return Draws("colour", seed=0, group=1, image_id=1)


def test_a_quarter_turn_is_clockwise_and_a_tilt_enlarges_the_centre() -> None:
    image = keyed_generator("test", 1).integers(0, 256, (32, 32, 3)).astype(np.uint8)
    quarter = fixed(tilt=(0.0, 0.0), turn_degrees=(90.0, 90.0), blur=(1e-4, 1e-4))
    assert np.abs(move_camera(image, draws(), quarter).astype(int) - np.rot90(image, -1)).max() <= 1
    tilted = fixed(tilt=(0.25, 0.25), turn_degrees=(0.0, 0.0), blur=(1e-4, 1e-4))
    halves = np.zeros((32, 32, 3), np.uint8)
    halves[:, 8:] = 200  # the inner half, which fills the frame, begins here
    seen = move_camera(halves, draws(), tilted)
    assert (seen[:, 2:] == 200).all()


def test_colours_are_those_of_the_closed_form() -> None:
    image = np.full((33, 33, 3), 128, np.uint8)
    strengths = fixed(warmth_stops=(1.0, 1.0), gamma=(2.0, 2.0), vignette=(0.5, 0.5))
    seen = change_colours(image, draws(), strengths)
    grey = 128 / 255
    centre = [255 * (grey * gain) ** 2 for gain in (2**0.5, 1, 2**-0.5)]
    assert seen[16, 16] == pytest.approx(centre, abs=0.51)
    assert seen[0, 0] == pytest.approx([value / 2 for value in centre], abs=0.51)


def test_compression_removes_detail_and_colours_of_single_pixels(data: ArrayDataset) -> None:
    image = data.images_NHWC[0]
    strong, weak = (fixed(shrunk_side=(s, s)) for s in (0.3, 1.0))

    def detail(pixels: np.ndarray) -> float:
        return float(np.abs(np.diff(pixels.astype(float), axis=1)).mean())

    assert detail(compress(image, draws(), strong)) < 0.8 * detail(compress(image, draws(), weak))
    with Image.open(io.BytesIO(encode(image, "compression"))) as last:
        tables = last.quantization  # type: ignore[attr-defined]
    with Image.open(io.BytesIO(encode(image, "geometric"))) as finest:
        assert sum(tables[0]) > 5 * sum(finest.quantization[0])  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("images", "said"),
    [(2001, "has 2,000 images, fewer than the 2,001 photographs asked for"), (19, "at least 20")],
)
def test_too_many_and_too_few_images_are_refused_in_one_paragraph(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], images: int, said: str
) -> None:
    command = ["--data", "cifar10_sample", "--images", str(images), "--out", str(tmp_path / "out")]
    assert environments.main(command) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_an_existing_environment_is_never_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--data", "cifar10_sample", "--images", "20", "--out", str(tmp_path)]
    assert environments.main([*command, "--recipe", "colour"]) == 0
    assert "20 photographs" in capsys.readouterr().out
    before = contents(tmp_path)
    assert environments.main([*command, "--seed", "1"]) == 2  # refused before the first recipe is written
    assert "colour exists, and an environment is never overwritten" in capsys.readouterr().err
    assert contents(tmp_path) == before
    (tmp_path / "geometric.part").mkdir()
    assert environments.main([*command, "--recipe", "geometric"]) == 2
    assert "geometric.part exists" in capsys.readouterr().err


def test_an_interrupted_command_leaves_no_folder(
    tmp_path: Path, data: ArrayDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    def stop(*given: object, **named: object) -> bytes:
        made.append(given)
        if len(made) == 10:
            raise KeyboardInterrupt
        return b"x"

    monkeypatch.setattr(environments, "encode", stop)
    with pytest.raises(KeyboardInterrupt):
        write_environment(tmp_path, data, recipe="colour", images=20, seed=0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["", "../up", ".hidden", "a/b", "labels.csv"])
def test_a_class_that_cannot_be_a_folder_is_refused(tmp_path: Path, data: ArrayDataset, name: str) -> None:
    renamed = dataclasses.replace(data, classes=(name, *data.classes[1:]))
    with pytest.raises(DataError, match="cannot be the name of a folder"):
        write_environment(tmp_path / "out", renamed, recipe="colour", images=20, seed=0)
    assert not (tmp_path / "out").exists()


def test_an_out_that_is_a_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("kept", encoding="utf-8")
    command = ["--data", "cifar10_sample", "--images", "20", "--out", str(tmp_path / "file")]
    assert environments.main(command) == 2
    assert "cannot be made" in capsys.readouterr().err
    assert (tmp_path / "file").read_text(encoding="utf-8") == "kept"
