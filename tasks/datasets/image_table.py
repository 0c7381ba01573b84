"""List the images of a split that is stored in Parquet or Arrow tables, with a column of encoded images and of labels.

The image column holds the bytes of image files, or Hugging Face's struct {bytes, path}. Labels are integers or strings.
Both columns may have any Arrow type that holds such values (tasks.datasets.column_kinds). The names of the classes come
from the first of: data.classes; the ClassLabel that Hugging Face keeps in the schema's metadata; for strings, the
sorted labels of the training split.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tasks.datasets.base import Split
from tasks.datasets.column_kinds import (
    IMAGE_TYPES,
    LABEL_TYPES,
    holds_bytes,
    image_candidates,
    is_text,
    is_whole,
    values_of,
)
from tasks.datasets.decoding import BATCH, EncodedImage, Listing, native_size
from tasks.datasets.source import DatasetInfo, DataSource
from tasks.datasets.table_files import iter_rows, read_schema, split_files
from tasks.errors import DataError, near_names
from tasks.records import Ints
from tasks.storage.paths import parse_json

LABEL_ROWS = 65536  # labels in memory at a time


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The columns that hold images and labels, the settings that name them, and the schema's class names, if any."""

    image: str
    label: str
    settings: tuple[str, str]
    names: tuple[str, ...] | None = None


def describe_table(source: DataSource) -> DatasetInfo:
    """The classes and the image size, from the training split's schema and its first image."""
    files = split_files(source, "train").files
    columns = find_columns(source, files[0])
    first = next(_batches(files, columns), None)
    if first is None:
        raise _no_rows(files, "train")
    size = source.image_size or native_size(first[0])
    return source.info(_classes(source, files, columns), size)


def list_table(source: DataSource, split: Split) -> Listing:
    """List the images of a split in the order of files and rows. Raises DataError for data that cannot be used."""
    train = split_files(source, "train")
    first = find_columns(source, train.files[0])
    classes = _classes(source, train.files, first)
    there = train if split == "train" else split_files(source, split)
    files, columns = there.files, find_columns(source, there.files[0])
    for path in files if source.classes is None else ():
        _check_names(path, find_columns(source, path).names, classes)
        if first.names is None:
            _check_text(path, columns)
    labels_N = np.concatenate([_labels(path, columns, classes) for path in files])
    if not len(labels_N):
        raise _no_rows(files, split)
    return Listing(
        name=source.name,
        split=split,
        classes=classes,
        labels_N=labels_N,
        image_size=source.image_size,
        files=files,
        batches=lambda: _batches(files, columns),
        passed_over=there.passed_over,
    )


def _no_rows(files: Sequence[Path], split: Split) -> DataError:
    return DataError(
        f"{', '.join(map(str, files[:3]))}: no rows in the {split} split. Give files that have rows."
    )


def find_columns(source: DataSource, path: Path) -> Columns:
    """The columns that the settings name, or else the only possible ones. Raises DataError."""
    schema = read_schema(path)
    features = _features(schema)
    of_image, of_label = source.settings
    image = source.image_column or _only(
        path,
        "image",
        of_image,
        [n for n in schema.names if _kind(features, n) == "Image"] or image_candidates(schema),
        schema,
    )
    label = source.label_column or _only(
        path,
        "label",
        of_label,
        [n for n in schema.names if _kind(features, n) == "ClassLabel"]
        or [n for n in schema.names if n == "label"],
        schema,
    )
    columns = Columns(image=image, label=label, settings=source.settings)
    _check_columns(path, columns)
    names = features.get(label, {}).get("names")
    return replace(columns, names=tuple(map(str, names)) if isinstance(names, list) and names else None)


def _features(schema: pa.Schema) -> dict[str, Any]:
    """Hugging Face's metadata of the columns; empty if there is none."""
    text = (schema.metadata or {}).get(b"huggingface")
    try:
        features = parse_json(text)["info"]["features"] if text else {}
    except (ValueError, KeyError, TypeError):
        return {}
    return {k: v for k, v in features.items() if isinstance(v, dict)} if isinstance(features, dict) else {}


def _kind(features: dict[str, Any], column: str) -> object:
    return features.get(column, {}).get("_type")


def _only(path: Path, what: str, setting: str, candidates: Sequence[str], schema: pa.Schema) -> str:
    if len(candidates) != 1:
        problem = (
            f"{len(candidates)} columns could hold the {what}s"
            if candidates
            else f"no column holds the {what}s"
        )
        raise DataError(
            f"{path}: {problem}; there are {', '.join(f'{f.name} ({f.type})' for f in schema)}. Set {setting}."
        )
    return candidates[0]


def _check_columns(path: Path, columns: Columns) -> None:
    """Raise DataError unless both columns exist and have supported types."""
    schema = read_schema(path)
    for name, setting in zip((columns.image, columns.label), columns.settings, strict=True):
        if name not in schema.names:
            raise DataError(
                f"{path} has no column {name!r}{near_names(name, schema.names) or '.'} There are: "
                f"{', '.join(schema.names)}. Set {setting}."
            )
        if schema.names.count(name) > 1:
            raise DataError(
                f"{path} has {schema.names.count(name)} columns {name!r}; rename all but one, or set "
                f"{setting} to another."
            )
    (image, of_image), (label, of_label) = zip((columns.image, columns.label), columns.settings, strict=True)
    kind = schema.field(image).type
    if not holds_bytes(kind):
        raise DataError(
            f"{path}: the column {image!r} is {kind}; it must hold the bytes of image files, as {IMAGE_TYPES}. Set "
            f"{of_image} to such a column."
        )
    kind = schema.field(label).type
    if not is_text(kind) and not is_whole(kind):
        raise DataError(
            f"{path}: the labels in column {label!r} are {kind}; they must be {LABEL_TYPES}. Set {of_label} to "
            "such a column."
        )


def _classes(source: DataSource, train: Sequence[Path], columns: Columns) -> tuple[str, ...]:
    names = source.classes or columns.names
    if names is not None:
        return names
    labels: set[str | None] = set()
    for path in train:
        _check_text(path, columns)
        row = 0
        for values in _iter_values(path, columns, columns.label, LABEL_ROWS):
            labels.update(values)
            blank = next((name for name in labels if name is not None and not name.strip()), None)
            if blank is not None:
                raise DataError(
                    f"{path}, row {row + values.index(blank)}: the label is {blank!r}, which names no class. Correct "
                    "the label, leave the row out, or set data.classes."
                )
            row += len(values)
    return tuple(sorted(name for name in labels if name is not None))


def _check_text(path: Path, columns: Columns) -> None:
    """Raise DataError unless the labels are strings, which then name the classes."""
    _check_columns(path, columns)
    if not is_text(read_schema(path).field(columns.label).type):
        raise DataError(
            f"{path}: the labels in column {columns.label!r} are numbers, and the schema names no classes. Set "
            'data.classes to their names in the order of the numbers, as in --set "data.classes=[cat, dog]".'
        )


def _iter_values(path: Path, columns: Columns, name: str, batch_rows: int) -> Iterator[list[Any]]:
    """Yield the values of one column of a file, in batches. Raises DataError if the file has other columns."""
    _check_columns(path, columns)
    for batch in iter_rows(path, [name], batch_rows):
        yield values_of(batch.column(0))


def _check_names(path: Path, names: tuple[str, ...] | None, classes: tuple[str, ...]) -> None:
    if names is not None and names != classes:
        odd = next((i for i, (a, b) in enumerate(zip(names, classes, strict=False)) if a != b), None)
        how = (
            f"{len(names)} names for {len(classes)} classes"
            if odd is None
            else f"label {odd} is {names[odd]!r}"
        )
        raise DataError(
            f"{path}: the schema names other classes than the training split's first file ({how}). Write all files "
            "with the same names in the same order."
        )


def _labels(path: Path, columns: Columns, classes: tuple[str, ...]) -> Ints:
    """The labels of a file as class numbers. Raises DataError naming the first row without a valid label."""
    _check_columns(path, columns)
    text = is_text(read_schema(path).field(columns.label).type)
    number = {name: label for label, name in enumerate(classes)}
    labels: list[int] = []
    for values in _iter_values(path, columns, columns.label, LABEL_ROWS):
        for value in values:
            label = number.get(value) if text else value
            if label is None or not 0 <= label < len(classes):
                raise DataError(
                    f"{path}, row {len(labels)}: the label is {value!r}; there are {len(classes)} classes"
                    + (
                        f": {', '.join(classes[:10])}{', …' if len(classes) > 10 else ''}"
                        if text
                        else f", 0 to {len(classes) - 1}"
                    )
                    + ". Correct the label, leave the row out, or set data.classes."
                )
            labels.append(label)
    return np.array(labels, np.int64)


def _batches(files: Sequence[Path], columns: Columns) -> Iterator[Sequence[EncodedImage]]:
    for path in files:
        row = 0
        for values in _iter_values(path, columns, columns.image, BATCH):
            contents = [_bytes_of(value, path, row + i) for i, value in enumerate(values)]
            yield [
                EncodedImage(name=f"{path}, row {row + i}", content=content)
                for i, content in enumerate(contents)
            ]
            row += len(contents)


def _bytes_of(value: Any, path: Path, row: int) -> bytes:
    content = value.get("bytes") if isinstance(value, dict) else value
    if content is None:
        elsewhere = (
            f" (it names the file {value['path']})" if isinstance(value, dict) and value.get("path") else ""
        )
        raise DataError(
            f"{path}, row {row}: there are no image bytes{elsewhere}. Embed the images in the table, leave the row "
            "out, or use data.name: imagefolder for image files."
        )
    return bytes(content)
