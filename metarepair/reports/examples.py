"""Draw some D_fail examples of a repaired target, with predictions before and after the repair.

The evaluator has already computed the accuracies on D_fail; D_fail is read here only for pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from metarepair.reports import figures
from metarepair.reports.table import Result, by_method
from metarepair.reports.words import method_words
from metarepair.runs.layout import Run
from tasks.environments import Environment
from tasks.experiences.failure_file import read_failures
from tasks.experiences.pixels import RecomputedPixels
from tasks.records import Failures, Ints
from tasks.storage.paths import Place, inside, read_table

SourceOf = Callable[[str], Environment]  # of a target's name
REPAIR_AGAIN = "Repair again: metarepair repair --config FILE --restart."


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A PNG and what it shows."""

    png: bytes
    caption: str


def example_figure(
    run: Run, result: Result, target: str, classes: Sequence[str], source: SourceOf | None
) -> Picture | str:
    """Return examples for MetaRepair's first seed (or the last method's, without MetaRepair), or why there are none.

    `source` loads the target's environment; it is called only if the store holds no pixels.
    """
    samples, store = run.repaired(target) / "samples.parquet", run.target(target) / "fail.arrow"
    missing = [inside(path, run.root) for path in (samples, store) if not path.is_file()]
    if missing:
        return f"{', '.join(missing)} is missing"
    groups = by_method(result)
    method = "metarepair" if "metarepair" in groups else list(groups)[-1]
    fail, seed = read_failures(store), int(groups[method][0]["seed"])
    if isinstance(fail.images_NHWC, RecomputedPixels):
        if source is None:
            return "the store holds no pixels, and the data set was not given"
        fail = replace(fail, images_NHWC=fail.images_NHWC.read_from(source(target)))
    after_N = _after(samples, fail, method, seed)
    if not np.any(after_N >= 0):
        return f"{samples.name} has no examples of {method}"
    words = f"{method_words(method)}, seed {seed}"
    png = figures.examples(fail, after_N, classes, f"D_fail examples: {words}")
    return Picture(png=png, caption=f"Examples from D_fail, evenly spaced rather than hand-picked; {words}.")


def _after(samples: Place, fail: Failures, method: str, seed: int) -> Ints:
    """Return the repaired DNN's prediction for each failure, −1 if there is none."""
    wanted = [("method", "=", method), ("seed", "=", seed)]
    table = read_table(samples, REPAIR_AGAIN, filters=wanted).to_pydict()
    after = dict(zip(zip(table["image_id"], table["severity"], strict=True), table["after"], strict=True))
    keys = zip(fail.image_ids_N.tolist(), fail.severities_N.tolist(), strict=True)
    return np.array([after.get(key, -1) for key in keys], np.int64)
