"""Say in one sentence whether to take the repaired model: how much better it is, and at what cost."""

# N images

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from metarepair.reports.table import method_words, percent, points
from tasks.errors import StageError

Z95 = 1.96  # two-sided 95% quantile of the normal distribution


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a finished `fix` ends with.

    kept: whether the deployed weights stay. method, seed, weights: the repair that is taken; None if there is none.
    words: one sentence for the user.
    """

    kept: bool
    words: str
    method: str | None = None
    seed: int | None = None
    weights: str | None = None


def outcome_of(result: Mapping[str, Any], *, only_failures: bool) -> Outcome:
    """Return what `result.json` says.

    only_failures: whether all photographs were failures, so that what a repair breaks among them is unknown. Raises
    StageError if the result holds no choice, as one of an older version.
    """
    choice = result.get("choice")
    if choice is None:
        raise StageError(
            "result.json holds no choice of a repair. Make it again: the same command with --restart."
        )
    if choice["kept"]:
        return Outcome(kept=True, words=f"Keep your model: {_why_kept(result)}")
    row = _row(result, choice["method"], choice["seed"])
    gained = _failures_fixed(result, row) if only_failures else _environment(result, row)
    words = f"Take the repaired model ({method_words(row['method'])}): {gained}, {_clean(result, row)}."
    doubt = "" if only_failures else _doubt(result, row)
    return Outcome(
        kept=False, words=words + doubt, method=row["method"], seed=row["seed"], weights=row["weights"]
    )


def gain_interval(*, fixed: int, broken: int, images: int) -> tuple[float, float, float]:
    """The gain of accuracy of a paired comparison, and its 95% interval (normal approximation; McNemar's variance).

    fixed, broken: images, of all `images`, that became right, and that became wrong.
    """
    gain = (fixed - broken) / images
    error = math.sqrt(max(fixed + broken - (fixed - broken) ** 2 / images, 0.0)) / images
    return gain, gain - Z95 * error, gain + Z95 * error


def _row(result: Mapping[str, Any], method: str, seed: int) -> Mapping[str, Any]:
    found: Mapping[str, Any] = next(
        row for row in result["methods"] if row["method"] == method and row["seed"] == seed
    )
    return found


def _before(result: Mapping[str, Any]) -> float:
    """The deployed model's accuracy on the photographs that judge: all but the failures."""
    fraction: float = 1 - result["d_collect"]["fail"] / result["judging"]["images"]
    return fraction


def _changed(result: Mapping[str, Any], row: Mapping[str, Any]) -> tuple[int, int, int]:
    """Photographs that became right, those that became wrong, and all that judge."""
    fail, images = result["d_collect"]["fail"], result["judging"]["images"]
    return round(row["d_fail"] * fail), round(row["break_rate_corrupted"] * (images - fail)), images


def _environment(result: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    fixed, broken, images = _changed(result, row)
    gain, low, high = gain_interval(fixed=fixed, broken=broken, images=images)
    before = _before(result)
    return (
        f"on the {images:,} photographs that judge, accuracy goes from {percent(before)}% to {percent(before + gain)}% "
        f"({points(gain)}; 95% interval {100 * low:+.1f} to {100 * high:+.1f}), {fixed} became right and {broken} wrong"
    )


def _failures_fixed(result: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    fail = result["d_collect"]["fail"]
    return (
        f"it gets {percent(row['d_fail'])}% of the {fail:,} failures that judge right; what it breaks among the "
        "photographs that were right is unknown, since only failures were given"
    )


def _clean(result: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    images = result["judging"]["clean_images"]
    broken = round(row["break_rate"] * row["clean_before"] * images)
    fixed = round((row["clean"] - row["clean_before"]) * images) + broken
    gain, low, high = gain_interval(fixed=fixed, broken=broken, images=images)
    return (
        f"and on {images:,} clean images from {percent(row['clean_before'])}% to {percent(row['clean'])}% "
        f"({points(gain)}; {100 * low:+.1f} to {100 * high:+.1f}); {percent(row['break_rate'])}% of the clean images "
        "that were right are now wrong"
    )


def _doubt(result: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    """A warning if the photographs that judge do not confirm the gain."""
    fixed, broken, images = _changed(result, row)
    gain, low, _ = gain_interval(fixed=fixed, broken=broken, images=images)
    if gain <= 0:
        return " The photographs that judge show no gain: keep your model until more photographs show one."
    if low <= 0:
        return (
            " With so few photographs this gain may be chance: judge by more (--holdout) before you decide."
        )
    return ""


def _why_kept(result: Mapping[str, Any]) -> str:
    """That nothing is inside the limits, and what comes nearest, with its gain and its cost."""
    selections = [(row["method"], row["selection"]) for row in result["methods"] if row["method"] != "none"]
    near = [(method, one, point) for method, one in selections for point in one["nearest"]]
    why = "no repair gains anything inside your limits on the images that select"
    if not near:
        return f"{why}."
    method, one, point = min(near, key=lambda found: sum(found[2]["outside"].values()))
    gain, part = point["environment"] - one["environment_before"], _part(point)
    cost = "" if point["clean"] is None else f", {points(point['clean'] - one['clean_before'])} on clean ones"
    broken = ", ".join(
        f"limits.{name} by {points(by).lstrip('+')}" for name, by in point["outside"].items() if by > 0
    )
    beyond = f" (it exceeds {broken})" if broken else ""
    return f"{why}. The nearest is {method_words(method)}{part}: {points(gain)} on the photographs{cost}{beyond}."


def _part(point: Mapping[str, Any]) -> str:
    """Which point on the way to the repaired model it is."""
    if point["episode"] is not None:
        return f" after episode {point['episode'] + 1}"
    return "" if point["weight"] == 1 else f", {point['weight']:.0%} of the way"
