"""Read the rows of a CSV or JSON Lines file of a user, one by one."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tasks.errors import DataError
from tasks.storage.paths import parse_json, require_regular

CSV, LINES = (".csv",), (".jsonl", ".ndjson")
LONGEST_LINE = 1 << 20  # characters


def iter_named_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number, row) of a CSV or JSON Lines file. Raises DataError."""
    try:
        with require_regular(path).open(encoding="utf-8-sig", newline="") as stream:
            yield from (_csv_rows if path.suffix.lower() in CSV else _json_rows)(path, stream)
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 ({error}). Save it as UTF-8.") from error
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error.strerror or error}). Give a readable file."
        ) from error


def _csv_rows(path: Path, stream: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.reader(stream, strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        twice = sorted({name for name in header if header.count(name) > 1})
        if twice:
            raise DataError(f"{path} has the column {twice[0]!r} twice. Rename or remove one.")
        for cells in reader:
            if not cells:
                continue
            if len(cells) != len(header):
                raise DataError(
                    f"{path}, line {reader.line_num}: {len(cells)} values for {len(header)} columns. Put a value "
                    "that holds a comma in double quotes."
                )
            yield reader.line_num, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise DataError(
            f"{path}, line {reader.line_num}: it cannot be read as CSV ({error}). Correct it."
        ) from error


def _json_rows(path: Path, stream: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    line = 0
    while text := stream.readline(LONGEST_LINE):
        line += 1
        if len(text) == LONGEST_LINE:
            raise DataError(
                f"{path}, line {line}: it has more than {LONGEST_LINE:,} characters. A line holds one row; correct it."
            )
        if not text.strip():
            continue
        try:
            row = parse_json(text)
        except ValueError as error:
            raise DataError(f"{path}, line {line}: it is not JSON ({error}). Correct the line.") from error
        if not isinstance(row, dict):
            raise DataError(f"{path}, line {line}: it is {type(row).__name__}, not an object with keys.")
        yield line, row
