"""Check on clean images that a deployed DNN gets the preprocessing it was trained with; refuse it near chance.

With the wrong preprocessing a DNN fails on everything, and a repair would be spent on that. If accuracy is low,
alternatives are tried: the usual normalisations, channels in the order blue, green, red, other image sizes, and another
order of the classes. One is named as the remedy only if its accuracy is clearly better; otherwise only the accuracies
are stated.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch.nn import functional as F

from metarepair.models.build import DeployedModel
from tasks.errors import WeightsError
from tasks.records import Ints, Pixels

# B images, H W C pixels, K classes

IMAGES = 512
FEWEST = 32  # with fewer, a good DNN may be near chance by bad luck, and an alternative good by luck
FIRST = 64  # enough to accept a DNN that is right; the other images are classified only in doubt
NEAR_CHANCE = 0.1  # share of the way from chance accuracy to 100 %
GOOD = 0.5  # accuracy from which no alternative is tried
TRIED = 128  # images for each of the dozen alternatives
SIZES = (32, 64, 224)
ORDERS, NORMALISATIONS, OTHER_SIZES = "order of the classes", "normalisation with channel order", "size"
USUAL = {
    "ImageNet's": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "CIFAR's": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "that of pixels in [-1, 1]": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "none, pixels in [0, 1]": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "none, pixels in [0, 255]": ((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255)),
}


@dataclass(frozen=True, kw_only=True)
class Remedies:
    """Remedies, worded for a YAML file or for a Python call."""

    normalisation: str
    size: str
    shape: str
    check: str


IN_RUN = Remedies(
    normalisation="set model.mean to {mean} and model.std to {std}",
    size="set model.input_size to {size}",
    shape="Give it images of a size (set by model.input_size) and a number of channels that it takes.",
    check="model.weights, model.mean and model.std (of pixels in [0, 1]), model.input_size and data.name",
)
IN_CALL = Remedies(
    normalisation="set mean to {mean} and std to {std}",
    size="resize the images to {size} pixels",
    shape="Give it images of a size and a number of channels that it takes; floats are [N, C, H, W].",
    check="the module's weights, the normalisation and size of the images, and the order of the classes",
)


class LabelledImages(Protocol):
    """Labelled images, read by rows: a split of a data set, or the images given to a call."""

    @property
    def name(self) -> str: ...
    @property
    def labels_N(self) -> Ints: ...
    def images(self, rows: Ints, /) -> Any: ...


@dataclass(frozen=True, kw_only=True)
class CleanAccuracy:
    """Accuracy on the clean images that were classified, and a note for the user if there is one."""

    accuracy: float
    images: int
    note: str | None = None

    def words(self, images: str) -> str:
        """`92.1% of 512 clean test images`, and the note; `images` says which they are."""
        note = "" if self.note is None else f"; {self.note}"
        return f"{self.accuracy:.1%} of {self.images} {images}{note}"


@dataclass(frozen=True, kw_only=True)
class Alternative:
    """An alternative preprocessing or class order, with its settings and its accuracy on `images` images."""

    kind: str
    words: str
    remedy: str
    accuracy: float
    images: int

    def beats(self, accuracy: float) -> bool:
        """Whether it is better by three standard errors; among a dozen alternatives, one is a bit better by luck."""
        error = math.sqrt(self.accuracy * (1 - self.accuracy) / self.images)
        return self.accuracy - 3 * error > accuracy


def check_on_clean(
    deployed: DeployedModel, data: LabelledImages, remedies: Remedies = IN_RUN
) -> CleanAccuracy:
    """Return the accuracy on up to 512 clean images of `data`, evenly spread.

    Raises WeightsError if the DNN cannot take such images, does not return one logit per class, or is near chance on 32
    images or more.
    """
    count = min(IMAGES, len(data.labels_N))
    rows = np.linspace(0, len(data.labels_N) - 1, count).round().astype(np.int64)
    # In an order in which the first images are spread evenly, too.
    rows = rows[np.argsort(np.arange(count) % max(count // FIRST, 1), kind="stable")]
    images, labels = data.images(rows), data.labels_N[rows]
    check_output(deployed, images[:2], remedies, data.name)
    for size in (min(FIRST, count), count):
        predicted = _predicted(deployed, images[:size])
        accuracy = float((predicted == labels[:size]).mean())
        if accuracy >= GOOD:
            return CleanAccuracy(accuracy=accuracy, images=size)
    if count < FEWEST:
        note = f"with fewer than {FEWEST} images, no other preprocessing or class order is tried"
        return CleanAccuracy(accuracy=accuracy, images=count, note=note)
    alternatives = [_reordered(predicted, labels, deployed.num_classes)]
    alternatives += _alternatives(deployed, images[:TRIED], labels[:TRIED], remedies)
    best = max(alternatives, key=lambda s: s.accuracy)
    better = best.beats(accuracy) and not _near_chance(best.accuracy, deployed.num_classes)
    established = f"with {best.words} it is {best.accuracy:.1%} of {best.images}: {best.remedy}"
    if not _near_chance(accuracy, deployed.num_classes):
        return CleanAccuracy(accuracy=accuracy, images=count, note=established if better else None)
    raise WeightsError(
        f"{deployed.name} gets {accuracy:.1%} of {count} clean images ({data.name}) right, near chance "
        f"({1 / deployed.num_classes:.1%}). "
        + (
            f"{established[0].upper()}{established[1:]}."
            if better
            else f"{_most_frequent(predicted)} {_tried(alternatives, best)} Check {remedies.check}."
        )
    )


def check_output(deployed: DeployedModel, images_BHWC_u8: Pixels, remedies: Remedies, name: str) -> None:
    """Raise WeightsError unless the DNN takes images of `name` and returns one logit per class."""
    logits = logits_of(deployed, images_BHWC_u8, remedies, name)
    if logits.shape[1] != deployed.num_classes:
        raise WeightsError(
            f"{deployed.name} returns {logits.shape[1]} logits, and the data set has {deployed.num_classes} classes. "
            "Give a DNN with these classes (a factory is passed num_classes if it takes it), or the DNN's own data set."
        )


def logits_of(deployed: DeployedModel, images_BHWC_u8: Pixels, remedies: Remedies, name: str) -> torch.Tensor:
    """Return logits [B, K] of a few images of `name`. Raises WeightsError if the DNN does not return such a tensor."""
    try:
        with torch.inference_mode():
            logits: object = deployed.module.eval()(deployed.normalise(images_BHWC_u8))
    except Exception as error:  # a user's forward may raise anything
        shape = "×".join(map(str, images_BHWC_u8.shape[1:3]))
        size = shape if deployed.input_size is None else f"{deployed.input_size}×{deployed.input_size}"
        channels = images_BHWC_u8.shape[3]
        said = " ".join(str(error).split())[:160]
        raise WeightsError(
            f"{deployed.name} cannot take a batch of images of {size} pixels with {channels} "
            f"channel{'s' if channels > 1 else ''}, such as those of {name} ({type(error).__name__}: {said}). "
            f"{remedies.shape}"
        ) from error
    if not isinstance(logits, torch.Tensor):
        raise WeightsError(
            f"{deployed.name} returns {type(logits).__name__}, not a tensor of logits. Wrap it in a module whose "
            "forward returns the logits alone."
        )
    if logits.ndim != 2 or len(logits) != len(images_BHWC_u8):
        raise WeightsError(
            f"{deployed.name} returns shape {list(logits.shape)} for {len(images_BHWC_u8)} images; logits of shape "
            f"[{len(images_BHWC_u8)}, classes] are needed. Wrap it in a module whose forward returns them."
        )
    return logits


def _near_chance(accuracy: float, num_classes: int) -> bool:
    chance = 1 / num_classes
    return (accuracy - chance) / (1 - chance) < NEAR_CHANCE


def _predicted(deployed: DeployedModel, images_BHWC_u8: Pixels) -> Ints:
    classes: Ints = deployed.logits(images_BHWC_u8, batch_size=FIRST).argmax(1).numpy()
    return classes


def _alternatives(
    deployed: DeployedModel, images_BHWC_u8: Pixels, labels_B: Ints, remedies: Remedies
) -> Iterator[Alternative]:
    """Yield each alternative preprocessing with its accuracy."""
    if images_BHWC_u8.dtype != np.uint8 or images_BHWC_u8.shape[3] != 3:
        return  # floats are already normalised; grey images have no channel order and no usual normalisation
    stated = getattr(deployed.module, "pretrained_cfg", None) or {}
    usual = dict(USUAL)
    if stated.get("mean") and stated.get("std"):
        usual["that timm states for it"] = (tuple(stated["mean"]), tuple(stated["std"]))
    tried = []
    for words, (mean, std) in usual.items():
        settings = remedies.normalisation.format(mean=_list(mean), std=_list(std))
        other = replace(deployed, mean=mean, std=std)
        for channels, order in (
            ("", slice(None)),
            (" and the channels blue, green, red", slice(None, None, -1)),
        ):
            remedy = f"{settings}, and swap the channels in the DNN's forward" if channels else settings
            predicted = _predicted(other, images_BHWC_u8[..., order])
            tried.append((NORMALISATIONS, f"the normalisation {words}{channels}", remedy, predicted))
    for size in SIZES:
        if size != images_BHWC_u8.shape[1]:
            fewer = min(FIRST, FIRST * FIRST**2 // size**2 + 16)  # large images cost more
            resized = _at_size(deployed, images_BHWC_u8[:fewer], size)
            if resized is not None:
                remedy = remedies.size.format(size=size)
                tried.append((OTHER_SIZES, f"images resized to {size} pixels", remedy, resized))
    for kind, words, remedy, predicted in tried:
        right = float((predicted == labels_B[: len(predicted)]).mean())
        yield Alternative(kind=kind, words=words, remedy=remedy, accuracy=right, images=len(predicted))


def _at_size(deployed: DeployedModel, images_BHWC_u8: Pixels, size: int) -> Ints | None:
    """Return predictions for resized images, None if the DNN cannot take the size."""
    x_BCHW = torch.from_numpy(images_BHWC_u8.copy()).permute(0, 3, 1, 2).float()
    resized = F.interpolate(x_BCHW, (size, size), mode="bilinear", antialias=True).round().clamp(0, 255)
    try:
        return _predicted(
            replace(deployed, input_size=None), resized.to(torch.uint8).permute(0, 2, 3, 1).numpy()
        )
    except RuntimeError:
        return None


def _reordered(predicted_B: Ints, labels_B: Ints, num_classes: int) -> Alternative:
    """Return the alternative that the classes are in the order that fits these predictions best.

    Every other image is used to find the order and the rest to score it; otherwise any order would seem to help.
    """
    counts_KK = np.zeros((num_classes, num_classes))
    np.add.at(counts_KK, (predicted_B[::2], labels_B[::2]), 1)
    ours, theirs = linear_sum_assignment(counts_KK, maximize=True)
    mapped = np.empty(num_classes, np.int64)
    mapped[ours] = theirs
    moved = next((int(i) for i in ours if mapped[i] != i and counts_KK[i, mapped[i]] > 0), 0)
    return Alternative(
        kind=ORDERS,
        words=f"another order of the classes (its class {moved} goes with the label {mapped[moved]})",
        remedy="reorder the classifier's rows, or the data set's labels",
        accuracy=float((mapped[predicted_B[1::2]] == labels_B[1::2]).mean()),
        images=len(labels_B[1::2]),
    )


def _most_frequent(predicted_B: Ints) -> str:
    counts = np.bincount(predicted_B)
    share = counts.max() / len(predicted_B)
    return f"{share:.0%} of the images get the same class, {counts.argmax()}."


def _tried(alternatives: Sequence[Alternative], best: Alternative) -> str:
    """Describe how many alternatives were tried, and the accuracy of the best."""
    kinds = ", ".join(f"{kind} ({count})" for kind, count in Counter(s.kind for s in alternatives).items())
    return f"Also tried: {kinds}. The best of these, {best.words}, gives {best.accuracy:.1%} of {best.images} images."


def _list(values: tuple[float, ...]) -> str:
    return f"[{', '.join(f'{v:.4g}' for v in values)}]"
