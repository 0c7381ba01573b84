"""Say what limits let through: the point taken of each repair, and in one sentence whether to take the best of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from metarepair.evaluation.bounds import LEVEL, broken_bound, gain_interval
from metarepair.reports.words import method_words, percent, points, set_words, signed
from tasks.errors import StageError

Row = Mapping[str, Any]
Result = Mapping[str, Any]

MOST_TOLD = 3  # classes in a sentence
FEW_IMAGES = 100  # fewer that judge cannot tell a repair from luck


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a finished choice inside limits ends with.

    kept: whether the deployed weights stay. advised: whether the images that judge speak for the repair. method, seed,
    weights: the repair that is taken; None if there is none. doubts: where these images do not confirm the choice.
    words: one sentence for the user, then the doubts.
    """

    kept: bool
    words: str
    advised: bool = False
    doubts: tuple[str, ...] = ()
    method: str | None = None
    seed: int | None = None
    weights: str | None = None


def outcome_of(result: Result, *, only_failures: bool | None = None) -> Outcome:
    """Return what `result.json` says.

    only_failures: whether all images of the environment that judge are failures, so that what a repair breaks among
    them is unknown; None reads it from the result. Raises StageError if the result holds no choice, as one of an older
    version.
    """
    choice = result.get("choice")
    if choice is None:
        raise StageError(
            "result.json holds no choice of a repair. Make it again: the same command with --restart."
        )
    if choice["kept"]:
        return Outcome(kept=True, words=f"Keep your model: {_why_kept(result)}")
    row = next(r for r in result["methods"] if (r["method"], r["seed"]) == (choice["method"], choice["seed"]))
    gain = _Gain.on_photographs(result, row)
    unknown = knows_only_failures(result) if only_failures is None else only_failures
    told = _failures_fixed(result, row) if unknown else _photographs(gain)
    lost = lost_words(row)
    advised = not lost and (unknown or gain.points > 0)
    cost = _Gain.on_clean(result, row)
    doubts = (
        *_classes("It is worse at a class", row, lost=False),
        *([] if unknown else _doubts_of_gain(gain)),
        *_doubts_of_cost(result, cost),
        *_doubts_of_number(result),
    )
    take = "Take" if advised else "Do not take"
    check = " after a check" if advised and doubts else ""
    words = f"{take} the repaired model{check} ({method_words(row['method'])}): {told}, {_clean(cost, row)}."
    return Outcome(
        kept=False,
        advised=advised,
        doubts=doubts,
        words=" ".join([*lost, words, *doubts]),
        method=row["method"],
        seed=row["seed"],
        weights=row.get("weights"),
    )


def knows_only_failures(result: Result) -> bool:
    """Whether all images of the environment that judge are failures; accuracy on it is then unknown."""
    judging = result.get("judging") or {}
    own = judging.get("protocol") == "own images"
    return own and (result.get("d_collect") or {}).get("fail") == judging.get("images")


@dataclass(frozen=True, kw_only=True)
class _Gain:
    """How many images that judge became right and wrong, of all of them, and the accuracy before."""

    fixed: int
    broken: int
    images: int
    before: float

    @classmethod
    def on_photographs(cls, result: Result, row: Row) -> _Gain:
        fail = result["d_collect"]["fail"]
        # Each image of a corruption judges in all severities.
        images = result["judging"]["images"] * (len(row.get("corrupted_by_severity") or ()) or 1)
        broken = round(row["break_rate_corrupted"] * (images - fail))
        return cls(fixed=round(row["d_fail"] * fail), broken=broken, images=images, before=1 - fail / images)

    @classmethod
    def on_clean(cls, result: Result, row: Row) -> _Gain:
        images, before = result["judging"]["clean_images"], row["clean_before"]
        broken = round(row["break_rate"] * before * images)
        return cls(
            fixed=round((row["clean"] - before) * images) + broken,
            broken=broken,
            images=images,
            before=before,
        )

    @property
    def points(self) -> float:
        return self.interval[0]

    @property
    def interval(self) -> tuple[float, float, float]:
        return gain_interval(fixed=self.fixed, broken=self.broken, images=self.images)

    @property
    def words(self) -> str:
        """`from 80.0% to 90.0% (+10.0 points; 95% interval +6.3 to +13.7)`."""
        gain, low, high = self.interval
        return (
            f"from {percent(self.before)}% to {percent(self.before + gain)}% ({points(gain)}; 95% interval "
            f"{signed(100 * low)} to {signed(100 * high)})"
        )


def lost_words(row: Row) -> list[str]:
    """A sentence on the classes of which a repair leaves half or less; none if there is none."""
    return _classes("The repair loses a class", row, lost=True)


def _classes(beginning: str, row: Row, *, lost: bool) -> list[str]:
    """A sentence on fallen classes, lost ones or others; none if an older version did not look."""
    found = [one for one in row.get("fallen_classes") or () if one["lost"] == lost]
    if not found:
        return []
    told = [
        f"{one['name']} is found in {percent(one['recall_after'])}% of {one['images']:,} images "
        f"({set_words(one['where'], row['target'])}), before the repair in {percent(one['recall_before'])}%"
        for one in found[:MOST_TOLD]
    ]
    more = f"; {len(found) - MOST_TOLD} more" if len(found) > MOST_TOLD else ""
    return [f"{beginning}: {'; '.join(told)}{more}."]


def _photographs(gain: _Gain) -> str:
    return (
        f"on the {gain.images:,} photographs that judge, accuracy goes {gain.words}, {gain.fixed} became right and "
        f"{gain.broken} wrong"
    )


def _failures_fixed(result: Result, row: Row) -> str:
    return (
        f"it gets {percent(row['d_fail'])}% of the {result['d_collect']['fail']:,} failures that judge right; what it "
        "breaks among the photographs that were right is unknown, since only failures judge"
    )


def _clean(cost: _Gain, row: Row) -> str:
    return (
        f"and on {cost.images:,} clean images {cost.words}; {percent(row['break_rate'])}% of the clean images that "
        "were right are now wrong"
    )


def _doubts_of_gain(gain: _Gain) -> list[str]:
    """A warning if the photographs that judge do not confirm the gain."""
    if gain.points <= 0:
        return ["The photographs that judge show no gain: keep your model until more photographs show one."]
    if gain.interval[1] <= 0:
        return [
            "With so few photographs this gain may be chance: judge by more (--holdout) before you decide."
        ]
    return []


def _doubts_of_cost(result: Result, cost: _Gain) -> list[str]:
    """A warning if the clean images that judge lose more than the limit, beyond chance."""
    limit = _limits(result).get("max_clean_drop")
    if limit is None or cost.interval[2] >= -limit:
        return []
    return [
        f"The clean images that judge lose more than the {100 * limit:.2g} points that the limit allowed on those that "
        "select: judge by more clean images before you decide."
    ]


def _doubts_of_number(result: Result) -> list[str]:
    images = result["judging"]["images"]
    if images >= FEW_IMAGES:
        return []
    return [f"Only {images} photographs judge, and fewer than {FEW_IMAGES} cannot tell a repair from luck."]


def _limits(result: Result) -> Mapping[str, Any]:
    found: Mapping[str, Any] = (result.get("config") or {}).get("limits") or {}
    return found


def _why_kept(result: Result) -> str:
    """That nothing is inside the limits, and what comes nearest, with its gain and its cost."""
    rows = _selected_rows(result)
    if not rows:
        return "there is no repair."
    one = rows[0]["selection"]
    why = (
        f"no repair gains anything inside your limits on the {one['images']:,} images of the environment and "
        f"{one['clean_images']:,} clean images that select."
    )
    near = [(row, point) for row in rows for point in row["selection"]["nearest"][:1]]
    if near:
        row, point = min(
            near, key=lambda found: (sum(found[1]["outside"].values()), -found[1]["environment"])
        )
        why += f" The nearest is {method_words(row['method'])} {_nearest(point, row['selection'])}."
    return why + _too_few_clean(one, _limits(result).get("max_broken"))


def _too_few_clean(selection: Mapping[str, Any], limit: float | None) -> str:
    """That `max_broken` cannot be met by so few clean images, whatever the repair; empty if it can."""
    right = round(selection["clean_images"] * (selection["clean_before"] or 0.0))
    needed = 0 if limit is None else math.ceil(math.log(1 - LEVEL) / math.log1p(-limit))
    if right >= needed:
        return ""
    return (
        f" limits.max_broken={limit:g} cannot be met: with {right} clean images that were right, the bound is "
        f"{percent(broken_bound(0, right))}% even if none breaks; {needed:,} are needed."
    )


def named(method: str, rows: Sequence[Row], choice: Mapping[str, Any] | None = None) -> str:
    """Return a method's name in plain words, marked if it is taken, or if limits kept the deployed weights."""
    words = method_words(method)
    if choice is not None and choice["method"] == method != "none":
        return f"{words} (taken)"
    kept = sum(bool(row.get("selection") and row["selection"]["kept"]) for row in rows)
    if not kept or method == "none":
        return words
    return f"{words} (kept)" if kept == len(rows) else f"{words} (kept in {kept} of {len(rows)})"


def taken_inside(result: Result) -> list[str]:
    """Return what was taken inside the limits, method by method; empty without limits."""
    rows = _selected_rows(result)
    return [_selected(row, several=len({r["seed"] for r in rows}) > 1) for row in rows]


def _selected_rows(result: Result) -> list[Row]:
    return [row for row in result["methods"] if row.get("selection") and row["method"] != "none"]


def _selected(row: Row, *, several: bool) -> str:
    found = row["selection"]
    name = method_words(str(row["method"])) + (f", seed {row['seed']}" if several else "")
    if not found["kept"]:
        return f"{name}: taken {_point(found['point'], found)}."
    near = [f" The nearest is {_nearest(point, found)}." for point in found["nearest"][:1]]
    return f"{name}: the deployed weights are kept.{near[0] if near else ''}"


def _nearest(point: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    outside = ", ".join(
        f"limits.{name} by {100 * by:.2g} points" if by else f"limits.{name} (no gain)"
        for name, by in point["outside"].items()
    )
    return f"{_point(point, found)}, outside {outside}"


def _point(point: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """A point on the way from the deployed to the repaired DNN, and its accuracies on the images that select."""
    where = f"at weight {point['weight']:.3g}"
    if point["episode"] is not None:
        where = f"after episode {point['episode'] + 1}"
    told = [f"environment {percent(found['environment_before'])}% → {percent(point['environment'])}%"]
    if point["clean"] is not None:
        told.append(f"clean {percent(found['clean_before'])}% → {percent(point['clean'])}%")
        told.append(
            f"broken {percent(point['broken'])}%, with 95% confidence at most {percent(point['broken_bound'])}%"
        )
    told += [f"recall of {name} {points(-fall)}" for name, fall in point["recall_falls"].items()]
    return f"{where} ({'; '.join(told)})"
