"""Write the pairs of a study of the hypothesis as a table, and format its summary as text.

Gain, distance and the correlations are defined in metarepair.evaluation.hypothesis.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from metarepair.evaluation.hypothesis import Study, different, relative_gains
from tasks.environments import category_of
from tasks.storage.paths import Place, write_table

# C corruptions (rows are experiences, columns targets)


def pairs_table(study: Study) -> pa.Table:
    """Return a row for every ordered pair of different corruptions, grouped by target, nearest experience first."""
    relative_CC = relative_gains(different(study.gains_CC))
    sd_CC = study.gains_SCC.std(axis=0, ddof=1) if len(study.seeds) > 1 else None
    rows = [
        {
            "experience": study.names[i],
            "target": target,
            "experience_category": category_of(study.names[i]),
            "target_category": category_of(target),
            "distance": float(study.distances_CC[i, j]),
            "extractor": study.extractor,
            "gain": float(study.gains_CC[i, j]),
            "gain_sd": None if sd_CC is None else float(sd_CC[i, j]),
            "relative_gain": float(relative_CC[i, j]),
            **{f"gain_seed_{s}": float(study.gains_SCC[k, i, j]) for k, s in enumerate(study.seeds)},
        }
        for j, target in enumerate(study.names)
        for i in np.argsort(study.distances_CC[:, j], kind="stable")
        if i != j
    ]
    return pa.Table.from_pylist(rows, schema=_pair_schema(study.seeds))


def _pair_schema(seeds: Sequence[int]) -> pa.Schema:
    text = [pa.field(n, pa.string()) for n in ("experience", "target")]
    text += [pa.field(f"{f.name}_category", pa.string()) for f in text]
    number = partial(pa.field, type=pa.float64())
    fields = [*text, number("distance"), pa.field("extractor", pa.string())]
    gains = ["gain", "gain_sd", "relative_gain", *(f"gain_seed_{s}" for s in seeds)]
    return pa.schema([*fields, *(number(n) for n in gains)])


def write_pairs(folder: Place, table: pa.Table) -> list[str]:
    """Write pairs.parquet and pairs.csv; return their names."""
    names = ["pairs.parquet", "pairs.csv"]
    for name in names:
        write_table(folder / name, table)
    return names


WORDS = {
    "all_pairs": "over all pairs",
    "less_target_means": "minus each target's mean gain",
    "within_targets": "mean of those within targets",
}


def describe(summary: dict[str, Any]) -> str:
    """Return the summary as text, with gains in percent."""
    means, count = summary["mean_gain"], len(summary["seeds"])
    lines = [
        f"Gain: accuracy on a target's collected failures after fine-tuning on an experience's, mean over "
        f"{count} seed{'s' * (count > 1)}. Gains are in percent.",
        f"Mean gain from the same corruption {_percent(means['same_corruption'])}, from another corruption of its "
        f"category {_percent(means['same_category'])}, from another category {_percent(means['other_category'])}.",
        f"Spearman's correlation of the gain with the {summary['distance_name']}, over {summary['pairs']} pairs of "
        f"{len(summary['corruptions'])} corruptions; below 0 means that nearer experiences gain more. "
        f"{summary['level']:.0%} intervals from {summary['resamples']} resamples, p from as many permutations.",
    ]
    lines += [f"  {WORDS[name]:30s} {_numbers(found)}" for name, found in summary["correlations"].items()]
    lines.append(
        f"  {'target':18s} {'rho':>6s} {'interval':>16s} {'p':>7s} {'mean':>6s} {'same':>6s}  nearest, best"
    )
    for name, found in summary["targets"].items():
        gains = " ".join(f"{_percent(found[k]):>6s}" for k in ("mean_gain", "same_corruption_gain"))
        nearest, best = (f"{found[k]} {_percent(found[f'{k}_gain'])}" for k in ("nearest", "best"))
        lines.append(f"  {name:18s} {_numbers(found)} {gains}  {nearest}, {best}")
    return "\n".join(lines)


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}"


def _numbers(found: dict[str, Any]) -> str:
    if found["rho"] is None:
        return f"{'–':>6s} {'–':>16s} {'–':>7s}"
    interval = f"{found['low']:.2f} to {found['high']:.2f}"
    return f"{found['rho']:6.2f} {interval:>16s} {found['p']:7.4f}"
