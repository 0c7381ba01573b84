"""What a diagnosis found: its record for diagnosis.json, and its sentences for the console and the page."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from metarepair.diagnosis.known import FEWEST, Nearest
from metarepair.diagnosis.measures import Accuracy, Share
from metarepair.diagnosis.norms import NormsAlone

VERSION = 1
SHOWN = 3  # classes, pairs and environments in a sentence


@dataclass(frozen=True, kw_only=True)
class SuspiciousLabel:
    """A failure in the ranking of labels.

    Attributes:
        file: name of the photograph; None if names are left out.
        image_id: its id in the environment.
        label, predicted: by the user, and by the DNN.
        suggested: the class that the linear head finds most probable.
        confidence: probability of the label, 0 to 1.
        neighbours: share of the nearest images with another label, 0 to 1.
        doubted: whether both measures speak against the label.
        part: `learn` or `select`.
    """

    file: str | None
    image_id: int
    label: str
    predicted: str
    suggested: str
    confidence: float
    neighbours: float
    doubted: bool
    part: str


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """All that was found.

    Attributes:
        model: name of the DNN.
        environment: name of the photographs' environment.
        classes: names of the classes.
        only_failures: whether only failures were given; then accuracy on the photographs is not known.
        images: number of photographs to `learn` from, to `select` by, set aside to `judge`, and `unused`.
        failures: photographs that the DNN gets wrong, of those to learn from and to select by.
        photographs: the DNN on the photographs to learn from and to select by.
        clean: the DNN on clean images that select.
        norms: what adapting batch norm alone does.
        nearest: the nearest known environments.
        distance: name of the distance.
        labels: the failures, the most suspicious label first.
        fix: what `fix` would do, and how long it would take here.
        seconds: of the diagnosis.
    """

    model: str
    environment: str
    classes: tuple[str, ...]
    only_failures: bool
    images: dict[str, int]
    failures: int
    photographs: Accuracy
    clean: Accuracy
    norms: NormsAlone
    nearest: Nearest
    distance: str
    labels: list[SuspiciousLabel]
    fix: str
    seconds: float

    def record(self) -> dict[str, Any]:
        """The content of diagnosis.json. Shares are fractions. What is not known is null."""
        found = {"version": VERSION} | asdict(self)
        if self.only_failures:
            found["photographs"] |= {"whole": None, "classes": None, "calibration": None}
        return found

    @property
    def doubted_labels(self) -> int:
        """The number of failures whose label both measures speak against."""
        return sum(label.doubted for label in self.labels)


def sentences(found: Diagnosis) -> list[str]:
    """The diagnosis in sentences, the most important first."""
    return [
        _accuracy(found),
        *([] if found.only_failures else [_classes(found.photographs)]),
        *_confused(found.photographs),
        *([] if found.only_failures else [_calibration(found.photographs)]),
        norms_words(found.norms),
        nearest_words(found.nearest),
        labels_words(found),
        f"Not looked at: {found.images['judge']} photographs, which are set aside to judge a repair.",
        f"Repair with `metarepair fix` {found.fix}",
    ]


def percent(share: float) -> str:
    """`82.3%` for 0.823."""
    return f"{100 * share:.1f}%"


def of_images(share: Share, what: str) -> str:
    """`82.3% of 784 photographs (95% interval 79.5% to 84.8%)`."""
    interval = f"95% interval {percent(share.low)} to {percent(share.high)}"
    return f"{percent(share.share)} of {share.images:,} {what} ({interval})"


def _accuracy(found: Diagnosis) -> str:
    clean = of_images(found.clean.whole, "clean images")
    if not found.only_failures:
        return f"The DNN is right on {of_images(found.photographs.whole, 'photographs')}, and on {clean}."
    right = found.photographs.whole.right
    known = f" The DNN gets {right} of them right; these are no failures, and are left out." if right else ""
    return (
        f"{found.photographs.whole.images:,} failures were given, so accuracy on the photographs is not known.{known} "
        f"The DNN is right on {clean}."
    )


def _classes(photographs: Accuracy) -> str:
    worst = [
        f"{one.name} {percent(one.recall.share)} of {one.recall.images}"
        for one in photographs.classes[:SHOWN]
    ]
    return f"Worst classes: {', '.join(worst)}."


def _confused(photographs: Accuracy) -> list[str]:
    pairs = [f"{one.label} taken for {one.predicted} ({one.images})" for one in photographs.confused[:SHOWN]]
    return [f"Most often confused: {', '.join(pairs)}."] if pairs else []


def _calibration(photographs: Accuracy) -> str:
    gap = photographs.calibration.confidence - photographs.whole.share
    how = "over" if gap > 0 else "under"
    return (
        f"Calibration: mean confidence {percent(photographs.calibration.confidence)}, {abs(100 * gap):.1f} points "
        f"{how} accuracy; expected calibration error {percent(photographs.calibration.error)}."
    )


def norms_words(norms: NormsAlone) -> str:
    """Whether adapting batch norm alone repairs the DNN, in a sentence or two."""
    if norms.verdict == "none to adapt":
        return "Adapting batch norm alone: the DNN stores no batch-norm statistics, so there is nothing to adapt."
    if norms.verdict == "too few" or norms.before is None or norms.after is None:
        return "Adapting batch norm alone: not measured, as no failures are learned from or no photographs select."
    verdict = {
        "enough": "That is enough to close at least half of the gap to clean images",
        "helps": "That helps, but is not enough",
        "no help": "That may be chance" if norms.fixed > norms.broken else "That does not do it",
    }[norms.verdict]
    clean = ""
    if norms.clean_before is not None and norms.clean_after is not None:
        clean = f"; clean images {percent(norms.clean_before.share)} to {percent(norms.clean_after.share)}"
    return (
        f"Adapting batch norm alone: {percent(norms.before.share)} to {percent(norms.after.share)} of "
        f"{norms.before.images} photographs that select ({norms.fixed} fixed, {norms.broken} broken){clean}. {verdict}."
    )


def nearest_words(nearest: Nearest) -> str:
    """The nearest known environments in a sentence."""
    if not nearest.failures:
        return f"Nearest known environments: not measured, as there are fewer than {FEWEST} failures."
    if not nearest.found:
        return (
            f"Nearest known environments: none has enough failures (at least {FEWEST}) to be compared with."
        )
    near = [f"{one.name} ({one.distance:.3g})" for one in nearest.found[:SHOWN]]
    last = nearest.found[-1]
    far = f"; farthest: {last.name} ({last.distance:.3g})" if len(nearest.found) > SHOWN else ""
    return f"Nearest known environments: {', '.join(near)}{far}."


def labels_words(found: Diagnosis) -> str:
    """How many labels are suspicious, in a sentence or two."""
    if not found.labels:
        return "Suspicious labels: there are no failures."
    doubted = found.doubted_labels
    return (
        f"Suspicious labels: of {len(found.labels)} failures, both measures doubt {doubted} label"
        f"{'' if doubted == 1 else 's'}. Some are wrong, others are of hard photographs: look at the sheet, the most "
        "suspicious first."
    )
