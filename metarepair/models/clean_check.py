"""Checks on clean images that a deployed DNN is fed as it was trained; near chance, it is refused.

A DNN that is fed otherwise than it was trained fails on everything, and a repair would be spent on that. Other ways to
feed it are tried: the usual normalisations, channels in the order blue, green, red, other sizes, another order of the
classes. One is named as the remedy only where its accuracy is clearly better; else the accuracies are stated alone.
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
FEWEST = 32  # with fewer, a good DNN may be near chance by bad luck, and another way to feed it good by luck
FIRST = 64  # enough for a DNN that is right: the others are looked at where these leave a doubt
NEAR_CHANCE = 0.1  # share of the way from chance to all right
GOOD = 0.5  # above it, nothing else is tried
TRIED = 128  # images for each other preprocessing: a dozen of them are tried
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
class Door:
    """What a user can set and check, in the words of where the DNN comes in: a run's YAML, or a call in Python."""

    normalisation: str
    size: str
    shape: str
    check: str


IN_RUN = Door(
    normalisation="set model.mean to {mean} and model.std to {std}",
    size="set model.input_size to {size}",
    shape="Bring images of a size (model.input_size sets it) and a number of channels that it takes.",
    check="model.weights, model.mean and model.std (of pixels in [0, 1]), model.input_size and data.name",
)
IN_CALL = Door(
    normalisation="set mean to {mean} and std to {std}",
    size="resize the images to {size} pixels",
    shape="Give images of a size and a number of channels that it takes; floats are [N, C, H, W].",
    check="the module's weights, the normalisation and size of the images, and the order of the classes",
)


class Labelled(Protocol):
    """Labelled images by rows: a split of a data set, or what a call was given."""

    @property
    def name(self) -> str: ...
    @property
    def labels_N(self) -> Ints: ...
    def images(self, rows: Ints, /) -> Any: ...


@dataclass(frozen=True, kw_only=True)
class Clean:
    """Accuracy on the clean images that were looked at, and what is to be told, if anything."""

    accuracy: float
    images: int
    note: str | None = None


@dataclass(frozen=True, kw_only=True)
class Suspicion:
    """Another way to feed the DNN, what to set for it, and the accuracy with it on so many images."""

    kind: str
    words: str
    remedy: str
    accuracy: float
    images: int

    def beats(self, accuracy: float) -> bool:
        """By three standard errors: of a dozen that are tried, one is better by luck."""
        error = math.sqrt(self.accuracy * (1 - self.accuracy) / self.images)
        return self.accuracy - 3 * error > accuracy


def check_on_clean(deployed: DeployedModel, data: Labelled, door: Door = IN_RUN) -> Clean:
    """Accuracy on up to 512 clean images of `data`, evenly spread.

    Raises WeightsError when the DNN cannot take such images, gives other than one logit per class, or is near chance on
    32 images or more.
    """
    count = min(IMAGES, len(data.labels_N))
    rows = np.linspace(0, len(data.labels_N) - 1, count).round().astype(np.int64)
    rows = rows[np.argsort(np.arange(count) % max(count // FIRST, 1), kind="stable")]  # the first spread, too
    images, labels = data.images(rows), data.labels_N[rows]
    check_output(deployed, images[:2], door, data.name)
    for size in (min(FIRST, count), count):
        predicted = _predicted(deployed, images[:size])
        accuracy = float((predicted == labels[:size]).mean())
        if accuracy >= GOOD:
            return Clean(accuracy=accuracy, images=size)
    if count < FEWEST:
        note = f"on fewer than {FEWEST} images, no other way to feed the DNN is tried"
        return Clean(accuracy=accuracy, images=count, note=note)
    suspicions = [_reordered(predicted, labels, deployed.num_classes)]
    suspicions += _suspicions(deployed, images[:TRIED], labels[:TRIED], door)
    best = max(suspicions, key=lambda s: s.accuracy)
    better = best.beats(accuracy) and not _near_chance(best.accuracy, deployed.num_classes)
    established = f"with {best.words} it is {best.accuracy:.1%} of {best.images}: {best.remedy}"
    if not _near_chance(accuracy, deployed.num_classes):
        return Clean(accuracy=accuracy, images=count, note=established if better else None)
    raise WeightsError(
        f"{deployed.name} gets {accuracy:.1%} of {count} clean images ({data.name}) right, which is near chance "
        f"({1 / deployed.num_classes:.1%}). "
        + (
            f"{established[0].upper()}{established[1:]}."
            if better
            else f"{_most_frequent(predicted)} {_tried(suspicions, best)} Check {door.check}."
        )
    )


def check_output(deployed: DeployedModel, images_BHWC_u8: Pixels, door: Door, name: str) -> None:
    """Raises WeightsError unless the DNN takes such images, of `name`, and gives one logit per class."""
    logits = logits_of(deployed, images_BHWC_u8, door, name)
    if logits.shape[1] != deployed.num_classes:
        raise WeightsError(
            f"{deployed.name} returns {logits.shape[1]} logits, and the data set has {deployed.num_classes} classes. "
            "Bring a DNN of these classes (a factory gets num_classes where it takes it), or name its data set."
        )


def logits_of(deployed: DeployedModel, images_BHWC_u8: Pixels, door: Door, name: str) -> torch.Tensor:
    """Logits [B, K] of a few images of `name`. Raises WeightsError where the DNN gives no such thing."""
    try:
        with torch.inference_mode():
            logits: object = deployed.module.eval()(deployed.normalise(images_BHWC_u8))
    except Exception as error:  # somebody else's forward raises whatever it likes
        shape = "×".join(map(str, images_BHWC_u8.shape[1:3]))
        size = shape if deployed.input_size is None else f"{deployed.input_size}×{deployed.input_size}"
        channels = images_BHWC_u8.shape[3]
        said = " ".join(str(error).split())[:160]
        raise WeightsError(
            f"{deployed.name} cannot take a batch of images of {size} pixels with {channels} "
            f"channel{'s' if channels > 1 else ''}, as {name} has them ({type(error).__name__}: {said}). {door.shape}"
        ) from error
    if not isinstance(logits, torch.Tensor):
        raise WeightsError(
            f"{deployed.name} returns {type(logits).__name__}, not a tensor of logits. Wrap it in a module whose "
            "forward returns the logits alone."
        )
    if logits.ndim != 2 or len(logits) != len(images_BHWC_u8):
        raise WeightsError(
            f"{deployed.name} returns {list(logits.shape)} for {len(images_BHWC_u8)} images; logits by image and class "
            f"are needed, [{len(images_BHWC_u8)}, classes]. Wrap it in a module whose forward returns them."
        )
    return logits


def _near_chance(accuracy: float, num_classes: int) -> bool:
    chance = 1 / num_classes
    return (accuracy - chance) / (1 - chance) < NEAR_CHANCE


def _predicted(deployed: DeployedModel, images_BHWC_u8: Pixels) -> Ints:
    classes: Ints = deployed.logits(images_BHWC_u8, batch_size=FIRST).argmax(1).numpy()
    return classes


def _suspicions(
    deployed: DeployedModel, images_BHWC_u8: Pixels, labels_B: Ints, door: Door
) -> Iterator[Suspicion]:
    """Each other preprocessing, with its accuracy."""
    if images_BHWC_u8.dtype != np.uint8 or images_BHWC_u8.shape[3] != 3:
        return  # floats are prepared already; grey images have no other order or usual normalisation
    stated = getattr(deployed.module, "pretrained_cfg", None) or {}
    usual = dict(USUAL)
    if stated.get("mean") and stated.get("std"):
        usual["that timm states for it"] = (tuple(stated["mean"]), tuple(stated["std"]))
    tried = []
    for words, (mean, std) in usual.items():
        settings = door.normalisation.format(mean=_list(mean), std=_list(std))
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
            fewer = min(FIRST, FIRST * FIRST**2 // size**2 + 16)  # as large images cost more
            resized = _at_size(deployed, images_BHWC_u8[:fewer], size)
            if resized is not None:
                remedy = door.size.format(size=size)
                tried.append((OTHER_SIZES, f"images resized to {size} pixels", remedy, resized))
    for kind, words, remedy, predicted in tried:
        right = float((predicted == labels_B[: len(predicted)]).mean())
        yield Suspicion(kind=kind, words=words, remedy=remedy, accuracy=right, images=len(predicted))


def _at_size(deployed: DeployedModel, images_BHWC_u8: Pixels, size: int) -> Ints | None:
    """Predictions for resized images; None where the DNN cannot take the size."""
    x_BCHW = torch.from_numpy(images_BHWC_u8.copy()).permute(0, 3, 1, 2).float()
    resized = F.interpolate(x_BCHW, (size, size), mode="bilinear", antialias=True).round().clamp(0, 255)
    try:
        return _predicted(
            replace(deployed, input_size=None), resized.to(torch.uint8).permute(0, 2, 3, 1).numpy()
        )
    except RuntimeError:
        return None


def _reordered(predicted_B: Ints, labels_B: Ints, num_classes: int) -> Suspicion:
    """The accuracy if the classes were in the order that fits these predictions best.

    One image in two is used to find the order and the others to judge it, or any order would seem to help.
    """
    counts_KK = np.zeros((num_classes, num_classes))
    np.add.at(counts_KK, (predicted_B[::2], labels_B[::2]), 1)
    ours, theirs = linear_sum_assignment(counts_KK, maximize=True)
    mapped = np.empty(num_classes, np.int64)
    mapped[ours] = theirs
    moved = next((int(i) for i in ours if mapped[i] != i and counts_KK[i, mapped[i]] > 0), 0)
    return Suspicion(
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


def _tried(suspicions: Sequence[Suspicion], best: Suspicion) -> str:
    """How many other ways to feed the DNN were tried, and how far the best of them goes."""
    kinds = ", ".join(f"{kind} ({count})" for kind, count in Counter(s.kind for s in suspicions).items())
    return f"Also tried: {kinds}. The best of these, {best.words}, gives {best.accuracy:.1%} of {best.images} images."


def _list(values: tuple[float, ...]) -> str:
    return f"[{', '.join(f'{v:.4g}' for v in values)}]"
