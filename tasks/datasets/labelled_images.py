"""List a user's own labelled images: class folders, a CSV or JSON Lines file, Parquet or Arrow tables.

    class folders   FOLDER/CLASS/…/FILE; a class may lack a folder
    CSV             a header with the columns path, label and, if wanted, group
    JSON Lines      an object per line with the same keys
    Parquet, Arrow  a column of encoded images and one of labels, as `data.name: parquet` reads them

A label is the name of a class or its number, from 0. The classes of an environment come from the clean images, never
from its own files. Paths in a table are relative to its own folder or to `root`, and may not leave it.
"""

# N images

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tasks.datasets.column_kinds import values_of
from tasks.datasets.decoding import BATCH, EncodedImage, Listing
from tasks.datasets.image_folder import list_folder
from tasks.datasets.image_table import LABEL_ROWS, list_table
from tasks.datasets.own_files import entries, is_hidden
from tasks.datasets.row_files import CSV, LINES, iter_named_rows
from tasks.datasets.source import UNSPLIT, DataSource
from tasks.datasets.table_files import SUFFIXES as TABLES
from tasks.datasets.table_files import iter_rows, read_schema
from tasks.errors import DataError, near_names

Form = Literal["folders", "tables", "rows"]
Stamp = tuple[str, int, int, int]
DEFAULT_PATH, DEFAULT_LABEL = "path", "label"
PARTS = b"metarepair_parts"  # in the metadata of a Parquet file: what each image is for, a digit for each
DEFAULT_GROUP = "group"  # the column of groups that is used without being named, if there is one
_NUMBER = re.compile(r"[0-9]{1,9}")


@dataclass(frozen=True, kw_only=True)
class ImageSource:
    """Where a user's labelled images lie.

    Attributes:
        setting: the setting that names `location`, for messages.
        location: a folder of class folders, a CSV or JSON Lines file, or Parquet or Arrow tables.
        root: folder that the paths of a CSV or JSON Lines file are relative to; `None` for the folder of the file.
        image_column: column of the images' paths in CSV and JSON Lines, `None` for `path`; or of the encoded images in
            Parquet and Arrow, `None` for the only candidate.
        label_column: column of the labels; `None` for `label`, or the only candidate of a Parquet table.
        group_column: column of the groups; `None` for `group`, if there is such a column.
        image_size: side in pixels of the square that images are resized and cropped to; `None` if all have one size.
        settings: names of the settings `image_column`, `label_column` and `group_column`, for messages.
        root_setting: name of the setting `root`, for messages; `None` if there is none.
    """

    setting: str
    location: Path
    root: Path | None = None
    image_column: str | None = None
    label_column: str | None = None
    group_column: str | None = None
    image_size: int | None = None
    settings: tuple[str, str, str] = ("data.image_column", "data.label_column", "data.group_column")
    root_setting: str | None = None


def form_of(source: ImageSource) -> Form:
    """Find the form of a source: `folders` of classes, `tables` (Parquet, Arrow), or `rows` (CSV, JSON Lines).

    Raises DataError if it does not exist, or has none of these forms.
    """
    path = source.location
    if not path.exists():
        raise DataError(
            f"{source.setting} {path} does not exist. Give a folder of class folders, or a table."
        )
    suffix = path.suffix.lower()
    if path.is_dir() and not _holds_tables(path):
        _refuse_columns(source)
        return "folders"
    if path.is_dir() or (path.is_file() and suffix in TABLES):
        return "tables"
    if path.is_file() and suffix in (*CSV, *LINES):
        return "rows"
    raise DataError(
        f"{source.setting} {path} is neither a folder nor a table ({', '.join((*CSV, *LINES, *TABLES))}). Give one "
        "of these."
    )


def _refuse_columns(source: ImageSource) -> None:
    """Raise DataError if a column is named, which class folders do not have."""
    columns = (source.image_column, source.label_column, source.group_column)
    for column, setting in zip(columns, source.settings, strict=True):
        if column is not None:
            raise DataError(
                f"{setting} is {column!r}, and {source.setting} {source.location} has class folders, which have no "
                "columns. Leave it out, or give a table."
            )


def list_images(source: ImageSource, classes: tuple[str, ...]) -> Listing:
    """List the labelled images of a source. No image is opened.

    Args:
        source: where they lie.
        classes: names of the classes, in the order of the labels.

    Returns:
        The images, with at least one.

    Raises:
        DataError: nothing is found, a label is of no class, or a path leads out of its folder.
    """
    form = form_of(source)
    if form == "folders":
        listed = list_folder(as_split(source, form, classes), "train")
    elif form == "tables":
        listed = _list_tables(source, classes)
    else:
        listed = _list_rows(source, classes, _stamp(source))
    if not len(listed.labels_N):
        raise DataError(
            f"{source.setting} {source.location} lists no images. Give some, with their right labels."
        )
    return listed


def _stamp(source: ImageSource) -> Stamp:
    """What changes when the file is written, or when a relative path leads to another file."""
    status = source.location.stat()
    return str(Path.cwd()), status.st_ino, status.st_mtime_ns, status.st_size


def class_names(source: ImageSource) -> tuple[str, ...]:
    """Return the sorted labels of a CSV or JSON Lines file, which name the classes. Raises DataError for numbers."""
    return _class_names(source, _stamp(source))


@lru_cache(maxsize=4)
def _class_names(source: ImageSource, _: Stamp) -> tuple[str, ...]:
    column = source.label_column or DEFAULT_LABEL
    names = set()
    for line, row in iter_named_rows(source.location):
        if column not in row:
            raise _no_column(source, source.location, column, list(row))
        label, where = row[column], f"{source.location}, line {line}"
        if label is None or not str(label).strip() or isinstance(label, list | dict):
            raise DataError(
                f"{where}: the label is {str(label)[:80]!r}, which names no class. Correct the label, or leave the row "
                "out."
            )
        if not isinstance(label, str) or _NUMBER.fullmatch(label.strip()):
            raise DataError(
                f"{where}: the label is the number {str(label)[:80]}, and numbers do not name the classes. Set "
                'data.classes to their names in the order of the numbers, as in --set "data.classes=[cat, dog]".'
            )
        names.add(label.strip())
    return tuple(sorted(names))


def _holds_tables(folder: Path) -> bool:
    """Whether a folder holds tables and no class folders."""
    there = [path for path in entries(folder) if not is_hidden(path.name)]
    return any(p.suffix.lower() in TABLES for p in there) and not any(p.is_dir() for p in there)


def as_split(
    source: ImageSource, form: Literal["folders", "tables"], classes: tuple[str, ...] | None
) -> DataSource:
    """The source as both splits of a data set, for the readers of data sets."""
    location, tables = str(source.location), form == "tables"
    return DataSource(
        name="parquet" if tables else "imagefolder",
        train=location,
        test=location,
        classes=classes,
        image_size=source.image_size,
        image_column=source.image_column if tables else None,
        label_column=source.label_column if tables else None,
        settings=source.settings[:2],
    )


def _list_tables(source: ImageSource, classes: tuple[str, ...]) -> Listing:
    listing = list_table(as_split(source, "tables", classes), "train")
    digits = [(read_schema(path).metadata or {}).get(PARTS, b"") for path in listing.files]
    if all(digits):
        listing = replace(listing, parts_N=np.array([*map(int, b"".join(digits).decode())], np.int8))
    groups: list[str] = []
    named = [_group_column(source, path, read_schema(path).names) for path in listing.files]
    if not any(named):
        return listing
    for path, column in zip(listing.files, named, strict=True):
        if column is None:
            raise DataError(
                f"{path} has no column {DEFAULT_GROUP!r}, but other tables of {source.location} have. Give every "
                "image a group, or leave the column out."
            )
        start = len(groups)
        for batch in iter_rows(path, [column], LABEL_ROWS):
            for value in values_of(batch.column(0)):
                groups.append(_group(value, f"{path}, row {len(groups) - start + 1}"))
    return replace(listing, groups=groups)


def _group(value: Any, where: str) -> str:
    """The name of a group. Raises DataError if the value names none."""
    if value is None or isinstance(value, list | dict) or value != value or not str(value).strip():
        raise DataError(
            f"{where}: the group is {value!r}. Give every image a group, or leave the column out."
        )
    try:
        return str(value).encode().decode()
    except UnicodeEncodeError as error:
        raise DataError(f"{where}: the group {ascii(value)[:200]} is no text. Correct the group.") from error


def _group_column(source: ImageSource, path: Path, columns: Sequence[str]) -> str | None:
    """The column of groups, `None` if there is none. Raises DataError if the one that is named is missing."""
    name = source.group_column or DEFAULT_GROUP
    if name in columns:
        return name
    if source.group_column is None:
        return None
    raise _no_column(source, path, name, columns)


def _no_column(source: ImageSource, path: Path, name: str, columns: Sequence[str]) -> DataError:
    return DataError(
        f"{path} has no column {name!r}{near_names(name, columns) or '.'} There are: "
        f"{', '.join(map(str, columns[:20])) or 'none'}. Name the columns by the settings "
        f"{', '.join(source.settings[:2])} and {source.settings[2]}."
    )


@dataclass
class _Rows:
    """The rows of a CSV or JSON Lines file so far."""

    paths: list[str] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)


@lru_cache(maxsize=2)
def _list_rows(source: ImageSource, classes: tuple[str, ...], _: Stamp) -> Listing:
    """Read a CSV or JSON Lines file row by row; once, as long as its stamp stays the same."""
    path = source.location
    root = (source.root or path.parent).absolute()
    if not root.is_dir():
        raise DataError(f"The root {root} of {path} is not a folder. Give the one that its paths start from.")
    inside = _Inside(root, source.root_setting)
    number = {name: label for label, name in enumerate(classes)}
    rows, label_column = _Rows(), source.label_column or DEFAULT_LABEL
    path_column = source.image_column or DEFAULT_PATH
    group_column: str | None = None
    for line, row in iter_named_rows(path):
        if not rows.labels:
            columns = list(row)
            for name in (path_column, label_column):
                if name not in row:
                    raise _no_column(source, path, name, columns)
            group_column = _group_column(source, path, columns)
        where = f"{path}, line {line}"
        image = row.get(path_column)
        if not isinstance(image, str) or not image.strip():
            raise DataError(
                f"{where}: the path is {image!r}. Give the path of an image, or leave the row out."
            )
        inside.check(image, where)
        rows.paths.append(image)
        rows.labels.append(_label(row.get(label_column), number, classes, where))
        if group_column is not None:
            rows.groups.append(_group(row.get(group_column), where))
        elif DEFAULT_GROUP in row:
            raise DataError(
                f"{where}: it has a group, and the first row has none. Give every image a group, or leave the column "
                "out."
            )

    def batches() -> Iterator[Sequence[EncodedImage]]:
        for start in range(0, len(rows.paths), BATCH):
            some = rows.paths[start : start + BATCH]
            yield [EncodedImage(name=n, content=Path(os.path.normpath(root / n))) for n in some]

    return Listing(
        name=UNSPLIT,
        split=None,
        classes=classes,
        labels_N=np.array(rows.labels, np.int64),
        image_size=source.image_size,
        files=[Path(os.path.normpath(root / name)) for name in rows.paths],
        batches=batches,
        groups=rows.groups if group_column is not None else None,
    )


class _Inside:
    """Checks that paths stay in a folder, also through links."""

    def __init__(self, root: Path, setting: str | None) -> None:
        self._root, self._real, self._setting = root, root.resolve(), setting
        self._folder_is_inside = cache(self._is_inside)

    def check(self, name: str, where: str) -> None:
        """Raise DataError if the path leads out of the folder."""
        if "\0" in name:
            raise DataError(f"{where}: the path {name[:200]!r} holds a NUL character. Correct the path.")
        if not name.isascii() and any("\ud800" <= c <= "\udfff" for c in name):
            raise DataError(
                f"{where}: the path {name[:200]!a} holds half of a pair of UTF-16, which is no character. Correct "
                "the path."
            )
        path = Path(os.path.normpath(self._root / name))
        try:
            if path.is_symlink():
                path = path.resolve()
            inside = self._folder_is_inside(path.parent)
        except (OSError, RuntimeError):  # too long a name, or links in a circle: listed as unreadable later
            return
        if not inside:
            other = (
                ""
                if self._setting is None
                else f", or name a folder that holds all of them ({self._setting})"
            )
            raise DataError(
                f"{where}: the path {name[:200]!r} leads out of {self._root}. Move the image there{other}."
            )

    def _is_inside(self, folder: Path) -> bool:
        return folder.resolve().is_relative_to(self._real)


def _label(value: Any, number: dict[str, int], classes: tuple[str, ...], where: str) -> int:
    """The number of the class that a label names. Raises DataError if it names none."""
    label = value if isinstance(value, int) and not isinstance(value, bool) else None
    if isinstance(value, str):
        name = value.strip()
        label = number.get(name)
        if label is None and _NUMBER.fullmatch(name):
            label = int(name)
    if label is not None and 0 <= label < len(classes):
        return label
    hint = near_names(value, classes) if isinstance(value, str) else ""
    shown = f"{', '.join(classes[:10])}{', …' if len(classes) > 10 else ''}"
    raise DataError(
        f"{where}: the label is {str(value)[:80]!r}, which names no class{hint or '.'} There are {len(classes)}: "
        f"{shown}; or give a number, 0 to {len(classes) - 1}. Correct the label, or leave the row out."
    )
