"""Write environments that a user could have: folders of JPEG photographs by class, with a table of labels beside them.

    compression   JPEG, made smaller and larger again, JPEG: a picture that was forwarded and shown by other programs
    colour        white balance, gamma, vignette, JPEG: a cheap camera under warm lamps
    geometric     perspective and rotation, blur: a camera that looks from the side and is not quite in focus

None of them is one of the 19 corruptions. Like a user's own photographs, they have odd file names, one CMYK file, one
file that is stored on its side with an EXIF orientation, and two files that cannot be read.

The pixels and the group of a photograph depend on the recipe, the seed and the image's id, not on the order or number
of the images; the bytes of its file also depend on the versions of Pillow and OpenCV. Writes OUT/RECIPE/CLASS/FILE.jpg
and OUT/RECIPE/labels.csv, with the columns path (from the table's folder), label, group (a day or a device).
Command: python -m benchmarks.environments --recipe all --data cifar10 --images 2000 --out FOLDER
"""

from __future__ import annotations

import argparse
import csv
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from benchmarks.environment_chains import (
    RECORDED,
    Draws,
    Strengths,
    change_colours,
    compress,
    jpeg,
    move_camera,
)
from tasks.datasets import ArrayDataset, load_dataset
from tasks.errors import DataError, UserError
from tasks.keys import keyed_generator
from tasks.records import Ints, Pixels

# N images, H W C pixels

Kind = Literal["usual", "CMYK", "rotated", "truncated", "no image"]

SPECIAL: tuple[Kind, ...] = ("CMYK", "rotated", "truncated", "no image")  # one photograph of each
COLUMNS = ("path", "label", "group")
TABLE = "labels.csv"
LEAST = 20  # images: room for every odd name and every special photograph
LONGEST_BYTES = 200  # of a file name; file systems take 255
TURN_RIGHT = 6  # the EXIF orientation of an image that must be turned right by 90° to be upright
NO_IMAGE = b"<!DOCTYPE html>\n<title>404 Not Found</title>\n<p>The photograph is no longer here.</p>\n"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A chain of changes, and how its photographs are named and grouped.

    Attributes:
        change: the chain on uint8 pixels [H, W, 3], without the JPEG of the written file.
        quality: name of the strength that is the JPEG quality of the file.
        subsampling: Pillow's name of the colour resolution of the file.
        file: the usual file name, to be formatted with the image's id.
        group: the name of a group, to be formatted with its number from 1.
        groups: number of groups.
    """

    change: Callable[[Pixels, Draws, Strengths], Pixels]
    quality: str
    subsampling: str = "4:2:0"
    file: str
    group: str
    groups: int


RECIPES: Mapping[str, Recipe] = {
    "compression": Recipe(
        change=compress, quality="last_quality", file="IMG-WA{:05d}.jpg", group="2024-05-{:02d}", groups=25
    ),
    "colour": Recipe(
        change=change_colours, quality="colour_quality", file="IMG_{:05d}.jpg", group="phone {}", groups=12
    ),
    "geometric": Recipe(
        change=move_camera,
        quality="geometric_quality",
        subsampling="4:4:4",
        file="frame_{:06d}.jpg",
        group="camera {}",
        groups=12,
    ),
}
# Each is the name of one of every hundred photographs; the others have the recipe's usual name.
ODD_NAMES: tuple[str, ...] = (
    "a picture {} of the yard.jpg",
    "left, right and {}.jpg",
    '"the good one", says Ann\'s {}.jpg',
    "Straße_naïve_写真_{}.jpg",
    "Cafe\u0301 {}.jpg",  # é as two characters, as macOS stored it
    "-{}.jpg",
    "DSC{:05d}.JPG",
    "100% #{}; $HOME & more.jpg",
    "a name that grew with every copy {}.jpg",
)
FILLER = " (copy)"  # lengthens the last of these up to LONGEST_BYTES


@dataclass(frozen=True, kw_only=True)
class Photograph:
    """A written photograph: its row of the table, the id of the image that it was made from, and its kind.

    Attributes:
        path: path relative to the table, with `/`.
        label: name of the class.
        group: name of the device or day.
        image_id: id of the clean image in its data set.
        kind: `usual` or one of `SPECIAL`.
    """

    path: str
    label: str
    group: str
    image_id: int
    kind: Kind


def choose_rows(data: ArrayDataset, recipe: str, *, images: int, seed: int) -> Ints:
    """Choose the rows [N] of the clean images of an environment, in an order drawn from the seed and their ids.

    The recipes take consecutive parts of one order, so no image is in two environments if the split has three times
    as many images as asked for. Raises DataError if it has fewer than asked for, and for fewer than `LEAST`.
    """
    there = len(data.labels_N)
    if images < LEAST:
        raise DataError(
            f"--images {images} is too few: an environment has at least {LEAST} photographs, so that it has room for "
            "every odd name and special file. Ask for more."
        )
    if images > there:
        raise DataError(
            f"The {data.split} split of {data.name} has {there:,} images, fewer than the {images:,} photographs asked "
            f"for, and no image is used twice. Give --images {there} or fewer, or another --data or --split."
        )
    lots = [keyed_generator("environment order", seed, int(i)).random() for i in data.image_ids_N]
    order = np.argsort(lots, kind="stable")
    first = list(RECIPES).index(recipe) * images
    return np.asarray(order[(first + np.arange(images)) % there], np.int64)


def group_of(recipe: str, *, seed: int, image_id: int) -> int:
    """Draw the number of a photograph's group, from 1."""
    return 1 + int(
        keyed_generator("environment group of", recipe, seed, image_id).integers(RECIPES[recipe].groups)
    )


def photograph(
    image_HWC: Pixels, recipe: str, *, seed: int, image_id: int, strengths: Strengths = RECORDED
) -> Pixels:
    """Change one clean image as the recipe says, without the JPEG of its file.

    Args:
        image_HWC: uint8 [H, W, 3], RGB.
        recipe: a name of `RECIPES`.
        seed: seed of the environment.
        image_id: id of the image in its data set.
        strengths: other strengths than the recorded ones.

    Returns:
        uint8 [H, W, 3], RGB, of the same size.
    """
    draws = Draws(recipe, seed=seed, group=group_of(recipe, seed=seed, image_id=image_id), image_id=image_id)
    return RECIPES[recipe].change(np.ascontiguousarray(image_HWC), draws, strengths)


def encode(image_HWC: Pixels, recipe: str, *, kind: Kind = "usual", strengths: Strengths = RECORDED) -> bytes:
    """Encode a changed image as the bytes of its file.

    Args:
        image_HWC: uint8 [H, W, 3], RGB, from `photograph`.
        recipe: a name of `RECIPES`, which has the JPEG quality.
        kind: what is special about the file.
        strengths: other strengths than the recorded ones.

    Returns:
        A JPEG file; for `truncated` without the second half of its pixels, for `no image` a page of HTML.
    """
    made = RECIPES[recipe]
    quality = int(getattr(strengths, made.quality))
    if kind == "no image":
        return NO_IMAGE
    if kind == "CMYK":
        return jpeg(image_HWC, quality, "4:4:4", mode="CMYK")  # lower resolutions are for YCbCr
    if kind == "rotated":  # stored turned left
        return jpeg(np.rot90(image_HWC), quality, made.subsampling, orientation=TURN_RIGHT)
    content = jpeg(image_HWC, quality, made.subsampling)
    if kind == "truncated":
        pixels = content.index(b"\xff\xda")  # the marker that starts the coded pixels
        return content[: (pixels + len(content)) // 2]
    return content


def file_name(recipe: str, position: int, image_id: int) -> str:
    """Return the name of the photograph at a position from 0: of every hundred, the first ones have the odd names."""
    place = position % 100
    if place >= len(ODD_NAMES):
        return RECIPES[recipe].file.format(image_id)
    name = ODD_NAMES[place].format(image_id)
    if place == len(ODD_NAMES) - 1:
        stem, suffix = name.removesuffix(".jpg"), ".jpg"
        return stem + FILLER * ((LONGEST_BYTES - len(name.encode())) // len(FILLER)) + suffix
    return name


def write_environment(
    out: Path, data: ArrayDataset, *, recipe: str, images: int, seed: int, strengths: Strengths = RECORDED
) -> tuple[Photograph, ...]:
    """Write one environment, `out`/`recipe`; the folder appears complete or not at all.

    Args:
        out: folder for environments; made if it does not exist.
        data: clean images.
        recipe: a name of `RECIPES`.
        images: number of photographs, including those that cannot be read.
        seed: seed of the choice of images and of all changes.
        strengths: other strengths than the recorded ones.

    Returns:
        The photographs, in the order of the table.

    Raises:
        DataError: the folder exists, the split has too few images, or a class cannot be the name of a folder.
    """
    folder, part = out / recipe, out / f"{recipe}.part"
    check_free(out, [recipe])
    check_class_names(data.classes)
    rows = choose_rows(data, recipe, images=images, seed=seed)
    written = []
    _make(out, exist_ok=True)
    _make(part)
    try:
        for position, row in enumerate(rows):
            one = _describe(data, int(row), recipe=recipe, position=position, images=images, seed=seed)
            changed = photograph(
                data.images_NHWC[row], recipe, seed=seed, image_id=one.image_id, strengths=strengths
            )
            (part / one.label).mkdir(exist_ok=True)
            (part / one.path).write_bytes(encode(changed, recipe, kind=one.kind, strengths=strengths))
            written.append(one)
        with (part / TABLE).open("w", newline="", encoding="utf-8") as stream:
            table = csv.writer(stream, lineterminator="\n")
            table.writerow(COLUMNS)
            table.writerows((one.path, one.label, one.group) for one in written)
        part.rename(folder)
    except BaseException:  # also Ctrl-C
        shutil.rmtree(part, ignore_errors=True)
        raise
    return tuple(written)


def _describe(
    data: ArrayDataset, row: int, *, recipe: str, position: int, images: int, seed: int
) -> Photograph:
    """Describe the photograph of one row. The special files come last and have usual names."""
    image_id, label = int(data.image_ids_N[row]), data.classes[data.labels_N[row]]
    special = position - (images - len(SPECIAL))
    name = file_name(recipe, position, image_id) if special < 0 else RECIPES[recipe].file.format(image_id)
    return Photograph(
        path=f"{label}/{name}",
        label=label,
        group=RECIPES[recipe].group.format(group_of(recipe, seed=seed, image_id=image_id)),
        image_id=image_id,
        kind=SPECIAL[special] if special >= 0 else "usual",
    )


def check_free(out: Path, recipes: Sequence[str]) -> None:
    """Raise DataError if the folder of one of these environments exists, complete or unfinished."""
    for recipe in recipes:
        if (out / recipe).exists() or (out / recipe).is_symlink():
            raise DataError(
                f"{out / recipe} exists, and an environment is never overwritten. Give another --out, or remove it."
            )
        if (out / f"{recipe}.part").exists():
            raise DataError(
                f"{out / recipe}.part exists: another command is writing it, or was killed. If none is running, "
                "remove it."
            )


def check_class_names(classes: Sequence[str]) -> None:
    """Raise DataError for a class that cannot be the name of a folder, or whose folder would be hidden."""
    for name in classes:
        if not name or name.startswith(".") or "/" in name or "\0" in name or name == TABLE:
            raise DataError(
                f"The class {name!r} cannot be the name of a folder. Rename it in the data set, or give another --data."
            )


def _make(folder: Path, *, exist_ok: bool = False) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=exist_ok)
    except OSError as error:
        raise DataError(
            f"{folder} cannot be made ({error.strerror or error}). Name a folder that can be written in --out."
        ) from error


def summary(folder: Path, written: Sequence[Photograph]) -> str:
    """Return a paragraph: how many photographs, classes and groups, and which files are special."""
    special = "; ".join(f"{p.kind}: {p.path}" for p in written if p.kind != "usual")
    return (
        f"{folder}: {len(written):,} photographs of {len({p.label for p in written})} classes in "
        f"{len({p.group for p in written})} groups, listed in {TABLE}. {special}"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the environments from the command line. Returns 2 for a wrong input, with one paragraph on stderr."""
    options = argparse.ArgumentParser(
        prog="python -m benchmarks.environments", description=__doc__.splitlines()[0]
    )
    options.add_argument("--recipe", choices=[*RECIPES, "all"], default="all")
    options.add_argument(
        "--data", default="cifar10", metavar="NAME", help="data set of clean images (cifar10)"
    )
    options.add_argument("--root", metavar="FOLDER", help="its folder; default: METAREPAIR_DATA")
    options.add_argument("--split", choices=["train", "test"], default="test")
    options.add_argument("--images", type=int, default=2000, metavar="N", help="photographs of each (2000)")
    options.add_argument("--seed", type=int, default=0, metavar="N")
    options.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    given = options.parse_args(arguments)
    recipes = list(RECIPES) if given.recipe == "all" else [given.recipe]
    try:
        check_free(given.out, recipes)
        data = load_dataset(given.data, given.split, root=given.root)
        for recipe in recipes:
            written = write_environment(given.out, data, recipe=recipe, images=given.images, seed=given.seed)
            print(summary(given.out / recipe, written))
    except (UserError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
