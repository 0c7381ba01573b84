"""Read the corrupted images of a published archive, to use them instead of generated ones.

    CIFAR-10-C        <corruption>.npy uint8 [5·N, 32, 32, 3], one severity after another, each in the order of
                      the test split; labels.npy [5·N]
    Tiny-ImageNet-C   <corruption>/<severity>/<class>/<file>.JPEG, RGB

Source: Hendrycks & Dietterich, ICLR 2019, the archives of these names. Tiny-ImageNet-C and ImageNet-C were saved as
JPEG of quality 85, so their images have its artefacts besides the corruption. Nothing is unpickled.
"""

# N images of the split, B images of a batch, H W C pixels

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from tasks.corruptions import CORRUPTIONS, resolve
from tasks.corruptions.severity import SEVERITIES, check_severity
from tasks.datasets.bounded import read_array
from tasks.datasets.images import UnreadableImageError, decode_image
from tasks.datasets.own_files import HIDDEN, IgnoredFiles, entries, is_hidden, iter_files
from tasks.errors import DataError, unknown_name
from tasks.records import Ints, Pixels
from tasks.storage.paths import require_regular

REMEDY = "Give the folder as it is in the published archive."
SUFFIXES = (".jpeg", ".jpg", ".png")
OTHER_NAME = "not named after a corruption"


class Archive(Protocol):
    """Corrupted images of one split, under each corruption that the archive has, at severities 1 to 5."""

    @property
    def root(self) -> Path: ...
    @property
    def corruptions(self) -> tuple[str, ...]:
        """Published names of the corruptions that it has."""
        ...

    @property
    def labels_N(self) -> Ints:
        """Labels in the order of the split."""
        ...

    @property
    def image_shape(self) -> tuple[int, int, int]: ...
    @property
    def digest(self) -> str:
        """A digest of file names, file sizes and labels, which identifies the archive."""
        ...

    @property
    def passed_over(self) -> tuple[str, ...]:
        """Sentences about files in the folder that are not read."""
        ...

    def images(self, rows: Ints | Sequence[int], *, corruption: str, severity: int) -> Pixels:
        """Read pixels [B, H, W, 3] uint8 of these rows of the split. Raises ConfigError, DataError."""
        ...


def archive_folder(root: Path) -> Path:
    """`root` itself. Raises DataError if it is not a folder."""
    if not root.is_dir():
        raise DataError(
            f"data.archive {root} is not a folder. Give the one that the archive was unpacked to."
        )
    return root


def load_archive(root: Path) -> Archive:
    """Open the archive in a folder. Raises DataError if it has neither layout, or is damaged."""
    there = entries(archive_folder(root))
    if (root / "labels.npy").exists():
        return _open_arrays(root, there)
    if any(path.is_dir() for path in root.glob("*/1/*")):
        return _open_folders(root, there)
    raise DataError(
        f"data.archive {root} is not a published archive: it holds neither labels.npy (CIFAR-10-C) nor folders "
        "<corruption>/<severity>/<class>/ (Tiny-ImageNet-C). Give the folder that holds them."
    )


def _own(there: Sequence[Path], suffix: str, passed: IgnoredFiles) -> tuple[str, ...]:
    """The corruptions that files with this suffix (folders if it is empty) are named after. Notes all other entries."""
    names = []
    for path in there:
        name = path.name.removesuffix(suffix)
        if name in CORRUPTIONS and path.suffix == suffix and path.is_dir() == (not suffix):
            names.append(name)
        elif path.name != "labels.npy":
            passed.add(HIDDEN if is_hidden(path.name) else OTHER_NAME, path)
    return tuple(sorted(names))


def _digest(files: Sequence[tuple[str, int]], labels_N: Ints) -> str:
    digest = hashlib.blake2b(repr(sorted(files)).encode(), digest_size=12)
    digest.update(labels_N.astype("<i8").tobytes())
    return digest.hexdigest()


def _checked(
    archive: Archive, rows: Ints | Sequence[int], corruption: str, severity: int
) -> tuple[str, Ints]:
    check_severity(severity)
    name = resolve(corruption)
    if name not in archive.corruptions:
        raise DataError(f"{archive.root}: {unknown_name('corruption', name, archive.corruptions)}. {REMEDY}")
    wanted = np.asarray(rows, dtype=np.int64)
    if len(wanted) and not 0 <= wanted.min() <= wanted.max() < len(archive.labels_N):
        raise DataError(
            f"{archive.root} has {len(archive.labels_N)} images per severity, so its rows are 0 to "
            f"{len(archive.labels_N) - 1}; rows {wanted.min()} to {wanted.max()} were requested. Give the archive of "
            "this data set's test split."
        )
    return name, wanted


@dataclass(frozen=True, kw_only=True)
class ArrayArchive:
    """CIFAR-10-C: one array per corruption, read as a memory map."""

    root: Path
    corruptions: tuple[str, ...]
    labels_N: Ints
    image_shape: tuple[int, int, int]
    passed_over: tuple[str, ...] = ()

    @functools.cached_property
    def digest(self) -> str:
        sizes = [(n, (self.root / f"{n}.npy").stat().st_size) for n in self.corruptions]
        return _digest(sizes, self.labels_N)

    def images(self, rows: Ints | Sequence[int], *, corruption: str, severity: int) -> Pixels:
        name, wanted = _checked(self, rows, corruption, severity)
        stored = _load(self.root / f"{name}.npy")
        expected = (len(SEVERITIES) * len(self.labels_N), *self.image_shape)
        if stored.dtype != np.uint8 or stored.shape != expected:
            raise DataError(
                f"{self.root / name}.npy is {stored.dtype} {list(stored.shape)}; with these labels it must be "
                f"uint8 {list(expected)}. {REMEDY}"
            )
        return np.ascontiguousarray(stored[(severity - 1) * len(self.labels_N) + wanted])


def _open_arrays(root: Path, there: Sequence[Path]) -> ArrayArchive:
    labels = _load(root / "labels.npy")
    count, rest = divmod(labels.size, len(SEVERITIES))
    whole = labels.ndim == 1 and np.issubdtype(labels.dtype, np.integer) and count and not rest
    if not whole or (labels.reshape(len(SEVERITIES), -1) != labels[:count]).any():
        raise DataError(
            f"{root / 'labels.npy'} is {labels.dtype} {list(labels.shape)}; it must hold the labels of the test "
            f"split five times, once per severity. {REMEDY}"
        )
    passed = IgnoredFiles(root)
    names = _own(there, ".npy", passed)
    if not names:
        raise DataError(f"{root} holds labels.npy, but no <corruption>.npy. {REMEDY}")
    height, width, channels = (*_load(root / f"{names[0]}.npy").shape[1:], 0, 0, 0)[:3]
    return ArrayArchive(
        root=root,
        corruptions=names,
        labels_N=labels[:count].astype(np.int64),
        image_shape=(int(height), int(width), int(channels)),
        passed_over=passed.notes(),
    )


def _load(path: Path) -> np.ndarray:
    try:
        return read_array(require_regular(path))
    except (OSError, ValueError, EOFError, TypeError) as error:
        raise DataError(f"{path} cannot be read as an array ({error}). {REMEDY}") from error


@dataclass(frozen=True, kw_only=True)
class FolderArchive:
    """Tiny-ImageNet-C: one file per image, severity and corruption. Labels are the ranks of the class folders."""

    root: Path
    corruptions: tuple[str, ...]
    files_N: tuple[str, ...]  # <class>/<file>, sorted: row i of the split
    labels_N: Ints
    image_shape: tuple[int, int, int]
    passed_over: tuple[str, ...] = ()

    @functools.cached_property
    def digest(self) -> str:
        files = [
            (f"{name}/{severity}/{file}", (self.root / name / str(severity) / file).stat().st_size)
            for name in self.corruptions
            for severity in SEVERITIES
            for file in self.files_N
        ]
        return _digest(files, self.labels_N)

    def images(self, rows: Ints | Sequence[int], *, corruption: str, severity: int) -> Pixels:
        name, wanted = _checked(self, rows, corruption, severity)
        folder = self.root / name / str(severity)
        images = np.empty((len(wanted), *self.image_shape), np.uint8)
        for row, into in zip(wanted.tolist(), images, strict=True):
            image = _decode(folder / self.files_N[row])
            if image.shape != self.image_shape:
                raise DataError(
                    f"{folder / self.files_N[row]} is {list(image.shape)}, but the first image of the archive is "
                    f"{list(self.image_shape)}; all must have one size. {REMEDY}"
                )
            into[:] = image
        return images


def _open_folders(root: Path, there: Sequence[Path]) -> FolderArchive:
    passed = IgnoredFiles(root)
    names = _own(there, "", passed)
    if not names:
        raise DataError(f"{root} holds no folder named after a published corruption. {REMEDY}")
    for path in (path for name in names for path in entries(root / name)):
        if path.name not in map(str, SEVERITIES):
            passed.add(HIDDEN if is_hidden(path.name) else "not named after a severity", path)
    listed = {
        (name, severity): _image_files(root / name / str(severity), passed)
        for name in names
        for severity in SEVERITIES
    }
    files = listed[names[0], 1]
    if not files:
        raise DataError(
            f"{root / names[0] / '1'} holds no images <class>/<file> ({', '.join(SUFFIXES)}). {REMEDY}"
        )
    for (name, severity), others in listed.items():
        if others != files:
            odd = sorted(set(others) ^ set(files))[:1]
            raise DataError(
                f"{root / name / str(severity)} has {len(others)} images, {names[0]}/1 has {len(files)}"
                + (f" (only one of them has {odd[0]})" if odd else "")
                + f"; every severity of every corruption must have the same files. {REMEDY}"
            )
    classes = sorted({file.partition("/")[0] for file in files})
    height, width, channels = _decode(root / names[0] / "1" / files[0]).shape
    return FolderArchive(
        root=root,
        corruptions=names,
        files_N=files,
        labels_N=np.array([classes.index(file.partition("/")[0]) for file in files], np.int64),
        image_shape=(height, width, channels),
        passed_over=passed.notes(),
    )


def _image_files(folder: Path, passed: IgnoredFiles) -> tuple[str, ...]:
    """The images of one severity of a corruption, as sorted <class>/<file>."""
    files = []
    for path in iter_files(folder, SUFFIXES, passed) if folder.is_dir() else ():
        if path.parent.parent == folder:
            files.append(f"{path.parent.name}/{path.name}")
        else:
            passed.add("not in a class folder", path)
    return tuple(sorted(files))


def _decode(path: Path) -> Pixels:
    try:
        return decode_image(require_regular(path))
    except (OSError, UnreadableImageError) as error:
        raise DataError(f"{path} cannot be read as an image ({error}). {REMEDY}") from error
