"""Compare two methods example by example, as a table and a picture.

Pixels are read again from the environment, so D_fail stays closed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from matplotlib.axes import Axes
from numpy.typing import NDArray

from metarepair.compare.judge import SAMPLES
from metarepair.compare.units import ComparedRepair
from metarepair.reports.figures import blank, plain, save, to_png
from metarepair.reports.table import aligned
from metarepair.reports.words import method_words
from metarepair.runs.layout import Run
from tasks.datasets import Dataset
from tasks.environments import Environment
from tasks.errors import DataError, StageError
from tasks.records import Ints, Pixels
from tasks.storage.paths import Place, read_table, write_table
from tasks.storage.stages import COMPARED

# N examples

EACH = 8  # pictures of each kind of difference
KEYS = ("part", "image_id", "severity", "label", "before")


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of difference: its rows in the pair's table, and what to call it."""

    words: str
    rows_N: Ints


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Both methods' answers to the same examples, as one table, and the kinds of difference."""

    target: str
    methods: tuple[str, str]
    seed: int
    table: pa.Table
    kinds: tuple[Kind, ...]


def load_pair(run: Run, target: str, methods: tuple[str, str], seed: int) -> Pair:
    """Load both methods' answers. Raises StageError if one is not judged, DataError if their examples differ."""
    tables = [_samples(run, ComparedRepair(target=target, method=method, seed=seed)) for method in methods]
    first, second = tables
    if not first.select(KEYS).equals(second.select(KEYS)):
        raise DataError(
            f"{target}: {methods[0]} and {methods[1]} were not judged on the same examples. Compare again: "
            "metarepair compare --config FILE --restart."
        )
    table = first.select(KEYS)
    for method, samples in zip(methods, tables, strict=True):
        table = table.append_column(f"after_{method}", samples["after"])
    return Pair(target=target, methods=methods, seed=seed, table=table, kinds=_kinds(table, methods))


def _samples(run: Run, unit: ComparedRepair) -> pa.Table:
    path = run.compared(unit.target, unit.method, unit.seed) / SAMPLES
    if not path.is_file():
        raise StageError(f"{path} is missing: {unit.words} is not judged yet. {COMPARED.remedy}")
    return read_table(path, "Delete it and compare again.")


def _kinds(table: pa.Table, methods: tuple[str, str]) -> tuple[Kind, ...]:
    label_N, before_N = table["label"].to_numpy(), table["before"].to_numpy()
    fail_N = np.array(table["part"].to_pylist()) == "fail"
    right = [table[f"after_{method}"].to_numpy() == label_N for method in methods]
    clean_right_N = ~fail_N & (before_N == label_N)

    def kind(words: str, mask_N: NDArray[np.bool_]) -> Kind:
        return Kind(words=words, rows_N=np.flatnonzero(mask_N))

    a, b = map(method_words, methods)
    return (
        kind(f"D_fail: {a} repairs, {b} does not", fail_N & right[0] & ~right[1]),
        kind(f"D_fail: {b} repairs, {a} does not", fail_N & right[1] & ~right[0]),
        kind("D_fail: both repair", fail_N & right[0] & right[1]),
        kind("D_fail: neither repairs", fail_N & ~right[0] & ~right[1]),
        kind(f"clean: {b} breaks, {a} does not", clean_right_N & right[0] & ~right[1]),
        kind(f"clean: {a} breaks, {b} does not", clean_right_N & right[1] & ~right[0]),
        kind("clean: both break", clean_right_N & ~right[0] & ~right[1]),
    )


def write_pair(run: Run, pair: Pair, test: Dataset, source: Environment) -> list[str]:
    """Write the examples as Parquet and CSV, and a picture of some on which the methods differ.

    test: the clean test split. source: the target's environment. Returns lines to log.
    """
    name = f"{pair.target}_{pair.methods[0]}_{pair.methods[1]}_{pair.seed}"
    for ending in ("parquet", "csv"):
        write_table(run.compare / "pairs" / f"{name}.{ending}", pair.table)
    picture: Place = run.compare / "pairs" / f"{name}.png"
    save(picture, _draw(pair, test, source))
    rows = [[kind.words, f"{len(kind.rows_N):,}"] for kind in pair.kinds]
    lines = aligned([f"{pair.target}, seed {pair.seed}", "examples"], rows)
    return [*lines, f"Example by example: {picture} and {name}.parquet beside it"]


def _draw(pair: Pair, test: Dataset, source: Environment) -> bytes:
    kinds = [kind for kind in pair.kinds if "does not" in kind.words]
    figure = blank(1.5 * EACH + 0.8, 2.3 * len(kinds) + 0.5)
    grid = figure.subplots(len(kinds), EACH, squeeze=False)
    figure.suptitle(plain(f"{pair.target.replace('_', ' ')}: evenly spaced examples, not picked"))
    for line, kind in zip(grid, kinds, strict=True):
        rows = kind.rows_N
        chosen = rows[np.unique(np.linspace(0, len(rows) - 1, min(EACH, len(rows))).astype(int))]
        line[0].text(
            -0.1,
            0.5,
            plain(kind.words.replace(": ", ":\n").replace(", ", ",\n")) + ("" if len(rows) else "\n(none)"),
            rotation=90,
            va="center",
            ha="right",
            fontsize=7,
            transform=line[0].transAxes,
        )
        for axes in line:
            axes.set_axis_off()
        for axes, row in zip(line, chosen.tolist(), strict=False):
            _example(axes, pair, row, test, source)
    return to_png(figure)


def _example(axes: Axes, pair: Pair, row: int, test: Dataset, source: Environment) -> None:
    example = pair.table.slice(row, 1).to_pylist()[0]
    axes.imshow(_pixels(example["part"], example["image_id"], example["severity"], test, source))
    names = [_class(test.classes, example[key]) for key in ("label", "before")]
    answers = [_class(test.classes, example[f"after_{method}"]) for method in pair.methods]
    words = [f"true: {names[0]}", f"before: {names[1]}"]
    words += [f"{method_words(m)}: {a}" for m, a in zip(pair.methods, answers, strict=True)]
    axes.set_title(plain("\n".join(words)), fontsize=6, loc="left")


def _pixels(part: str, image_id: int, severity: int, test: Dataset, source: Environment) -> Pixels:
    if part == "clean":
        return np.asarray(test.images(np.array([image_id]))[0])
    rows = np.flatnonzero(source.image_ids_N == image_id)
    return np.asarray(source.images(rows, severity)[0])


def _class(classes: Sequence[str], index: int) -> str:
    return classes[index].replace("_", " ") if 0 <= index < len(classes) else str(index)
