"""Choose the best point on the way from the deployed to the repaired DNN inside the user's limits.

The points are the repaired DNN, its means with the deployed one, and the ends of the episodes of a walk over tasks. All
are measured on images that nothing learns from and that do not judge. If no point is inside the limits, the deployed
weights are kept.
Source: means of weights: Wortsman et al. 2022 (WiSE-FT).
"""

# N images, M points

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from metarepair.adaptation.accuracy import predict
from metarepair.adaptation.choice import interpolated
from metarepair.adaptation.meta_test import Start, Step, start_of
from metarepair.config.limits import LimitsConfig
from metarepair.data.clean_images import LabelledImages
from metarepair.data.selecting_images import SelectingImages, check_classes
from metarepair.evaluation.bounds import broken_bound
from metarepair.methods import RepairedModel
from metarepair.models.build import DeployedModel
from tasks.errors import ConfigError
from tasks.records import Ints

WEIGHTS = (0.05, *(tenth / 10 for tenth in range(1, 11)))  # shares of the repaired parameters, growing
HALVINGS = 4  # of the step between the largest weight inside and the next one
NEAREST = 3  # points that are told if none is inside


@dataclass(frozen=True, kw_only=True)
class Point:
    """One point on the way, measured on the images that select. Accuracies and shares are fractions.

    Attributes:
        weight: share of the repaired parameters in their mean with the deployed ones; 0 for the deployed DNN.
        episode: the episode whose end it is, from 0; `None` if it is made of the repair's own end.
        environment: accuracy on the environment's images, right and wrong before.
        clean: accuracy on clean images; `None` without any.
        broken: share of clean images, right before, that are wrong; `None` without any.
        broken_bound: its one-sided 95% upper bound.
        recall_falls: by protected class, the larger of the falls of its recall, on clean images and on the
            environment's.
        outside: the limits that it breaks, by setting, with the amount by which it does.
    """

    weight: float
    episode: int | None
    environment: float
    clean: float | None
    broken: float | None
    broken_bound: float | None
    recall_falls: dict[str, float]
    outside: dict[str, float]

    @property
    def costs_too_much(self) -> bool:
        """Whether it breaks a limit other than the gain."""
        return bool(self.outside.keys() - {"min_gain"})


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The point that was taken, what it is compared with, and the nearest points if none is inside the limits.

    Attributes:
        kept: whether the deployed weights are kept.
        environment_before: the deployed DNN's accuracy on the environment's images that select.
        clean_before: its accuracy on the clean images that select; `None` without any.
        images: number of the environment's images that select, each in all severities.
        clean_images: number of clean images that select.
        point: the point that is taken; the deployed DNN if it is kept.
        nearest: if it is kept, the points that break the limits least.
    """

    kept: bool
    environment_before: float
    clean_before: float | None
    images: int
    clean_images: int
    point: Point
    nearest: tuple[Point, ...]

    def as_json(self) -> dict[str, Any]:
        """Return plain values for result.json."""
        return asdict(self)


def take_inside(
    deployed: DeployedModel, repaired: RepairedModel, images: SelectingImages, limits: LimitsConfig
) -> tuple[RepairedModel, Selection]:
    """Return the best point inside the limits as a repaired DNN, with how it was chosen.

    The best point has the highest accuracy on the environment; of equal ones, the one that is better on clean images,
    then the one nearer to the deployed DNN. Means are tried from the deployed DNN on, and none beyond the first that
    breaks `max_broken`: so the bound holds although many are tried (testing in a fixed sequence). The other limits are
    no bounds, and one image too many does not end the search. Raises ConfigError if a limit needs clean images and
    there are none, or if a protected class does not exist.
    """
    ruler = _Ruler(deployed, images, limits)
    judged = repaired.architecture_of(deployed)
    best: tuple[Point, Step] | None = None
    outside: list[Point] = []

    def measure(step: Step, *, weight: float = 1.0, episode: int | None = None) -> Point:
        nonlocal best
        point = ruler.measure(judged, step, weight=weight, episode=episode)
        if point.outside:
            outside.append(point)
        elif best is None or _worth(point) > _worth(best[0]):
            best = point, step
        return point

    before, end = start_of(deployed), _end(repaired)
    if repaired.module is not None or _same(before, end):  # nothing lies between
        measure(end)
    else:
        _search_means(lambda weight: measure(interpolated(before, end, weight), weight=weight))
        for step in _ends_of_episodes(repaired):
            measure(step, episode=step.episode)
    selection = ruler.selection(None if best is None else best[0], outside)
    if best is None:
        return _kept(deployed, repaired), selection
    return replace(repaired, parameters=best[1].parameters, buffers=best[1].buffers), selection


def _search_means(measure: Callable[[float], Point]) -> None:
    """Measure means of growing weight, none beyond the first that breaks `max_broken`; then halve the last step out."""
    points = []
    for weight in WEIGHTS:
        points.append(measure(weight))
        if "max_broken" in points[-1].outside:
            break
    inside = max((point.weight for point in points if not point.costs_too_much), default=0.0)
    outside = min((point.weight for point in points if point.weight > inside), default=inside)
    for _ in range(HALVINGS if outside > inside else 0):
        middle = (inside + outside) / 2
        inside, outside = (inside, middle) if measure(middle).costs_too_much else (middle, outside)


def _worth(point: Point) -> tuple[float, float, float]:
    return point.environment, point.clean or 0.0, -point.weight


def _kept(deployed: DeployedModel, repaired: RepairedModel) -> RepairedModel:
    """The deployed weights, as the result of this repair."""
    before = start_of(deployed)
    return replace(
        repaired, parameters=before.parameters, buffers=before.buffers, module=None, architecture=None
    )


def _end(repaired: RepairedModel) -> Step:
    return Step(episode=0, slot=0, parameters=repaired.parameters, buffers=repaired.buffers, images_seen=0)


def _same(before: Start, end: Step) -> bool:
    pairs = ((before.parameters, end.parameters), (before.buffers, end.buffers))
    return all(torch.equal(one[key], other[key]) for one, other in pairs for key in one)


def _ends_of_episodes(repaired: RepairedModel) -> Iterator[Step]:
    """The last step of each episode of a walk over tasks."""
    last: Step | None = None
    for step in () if repaired.steps is None else repaired.steps():
        if last is not None and step.episode != last.episode:
            yield last
        last = step
    if last is not None:
        yield last


class _Ruler:
    """Measures points against the deployed DNN and the limits."""

    def __init__(self, deployed: DeployedModel, images: SelectingImages, limits: LimitsConfig) -> None:
        if images.clean is None and (limits.max_broken is not None or limits.max_clean_drop is not None):
            raise ConfigError(
                "limits.max_broken and limits.max_clean_drop are measured on clean images, and none are given. Give "
                "clean images, or leave these limits out."
            )
        self.images, self.limits = images, limits
        self.protected = check_classes(limits.protected_classes, images.classes)
        self._check_protected()
        self.before = self._predicted(deployed, start_of(deployed))

    def _check_protected(self) -> None:
        """Raise ConfigError if no image that selects is of a protected class."""
        clean = self.images.clean
        labels = np.concatenate(
            [self.images.environment.labels_N, *([] if clean is None else [clean.labels_N])]
        )
        unseen = [self.images.classes[number] for number in self.protected if number not in labels]
        if unseen:
            raise ConfigError(
                f"limits.protected_classes: no image that selects is of {unseen[0]}, so its recall cannot be held. "
                "Give images of it, or leave it out."
            )

    def _predicted(self, deployed: DeployedModel, state: Start | Step) -> tuple[Ints, Ints | None]:
        def of(given: LabelledImages) -> Ints:
            classes: Ints = predict(deployed, state.parameters, state.buffers, given).argmax(1).numpy()
            return classes

        return of(self.images.environment), None if self.images.clean is None else of(self.images.clean)

    def measure(self, deployed: DeployedModel, step: Step, *, weight: float, episode: int | None) -> Point:
        environment_N, clean_N = self._predicted(deployed, step)
        return self.point(environment_N, clean_N, weight=weight, episode=episode)

    def point(
        self, environment_N: Ints, clean_N: Ints | None, *, weight: float, episode: int | None
    ) -> Point:
        """The point with these predictions."""
        point = Point(
            weight=weight,
            episode=episode,
            environment=_accuracy(environment_N, self.images.environment),
            clean=None,
            broken=None,
            broken_bound=None,
            recall_falls={},
            outside={},
        )
        clean, clean_before_N = self.images.clean, self.before[1]
        if clean is not None and clean_N is not None and clean_before_N is not None:
            right_N = clean_before_N == clean.labels_N
            broken, right = int((right_N & (clean_N != clean.labels_N)).sum()), int(right_N.sum())
            point = replace(
                point,
                clean=_accuracy(clean_N, clean),
                broken=broken / max(right, 1),
                broken_bound=broken_bound(broken, right),
            )
        point = replace(point, recall_falls=self._recall_falls(environment_N, clean_N))
        return replace(point, outside=self._outside(point))

    def _recall_falls(self, environment_N: Ints, clean_N: Ints | None) -> dict[str, float]:
        falls = {}
        for number in self.protected:
            pairs = [(self.images.environment, self.before[0], environment_N)]
            if self.images.clean is not None and clean_N is not None and self.before[1] is not None:
                pairs.append((self.images.clean, self.before[1], clean_N))
            falls[self.images.classes[number]] = max(_recall_fall(number, *pair) for pair in pairs)
        return falls

    def _outside(self, point: Point) -> dict[str, float]:
        """The limits that the point breaks, with the amount by which it does."""
        limits, found = self.limits, {}
        gain = point.environment - _accuracy(self.before[0], self.images.environment)
        least = limits.min_gain or 0.0
        if gain < least or gain <= 0:
            found["min_gain"] = least - gain
        if limits.max_broken is not None and point.broken_bound is not None:
            found["max_broken"] = point.broken_bound - limits.max_broken
        if limits.max_clean_drop is not None and self.images.clean is not None and self.before[1] is not None:
            drop = _accuracy(self.before[1], self.images.clean) - (point.clean or 0.0)
            found["max_clean_drop"] = drop - limits.max_clean_drop
        for number, fall in self.protected.items():
            name = self.images.classes[number]
            found[f"protected_classes.{name}"] = point.recall_falls[name] - fall
        return {key: amount for key, amount in found.items() if amount > _ROUNDING or key == "min_gain"}

    def selection(self, best: Point | None, outside: Sequence[Point]) -> Selection:
        """How the point `best` was chosen; None if the deployed weights are kept."""
        images, environment_N, clean_N = self.images, *self.before
        own = replace(self.point(environment_N, clean_N, weight=0.0, episode=None), outside={})
        gaining = [point for point in outside if "min_gain" not in point.outside] or outside
        nearest = () if best is not None else sorted(gaining, key=_excess)[:NEAREST]
        return Selection(
            kept=best is None,
            environment_before=own.environment,
            clean_before=own.clean,
            images=len(images.environment.labels_N),
            clean_images=0 if images.clean is None else len(images.clean.labels_N),
            point=own if best is None else best,
            nearest=tuple(nearest),
        )


_ROUNDING = 1e-9  # a difference of two shares may exceed an equal limit by a rounding


def _excess(point: Point) -> tuple[float, float]:
    """How far a point is outside, the nearest first; of equally far ones, the one with the larger gain."""
    return sum(point.outside.values()), -point.environment


def _accuracy(predicted_N: Ints, images: LabelledImages) -> float:
    return float((predicted_N == images.labels_N).mean()) if len(images.labels_N) else 0.0


def _recall_fall(number: int, images: LabelledImages, before_N: Ints, after_N: Ints) -> float:
    """How much the recall of a class fell; 0 if it has no image."""
    of_class_N = np.flatnonzero(images.labels_N == number)
    if not len(of_class_N):
        return 0.0
    return float((before_N[of_class_N] == number).mean() - (after_N[of_class_N] == number).mean())


def choice_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return which row of result.json is best on the images that select, and whether the deployed weights are kept.

    They are kept if every row keeps them.
    """
    taken = [row for row in rows if not row["selection"]["kept"]]
    best = max(taken, key=lambda row: _worth(Point(**row["selection"]["point"])), default=None)
    if best is None:
        return {"method": "none", "seed": rows[0]["seed"], "kept": True}
    return {"method": best["method"], "seed": best["seed"], "kept": False}
