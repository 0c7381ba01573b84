"""A name, a split and a folder in, labelled images out. Knows CIFAR-10 in its layouts, and the shipped sample.

Layouts of CIFAR-10 (Krizhevsky 2009), looked for under the data root in this order:
    cifar-10-batches-py/            the published Python batches (as torchvision unpacks them)
    cifar10/{train,test}.npz        arrays images [N,32,32,3] uint8, labels [N]
    cifar10/cifar10_{split}_webp.zip  lossless WebP strips with labels_u1.npy
The published batches are pickles: they are read by an unpickler that can build arrays and nothing else.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import pickle
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from PIL import Image

from tasks.errors import ConfigError, DataError, unknown_name
from tasks.records import Ints, Pixels

if TYPE_CHECKING:
    from tasks.archives import Archive

Split = Literal["train", "test"]
DATA_VARIABLE = "METAREPAIR_DATA"
CIFAR10_CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
SAMPLE = Path(__file__).parent / "sample"
# What reading an array, an image or a zip raises when its bytes are not what they should be.
_DAMAGED = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)


class Dataset(Protocol):
    """Labelled images of one split. Ids are stable: the row in the published order."""

    @property
    def name(self) -> str: ...
    @property
    def split(self) -> Split: ...
    @property
    def classes(self) -> tuple[str, ...]: ...
    @property
    def image_ids_N(self) -> Ints: ...
    @property
    def labels_N(self) -> Ints: ...
    @property
    def image_shape(self) -> tuple[int, int, int]: ...
    @property
    def corruption_table(self) -> str | None:
        """Constants for its corrupted images, where they are not the data set's own."""
        ...

    @property
    def archive(self) -> Archive | None:
        """A published archive that its corrupted images come from, in place of generated ones."""
        ...

    def images(self, rows: Ints | slice) -> Pixels:
        """Pixels [B, H, W, C] uint8 of the given rows."""
        ...


@dataclass(frozen=True, kw_only=True)
class ArrayDataset:
    """A split that fits in memory."""

    name: str
    split: Split
    classes: tuple[str, ...]
    image_ids_N: Ints
    labels_N: Ints
    images_NHWC_u8: Pixels
    corruption_table: str | None = None
    archive: Archive | None = None

    def __post_init__(self) -> None:
        _check_arrays(self)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        height, width, channels = self.images_NHWC_u8.shape[1:]
        return height, width, channels

    def images(self, rows: Ints | slice) -> Pixels:
        return self.images_NHWC_u8[rows]

    def digest(self) -> str:
        """A digest of pixels and labels."""
        digest = hashlib.blake2b(np.ascontiguousarray(self.images_NHWC_u8).data, digest_size=12)
        digest.update(self.labels_N.tobytes())
        return digest.hexdigest()

    def head(self, num_images: int) -> ArrayDataset:
        """The first `num_images` rows (all of them when there are fewer)."""
        return dataclasses.replace(
            self,
            image_ids_N=self.image_ids_N[:num_images],
            labels_N=self.labels_N[:num_images],
            images_NHWC_u8=self.images_NHWC_u8[:num_images],
        )


def _check_arrays(data: ArrayDataset) -> None:
    images, labels = data.images_NHWC_u8, data.labels_N
    where = f"{data.name} {data.split}"
    if images.ndim != 4 or images.dtype != np.uint8 or images.shape[3] != 3:
        raise DataError(
            f"{where}: images are {images.dtype} {images.shape}; they must be uint8 [N, H, W, 3]."
        )
    if not len(images) == len(labels) == len(data.image_ids_N):
        raise DataError(
            f"{where}: {len(images)} images but {len(labels)} labels; there must be one for each."
        )
    outside = np.flatnonzero((labels < 0) | (labels >= len(data.classes)))
    if len(outside):
        row = int(outside[0])
        raise DataError(
            f"{where}: the label of image {row} is {int(labels[row])}, outside the {len(data.classes)} classes "
            f"0..{len(data.classes) - 1} ({len(outside)} such labels). Correct the labels, or name another data set."
        )


@dataclass(frozen=True)
class DatasetInfo:
    """What is known of a data set before it is read. mean and std are of the pixels in [0, 1]."""

    classes: tuple[str, ...]
    image_size: int
    corruption_table: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


_CIFAR10 = DatasetInfo(
    classes=CIFAR10_CLASSES,
    image_size=32,
    corruption_table="cifar",
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
)
DATASETS: Mapping[str, DatasetInfo] = {"cifar10": _CIFAR10, "cifar10_sample": _CIFAR10}


def dataset_info(name: str) -> DatasetInfo:
    """Facts of the data set `name`. Raises ConfigError (near names) for an unknown one."""
    if name not in DATASETS:
        raise ConfigError(unknown_name("data set", name, DATASETS))
    return DATASETS[name]


def load_dataset(name: str, split: Split, *, root: str | None = None) -> ArrayDataset:
    """One split of the data set `name`, from `root` or METAREPAIR_DATA (the sample needs neither).

    Raises ConfigError for an unknown name, DataError when nothing readable is found there.
    """
    dataset_info(name)
    if name == "cifar10_sample":
        return _read_strips(SAMPLE / f"{split}.zip", name, split)
    folder = _data_root(root)
    readers: dict[Path, Callable[[Path, str, Split], ArrayDataset]] = {
        folder / "cifar-10-batches-py": _read_python_batches,
        folder / "cifar10" / f"{split}.npz": _read_npz,
        folder / "cifar10" / f"cifar10_{split}_webp.zip": _read_strips,
    }
    for path, read in readers.items():
        if path.exists():
            return read(path, name, split)
    raise DataError(
        f"No CIFAR-10 under {folder}: none of {', '.join(str(p.relative_to(folder)) for p in readers)} is there. "
        f"Set data.root (or {DATA_VARIABLE}) to the folder that holds one of them; torchvision's downloader "
        "(`torchvision.datasets.CIFAR10(root, download=True)`) makes the first. "
        "Without any, `--set data.name=cifar10_sample` uses the shipped sample."
    )


def _data_root(root: str | None) -> Path:
    given = root or os.environ.get(DATA_VARIABLE)
    if not given:
        raise DataError(
            f"Where is CIFAR-10? Set data.root, or the environment variable {DATA_VARIABLE}, to its folder. "
            "`--set data.name=cifar10_sample` uses the shipped sample instead."
        )
    folder = Path(given).expanduser()
    if not folder.is_dir():
        raise DataError(
            f"The data root {folder} is not a folder. Set data.root or {DATA_VARIABLE} to one that is."
        )
    return folder


def _read_npz(path: Path, name: str, split: Split) -> ArrayDataset:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            images, labels = arrays["images"], arrays["labels"].astype(np.int64)
    except (*_DAMAGED, TypeError) as error:  # TypeError: a lone array is no archive
        raise DataError(
            f"{path} cannot be read as arrays `images` and `labels` ({error}). Make it again."
        ) from error
    return ArrayDataset(
        name=name,
        split=split,
        classes=CIFAR10_CLASSES,
        image_ids_N=np.arange(len(images)),
        labels_N=labels,
        images_NHWC_u8=images,
    )


def _read_strips(path: Path, name: str, split: Split) -> ArrayDataset:
    """A zip of lossless WebP strips (32 px wide, images one below the other), labels_u1.npy, maybe ids.npy."""
    strips = []
    member = ""
    try:
        with zipfile.ZipFile(path) as archive:
            for member in sorted(n for n in archive.namelist() if n.endswith(".webp")):
                with Image.open(io.BytesIO(archive.read(member))) as strip:
                    strips.append(np.asarray(strip.convert("RGB")).reshape(-1, 32, 32, 3))
            labels = np.load(io.BytesIO(archive.read(member := "labels_u1.npy")), allow_pickle=False)
            ids = np.arange(len(labels))
            if "ids.npy" in archive.namelist():
                ids = np.load(io.BytesIO(archive.read(member := "ids.npy")), allow_pickle=False)
    except _DAMAGED as error:
        raise DataError(
            f"{path}: {member or 'the archive'} is truncated or not an image ({error}). "
            "Copy the file again; nothing was written."
        ) from error
    if not strips:
        raise DataError(f"{path} holds no .webp images. Copy the file again.")
    return ArrayDataset(
        name=name,
        split=split,
        classes=CIFAR10_CLASSES,
        image_ids_N=ids.astype(np.int64),
        labels_N=labels.astype(np.int64),
        images_NHWC_u8=np.concatenate(strips),
    )


class _ArrayUnpickler(pickle.Unpickler):
    """Builds NumPy arrays and plain containers, nothing else: a pickle cannot run code through it."""

    _ALLOWED = frozenset(
        {
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("_codecs", "encode"),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which a CIFAR-10 batch never does")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def _read_python_batches(folder: Path, name: str, split: Split) -> ArrayDataset:
    files = [f"data_batch_{i}" for i in range(1, 6)] if split == "train" else ["test_batch"]
    images, labels = [], []
    for path in (folder / f for f in files):
        try:
            with path.open("rb") as stream:
                batch = _ArrayUnpickler(stream, encoding="bytes").load()
            images.append(np.asarray(batch[b"data"]).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
            labels.append(np.asarray(batch[b"labels"], dtype=np.int64))
        except (*_DAMAGED, pickle.UnpicklingError, TypeError, AttributeError, IndexError) as error:
            raise DataError(
                f"{path} is missing, truncated, or no CIFAR-10 batch ({error}). Unpack the published archive again."
            ) from error
    stacked = np.ascontiguousarray(np.concatenate(images))
    return ArrayDataset(
        name=name,
        split=split,
        classes=CIFAR10_CLASSES,
        image_ids_N=np.arange(len(stacked)),
        labels_N=np.concatenate(labels),
        images_NHWC_u8=stacked,
    )
