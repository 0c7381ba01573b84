"""Load CIFAR-10, CIFAR-100 and the shipped sample of CIFAR-10.

The data root is searched for these layouts (Krizhevsky 2009), in this order; NAME is cifar10 or cifar100:
    cifar-10-batches-py/, cifar-100-python/   the published Python batches (as torchvision unpacks them)
    NAME/{train,test}.npz                     arrays images [N,32,32,3] uint8, labels [N]
    NAME/NAME_{split}_webp.zip                lossless WebP strips with labels_u1.npy
The published batches are pickles. They are read by an unpickler that can build only arrays and plain containers.
"""

from __future__ import annotations

import io
import pickle
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from tasks.datasets.base import ArrayDataset, Split, whole_labels
from tasks.datasets.bounded import (
    ALWAYS_BYTES,
    RATIO,
    check_pickle,
    empty_array,
    read_array_member,
    read_member,
)
from tasks.datasets.images import UnreadableImageError, decode_image
from tasks.datasets.own_files import HIDDEN, IgnoredFiles, entries, is_hidden
from tasks.datasets.source import DATA_VARIABLE, DATASETS, DataSource
from tasks.errors import DataError
from tasks.records import Ints, Pixels
from tasks.storage.paths import require_regular

SAMPLE = Path(__file__).parents[1] / "sample"
# The errors that damaged bytes of an array, an image or a zip raise.
_DAMAGED = (
    OSError,
    ValueError,
    KeyError,
    EOFError,
    zipfile.BadZipFile,
    zlib.error,
    UnreadableImageError,
)


@dataclass(frozen=True, kw_only=True)
class Batches:
    """The published Python batches of a data set: their folder, their files, and the key of the labels.

    beside: other files of the published archive, which are not needed.
    """

    title: str
    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    labels: bytes
    beside: tuple[str, ...]


BATCHES = {
    "cifar10": Batches(
        title="CIFAR-10",
        folder="cifar-10-batches-py",
        train=tuple(f"data_batch_{i}" for i in range(1, 6)),
        test=("test_batch",),
        labels=b"labels",
        beside=("batches.meta", "readme.html"),
    ),
    "cifar100": Batches(
        title="CIFAR-100",
        folder="cifar-100-python",
        train=("train",),
        test=("test",),
        labels=b"fine_labels",
        beside=("meta", "file.txt~"),
    ),
}


def load_cifar(source: DataSource, split: Split) -> ArrayDataset:
    """Load one split of cifar10, cifar100 or cifar10_sample. Raises DataError if nothing readable is found."""
    name = source.name
    if name == "cifar10_sample":
        return _read_strips(SAMPLE / f"{split}.zip", name, split)
    published = BATCHES[name]
    folder = source.folder(published.title)
    readers: dict[Path, Callable[[Path, str, Split], ArrayDataset]] = {
        folder / published.folder: _read_python_batches,
        folder / name / f"{split}.npz": _read_npz,
        folder / name / f"{name}_{split}_webp.zip": _read_strips,
    }
    there = [path for path in readers if path.exists()]
    if there:
        passed = IgnoredFiles(folder)
        for path in there[1:]:
            passed.add(f"beside {there[0].name}, which is read", path)
        data = readers[there[0]](there[0], name, split)
        return replace(data, passed_over=(*data.passed_over, *passed.notes()))
    downloader = f"torchvision.datasets.{published.title.replace('-', '')}(root, download=True)"
    raise DataError(
        f"No {published.title} under {folder}: none of {', '.join(str(p.relative_to(folder)) for p in readers)} "
        f"exists. Set data.root (or {DATA_VARIABLE}) to the folder that holds one of them; torchvision's downloader "
        f"(`{downloader}`) makes the first. Without them, `--set data.name=cifar10_sample` uses the shipped sample."
    )


def _dataset(
    name: str,
    split: Split,
    images: Pixels,
    labels: Ints,
    *,
    ids: Ints | None = None,
    passed: IgnoredFiles,
) -> ArrayDataset:
    return ArrayDataset(
        name=name,
        split=split,
        classes=DATASETS[name].classes,
        image_ids_N=np.arange(len(images)) if ids is None else ids,
        labels_N=labels,
        images_NHWC=images,
        passed_over=passed.notes(),
    )


def _read_npz(path: Path, name: str, split: Split) -> ArrayDataset:
    passed = IgnoredFiles(path)
    try:
        with zipfile.ZipFile(require_regular(path)) as archive:
            images, labels = (read_array_member(archive, f"{name}.npy") for name in ("images", "labels"))
            for other in sorted(set(archive.namelist()) - {"images.npy", "labels.npy"}):
                passed.add("not named images or labels", Path(other.removesuffix(".npy")))
    except _DAMAGED as error:
        raise DataError(
            f"{path} cannot be read as a NumPy archive of arrays `images` [N, 32, 32, 3] and `labels` [N] ({error}). "
            "Write one with numpy.savez."
        ) from error
    return _dataset(name, split, images, whole_labels(labels, where=str(path)), passed=passed)


def _read_strips(path: Path, name: str, split: Split) -> ArrayDataset:
    """Read a zip of lossless WebP strips (32 px wide, images stacked vertically), labels_u1.npy and perhaps ids.npy."""
    strips = []
    member = "the archive"
    passed = IgnoredFiles(path)
    try:
        with zipfile.ZipFile(require_regular(path)) as archive:
            left = max(ALWAYS_BYTES, RATIO * path.stat().st_size)
            own = [n for n in archive.namelist() if n.endswith(".webp") and not is_hidden(Path(n).name)]
            for other in sorted(set(archive.namelist()) - {*own, "labels_u1.npy", "ids.npy"}):
                passed.add("neither strips nor labels", Path(other))
            for member in sorted(own):
                strips.append(decode_image(read_member(archive, member)).reshape(-1, 32, 32, 3))
                left -= strips[-1].nbytes
                if left < 0:
                    raise ValueError(f"its images take more than {RATIO} times the archive's size")
            labels = read_array_member(archive, member := "labels_u1.npy")
            ids = np.arange(len(labels))
            if "ids.npy" in archive.namelist():
                ids = read_array_member(archive, member := "ids.npy")
    except _DAMAGED as error:
        raise DataError(
            f"{path}: {member} cannot be read ({error}). Give a zip of lossless WebP strips and labels_u1.npy."
        ) from error
    if not strips:
        raise DataError(
            f"{path} holds no .webp images. Give a zip of lossless WebP strips and labels_u1.npy."
        )
    labels, ids = (whole_labels(array, where=str(path)) for array in (labels, ids))
    images = np.concatenate(strips)
    return _dataset(name, split, images, labels, ids=ids, passed=passed)


def _encode(text: str, encoding: str) -> bytes:
    """The bytes that Python 2 pickled as text."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it asks for the encoding {encoding!r}, which no CIFAR batch needs")
    return text.encode("latin1")


class _ArrayUnpickler(pickle.Unpickler):
    """Builds only NumPy arrays and plain containers, so that a pickle can neither run code nor take much memory."""

    _ALLOWED: ClassVar[dict[tuple[str, str], Any]] = {
        ("numpy.core.multiarray", "_reconstruct"): empty_array,
        ("numpy._core.multiarray", "_reconstruct"): empty_array,
        ("numpy", "ndarray"): None,  # an argument of the function above
        ("numpy", "dtype"): np.dtype,
        ("_codecs", "encode"): _encode,
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no CIFAR batch needs")
        return self._ALLOWED[module, name]


def _read_python_batches(folder: Path, name: str, split: Split) -> ArrayDataset:
    published = BATCHES[name]
    images, labels = [], []
    for path in (folder / file for file in (published.train if split == "train" else published.test)):
        try:
            content = require_regular(path).read_bytes()
            check_pickle(content)
            batch = _ArrayUnpickler(io.BytesIO(content), encoding="bytes").load()
            images.append(np.asarray(batch[b"data"]).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
            labels.append(whole_labels(np.asarray(batch[published.labels]), where=str(path)))
        except (
            *_DAMAGED,
            pickle.UnpicklingError,
            TypeError,
            AttributeError,
            IndexError,
            MemoryError,
        ) as error:
            raise DataError(
                f"{path} cannot be read as a {published.title} batch ({error}). Give the file as it is in the "
                "published archive."
            ) from error
    passed = IgnoredFiles(folder)
    for path in entries(folder):
        if path.name not in {*published.train, *published.test, *published.beside}:
            passed.add(HIDDEN if is_hidden(path.name) else "not part of the published archive", path)
    return _dataset(
        name, split, np.ascontiguousarray(np.concatenate(images)), np.concatenate(labels), passed=passed
    )
