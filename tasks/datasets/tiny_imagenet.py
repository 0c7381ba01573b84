"""List the images of a split of the published tiny-ImageNet-200.

    tiny-imagenet-200/wnids.txt, words.txt    the 200 WordNet ids, and their English names
    tiny-imagenet-200/train/WNID/images/*.JPEG
    tiny-imagenet-200/val/images/*.JPEG, val/val_annotations.txt

Source: Le & Yang 2015. The published test split has no labels, so the validation split serves as the test split.
Labels are the ranks of the sorted WordNet ids (as in torchvision's ImageFolder and in Tiny-ImageNet-C). The id of an
image of the validation split is the rank of WNID/FILE, which is its position in Tiny-ImageNet-C.
"""

from __future__ import annotations

from pathlib import Path

from tasks.datasets.base import Split
from tasks.datasets.decoding import Listing
from tasks.datasets.image_folder import SUFFIXES, files_listing
from tasks.datasets.own_files import HIDDEN, IgnoredFiles, entries, is_hidden, iter_files
from tasks.datasets.source import DATA_VARIABLE, DatasetInfo, DataSource, table_for
from tasks.errors import DataError
from tasks.storage.paths import require_regular

FOLDER = "tiny-imagenet-200"
REMEDY = "Give the folder as it is in the published archive."
SIZE = 64
# Of the whole training split, as published with many checkpoints. For a fifth of it, 100 images per class, they are
# 0.4814, 0.4491, 0.3986 and 0.2764, 0.2686, 0.2818.
MEAN, STD = (0.4802, 0.4481, 0.3975), (0.2770, 0.2691, 0.2821)


def describe_tiny_imagenet(source: DataSource) -> DatasetInfo:
    """The classes, with their English names, and the image size."""
    size = source.image_size or SIZE
    return DatasetInfo(
        classes=class_names(tiny_imagenet_folder(source)),
        image_size=size,
        corruption_table=table_for(size),
        mean=source.mean or MEAN,
        std=source.std or STD,
    )


def list_tiny_imagenet(source: DataSource, split: Split) -> Listing:
    """List the images of a split, sorted by WordNet id and file name. Raises DataError for missing files."""
    folder = tiny_imagenet_folder(source)
    wnids = read_wnids(folder)
    passed = IgnoredFiles(folder)
    pairs = _training(folder, wnids, passed) if split == "train" else _validation(folder, wnids, passed)
    number = {wnid: label for label, wnid in enumerate(wnids)}
    files, labels = [path for _, path in pairs], [number[wnid] for wnid, _ in pairs]
    return files_listing(source, split, class_names(folder), files, labels, passed_over=passed.notes())


def read_wnids(folder: Path) -> tuple[str, ...]:
    """The WordNet ids of the classes, sorted."""
    wnids = tuple(sorted(_lines(folder / "wnids.txt")))
    if not wnids:
        raise DataError(f"{folder / 'wnids.txt'} is empty; it must name the classes, one per line. {REMEDY}")
    return wnids


def class_names(folder: Path) -> tuple[str, ...]:
    """The first English name of each class, with its WordNet id if two classes share a name."""
    words = dict(line.split("\t", 1) for line in _lines(folder / "words.txt") if "\t" in line)
    wnids = read_wnids(folder)
    missing = [wnid for wnid in wnids if wnid not in words]
    if missing:
        raise DataError(
            f"{folder / 'words.txt'} has no name for {missing[0]}, which is in wnids.txt. {REMEDY}"
        )
    names = [words[wnid].partition(",")[0].strip() for wnid in wnids]
    return tuple(n if names.count(n) == 1 else f"{n} ({wnid})" for n, wnid in zip(names, wnids, strict=True))


def _training(folder: Path, wnids: tuple[str, ...], passed: IgnoredFiles) -> list[tuple[str, Path]]:
    pairs = []
    for wnid in wnids:
        images = folder / "train" / wnid / "images"
        files = list(iter_files(images, SUFFIXES, passed)) if images.is_dir() else []
        if not files:
            raise DataError(
                f"{images} holds no images; wnids.txt names this class, so it must have some. {REMEDY}"
            )
        pairs += [(wnid, path) for path in files]
    _pass_over_others(folder / "train", set(wnids), "not in wnids.txt", passed)
    return pairs


def _validation(folder: Path, wnids: tuple[str, ...], passed: IgnoredFiles) -> list[tuple[str, Path]]:
    path = folder / "val" / "val_annotations.txt"
    images = folder / "val" / "images"
    pairs = []
    for number, line in enumerate(_lines(path), start=1):
        name, _, rest = line.partition("\t")
        wnid = rest.partition("\t")[0]
        if wnid not in wnids:
            raise DataError(f"{path}, line {number}: {wnid!r} is not in wnids.txt. {REMEDY}")
        if name in ("", ".", "..") or "/" in name or "\0" in name:
            raise DataError(f"{path}, line {number}: {name[:80]!r} is not the name of a file. {REMEDY}")
        pairs.append((wnid, images / name))
    if not pairs:
        raise DataError(f"{path} is empty; it must have a line for each image. {REMEDY}")
    if images.is_dir():
        _pass_over_others(images, {image.name for _, image in pairs}, "not in val_annotations.txt", passed)
    return sorted(pairs, key=lambda pair: f"{pair[0]}/{pair[1].name}")


def _pass_over_others(folder: Path, own: set[str], kind: str, passed: IgnoredFiles) -> None:
    """Record the entries of a folder that are not among its own names."""
    for path in entries(folder):
        if path.name not in own:
            passed.add(HIDDEN if is_hidden(path.name) else kind, path)


def _lines(path: Path) -> list[str]:
    try:
        return [
            line for line in require_regular(path).read_text(encoding="utf-8").splitlines() if line.strip()
        ]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error}). {REMEDY}") from error


def tiny_imagenet_folder(source: DataSource) -> Path:
    """The folder that holds wnids.txt. Raises DataError if there is none."""
    root = source.folder("tiny-ImageNet")
    for folder in (root / FOLDER, root):
        if (folder / "wnids.txt").is_file():
            return folder
    raise DataError(
        f"No tiny-ImageNet under {root}: {FOLDER}/wnids.txt does not exist. Set data.root (or {DATA_VARIABLE}) to the "
        f"folder that holds {FOLDER}/, as the published zip unpacks it."
    )
