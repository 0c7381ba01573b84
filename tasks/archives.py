"""A folder of a published archive in, its corrupted labelled images out, in place of generated ones.

    CIFAR-10-C        <corruption>.npy uint8 [5·N, 32, 32, 3], severity after severity, each in the order of the
                      test split; labels.npy [5·N]
    Tiny-ImageNet-C   <corruption>/<severity>/<class>/<file>.JPEG, RGB

Source: Hendrycks & Dietterich, ICLR 2019, the archives of that name (Tiny-ImageNet-C and ImageNet-C were saved as
JPEG of quality 85, so their images carry its traces besides the corruption). Nothing is unpickled.
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
from PIL import Image

from tasks.corruptions import CORRUPTIONS, resolve
from tasks.corruptions.severity import SEVERITIES, check_severity
from tasks.errors import DataError, unknown_name
from tasks.records import Ints, Pixels

AGAIN = "Unpack the published archive again."


class Archive(Protocol):
    """Corrupted images of one split under every corruption that is there, at severities 1 to 5."""

    @property
    def root(self) -> Path: ...
    @property
    def corruptions(self) -> tuple[str, ...]:
        """Published names."""
        ...

    @property
    def labels_N(self) -> Ints:
        """Labels in the order of the split."""
        ...

    @property
    def image_shape(self) -> tuple[int, int, int]: ...
    @property
    def digest(self) -> str:
        """Of file names, file sizes and labels: another archive has another."""
        ...

    def images(self, rows: Ints | Sequence[int], *, corruption: str, severity: int) -> Pixels:
        """Pixels [B, H, W, 3] uint8 of these rows of the split. Raises ConfigError, DataError."""
        ...


def load_archive(root: Path) -> Archive:
    """The archive in a folder. Raises DataError when it has neither layout, or is damaged."""
    if not root.is_dir():
        raise DataError(
            f"data.archive {root} is not a folder. Give the one that the archive was unpacked to."
        )
    if (root / "labels.npy").exists():
        return _open_arrays(root)
    if any(folder.is_dir() for folder in root.glob("*/1/*")):
        return _open_folders(root)
    raise DataError(
        f"data.archive {root} is no published archive: it holds neither labels.npy (CIFAR-10-C) nor folders "
        "<corruption>/<severity>/<class>/ (Tiny-ImageNet-C). Give the folder that holds them."
    )


def _known(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(sorted(set(names) & set(CORRUPTIONS)))


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
        raise DataError(f"{archive.root}: {unknown_name('corruption', name, archive.corruptions)}. {AGAIN}")
    wanted = np.asarray(rows, dtype=np.int64)
    if len(wanted) and not 0 <= wanted.min() <= wanted.max() < len(archive.labels_N):
        raise DataError(
            f"{archive.root} has {len(archive.labels_N)} images a severity; rows {wanted.min()} to "
            f"{wanted.max()} are asked for. It is not of this data set's test split."
        )
    return name, wanted


@dataclass(frozen=True, kw_only=True)
class ArrayArchive:
    """CIFAR-10-C: one array for each corruption, read as a memory map."""

    root: Path
    corruptions: tuple[str, ...]
    labels_N: Ints
    image_shape: tuple[int, int, int]

    @functools.cached_property
    def digest(self) -> str:
        sizes = [(n, (self.root / f"{n}.npy").stat().st_size) for n in self.corruptions]
        return _digest(sizes, self.labels_N)

    def images(self, rows: Ints | Sequence[int], *, corruption: str, severity: int) -> Pixels:
        name, wanted = _checked(self, rows, corruption, severity)
        stored = _load(self.root / f"{name}.npy", mapped=True)
        expected = (len(SEVERITIES) * len(self.labels_N), *self.image_shape)
        if stored.dtype != np.uint8 or stored.shape != expected:
            raise DataError(
                f"{self.root / name}.npy is {stored.dtype} {list(stored.shape)}; with these labels it must be "
                f"uint8 {list(expected)}. {AGAIN}"
            )
        return np.ascontiguousarray(stored[(severity - 1) * len(self.labels_N) + wanted])


def _open_arrays(root: Path) -> ArrayArchive:
    labels = _load(root / "labels.npy", mapped=False)
    count, rest = divmod(labels.size, len(SEVERITIES))
    whole = labels.ndim == 1 and np.issubdtype(labels.dtype, np.integer) and count and not rest
    if not whole or (labels.reshape(len(SEVERITIES), -1) != labels[:count]).any():
        raise DataError(
            f"{root / 'labels.npy'} is {labels.dtype} {list(labels.shape)}; it must hold the labels of the test "
            f"split five times over, once for each severity. {AGAIN}"
        )
    names = _known([p.stem for p in root.glob("*.npy")])
    if not names:
        raise DataError(f"{root} holds labels.npy, but no <corruption>.npy. {AGAIN}")
    height, width, channels = (*_load(root / f"{names[0]}.npy", mapped=True).shape[1:], 0, 0, 0)[:3]
    return ArrayArchive(
        root=root,
        corruptions=names,
        labels_N=labels[:count].astype(np.int64),
        image_shape=(int(height), int(width), int(channels)),
    )


def _load(path: Path, *, mapped: bool) -> np.ndarray:
    try:
        return np.asarray(np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False))
    except (OSError, ValueError, EOFError, TypeError) as error:
        raise DataError(f"{path} cannot be read as an array ({error}). {AGAIN}") from error


@dataclass(frozen=True, kw_only=True)
class FolderArchive:
    """Tiny-ImageNet-C: an image file for each image, severity and corruption. Labels are ranks of class folders."""

    root: Path
    corruptions: tuple[str, ...]
    files_N: tuple[str, ...]  # <class>/<file>, sorted: row i of the split
    labels_N: Ints
    image_shape: tuple[int, int, int]

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
                    f"{folder / self.files_N[row]} is {list(image.shape)}, the first image of the archive "
                    f"{list(self.image_shape)}; all must have one size. {AGAIN}"
                )
            into[:] = image
        return images


def _open_folders(root: Path) -> FolderArchive:
    names = _known([p.name for p in root.iterdir() if p.is_dir()])
    listed = {
        (name, severity): tuple(
            sorted(f"{p.parent.name}/{p.name}" for p in _image_files(root, name, severity))
        )
        for name in names
        for severity in SEVERITIES
    }
    if not names:
        raise DataError(f"{root} holds no folder that is named as a published corruption. {AGAIN}")
    files = listed[names[0], 1]
    for (name, severity), found in listed.items():
        if found != files or not files:
            odd = sorted(set(found) ^ set(files))[:1]
            raise DataError(
                f"{root / name / str(severity)} has {len(found)} images, {names[0]}/1 has {len(files)}"
                + (f" (only one of them has {odd[0]})" if odd else "")
                + f"; every severity of every corruption must have the same files. {AGAIN}"
            )
    classes = sorted({file.partition("/")[0] for file in files})
    height, width, channels = _decode(root / names[0] / "1" / files[0]).shape
    return FolderArchive(
        root=root,
        corruptions=names,
        files_N=files,
        labels_N=np.array([classes.index(file.partition("/")[0]) for file in files], np.int64),
        image_shape=(height, width, channels),
    )


def _image_files(root: Path, name: str, severity: int) -> list[Path]:
    found = (root / name / str(severity)).glob("*/*")
    return [p for p in found if p.suffix.lower() in (".jpeg", ".jpg", ".png")]


def _decode(path: Path) -> Pixels:
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{path} cannot be read as an image ({error}). {AGAIN}") from error
