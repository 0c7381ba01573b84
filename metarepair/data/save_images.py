"""Save labelled images from Python as a Parquet table, which the settings of an environment can name."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from tasks.datasets.images import UnreadableImageError, opened_pixels
from tasks.datasets.labelled_images import PARTS
from tasks.errors import ConfigError, DataError
from tasks.storage.paths import writing

BATCH = 256  # images in memory at a time


def save_images(
    given: Any,
    path: str | Path,
    *,
    groups: Sequence[Any] | None = None,
    parts: Sequence[int] | None = None,
    compress_level: int = 1,
) -> Path:
    """Save labelled images as a Parquet file for `environments.NAME.images`.

    Pixels are stored without loss, in RGB and upright. The images may differ in size; a run resizes them.

    Args:
        given: A pair (images, labels), with images uint8 [N, H, W, C] or [N, C, H, W]. Or anything with `len()` and
            `[i]`, such as a `torch.utils.data.Dataset` or a data set of Hugging Face's `datasets`, whose items are
            pairs (image, label) or mappings with the keys `image` and `label`; an image is a PIL image or uint8
            [H, W], [H, W, C] or [C, H, W]. A label is the name or the number of a class.
        path: The file to write; it ends in `.parquet`.
        groups: The group of each image, such as its day or device: images of one group are never both learned from
            and judged on. None: none are given.
        parts: What each image is for: 0 to learn from, 1 to select by, 2 to judge by. None: a run chooses.
        compress_level: How much time to spend on smaller files, 1 to 9.

    Returns:
        The path.

    Raises:
        ConfigError: `path` has another ending.
        DataError: An image or a label is of another kind, their numbers differ, or there are none.

    Example:
        >>> import numpy as np, tempfile
        >>> from metarepair import save_images
        >>> images = np.zeros((3, 16, 16, 3), np.uint8)
        >>> folder = tempfile.mkdtemp()
        >>> save_images((images, ["cat", "dog", "cat"]), f"{folder}/night.parquet", groups=[1, 1, 2]).name
        'night.parquet'
    """
    path = Path(path)
    if path.suffix.lower() != ".parquet":
        raise ConfigError(
            f"save_images writes Parquet; give a path that ends in .parquet, not {path.name!r}."
        )
    count, items = _items(given, compress_level)
    if not count:
        raise DataError("given: there are no images. Give at least one with its right label.")
    if groups is not None and len(groups) != count:
        raise DataError(f"groups: {len(groups)} groups for {count} images; give one for each.")
    first = next(items)
    kind = type(first[1])
    fields = [("image", pa.binary()), ("label", pa.string() if kind is str else pa.int64())]
    schema = pa.schema([*fields, *([("group", pa.string())] if groups is not None else [])])
    if parts is not None:
        schema = schema.with_metadata({PARTS: "".join(str(int(part)) for part in parts)})
    start, items = 0, chain([first], items)
    with writing(path) as part, pq.ParquetWriter(part, schema, compression="zstd") as writer:
        while rows := list(islice(items, BATCH)):
            columns: list[Any] = [[image for image, _ in rows], [label for _, label in rows]]
            other = next((label for label in columns[1] if type(label) is not kind), None)
            if other is not None:
                raise DataError(
                    f"given: the label {other!r} is no {kind.__name__}, as that of item 0. Give names of classes, or "
                    "numbers."
                )
            if groups is not None:
                columns.append([str(group) for group in groups[start : start + len(rows)]])
            writer.write_batch(pa.record_batch(columns, schema=schema))
            start += len(rows)
    return path


def _items(given: Any, level: int) -> tuple[int, Iterator[tuple[bytes, str | int]]]:
    """The number of images, and an iterator over (bytes of a PNG, label)."""
    if isinstance(given, tuple) and len(given) == 2 and getattr(given[0], "ndim", 0) >= 3:
        images, labels = given
        if len(images) != len(labels):
            raise DataError(f"given: {len(images)} images but {len(labels)} labels; give one for each.")
        pairs = ((images[i], labels[i]) for i in range(len(images)))
        return len(images), (_encoded(*pair, f"item {i}", level) for i, pair in enumerate(pairs))
    if isinstance(given, Mapping | str | bytes) or not (
        hasattr(given, "__len__") and hasattr(given, "__getitem__")
    ):
        raise DataError(
            f"given: {type(given).__name__} is neither (images, labels) nor a data set with len() and [i]. Give uint8 "
            "images [N, H, W, C] with labels [N], or a data set of (image, label)."
        )
    return len(given), (_encoded(*_pair(given[i], i), f"item {i}", level) for i in range(len(given)))


def _pair(item: Any, number: int) -> tuple[Any, Any]:
    if isinstance(item, Mapping) and {"image", "label"} <= item.keys():
        return item["image"], item["label"]
    if isinstance(item, Sequence) and not isinstance(item, str | bytes) and len(item) == 2:
        return item[0], item[1]
    raise DataError(
        f"given: item {number} is {type(item).__name__}; it must be (image, label), or have the keys image and label."
    )


def _encoded(image: Any, label: Any, where: str, level: int) -> tuple[bytes, str | int]:
    stream = io.BytesIO()
    _as_image(image, where).save(stream, "PNG", compress_level=level)
    if isinstance(label, str):
        return stream.getvalue(), label
    number = label.item() if isinstance(label, np.generic | torch.Tensor) and label.ndim == 0 else label
    if isinstance(number, bool) or not isinstance(number, int):
        raise DataError(f"given: {where}: the label is {label!r}; give the name or the number of a class.")
    if not 0 <= number < 2**31:
        raise DataError(f"given: {where}: the label is {number}; give the number of a class, from 0.")
    return stream.getvalue(), number


def _as_image(image: Any, where: str) -> Image.Image:
    if isinstance(image, Image.Image):
        try:
            return Image.fromarray(opened_pixels(image))
        except UnreadableImageError as error:
            raise DataError(f"given: {where} cannot be used: {error}.") from error
    pixels = image.numpy(force=True) if isinstance(image, torch.Tensor) else image
    if isinstance(pixels, np.ndarray) and pixels.dtype == np.uint8 and pixels.ndim in (2, 3) and pixels.size:
        if pixels.ndim == 3 and pixels.shape[2] not in (1, 3) and pixels.shape[0] in (1, 3):
            pixels = pixels.transpose(1, 2, 0)
        if pixels.ndim == 3 and pixels.shape[2] == 1:
            pixels = pixels[..., 0]
        if pixels.ndim == 2 or pixels.shape[2] == 3:
            return Image.fromarray(np.ascontiguousarray(pixels))
    kind = f"{pixels.dtype} {list(pixels.shape)}" if isinstance(pixels, np.ndarray) else type(pixels).__name__
    raise DataError(
        f"given: {where}: the image is {kind}; give a PIL image, or uint8 pixels [H, W], [H, W, C] or [C, H, W]. "
        "Floats that are normalised already cannot be turned back into pixels."
    )
