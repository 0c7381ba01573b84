"""A deployed DNN and clean labelled images in, its accuracy out; near chance, the likely reason is sought and named.

A DNN that is fed otherwise than it was trained fails on everything, and a repair would be spent on that. What is
tried: the usual normalisations, channels in the order blue, green, red, other sizes, another order of the classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
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
FIRST = 64  # enough for a DNN that is right: the others are looked at where these leave a doubt
NEAR_CHANCE = 0.1  # share of the way from chance to all right
GOOD = 0.5  # above it, nothing else is tried
TRIED = 128  # images for each other preprocessing: a dozen of them are tried
SIZES = (32, 64, 224)
USUAL = {
    "ImageNet's": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "CIFAR's": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "that of pixels in [-1, 1]": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "none, pixels in [0, 1]": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "none, pixels in [0, 255]": ((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255)),
}


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
    """Another preprocessing, what to set for it, and the accuracy with it on so many images."""

    words: str
    remedy: str
    accuracy: float
    images: int

    def beats(self, accuracy: float) -> bool:
        """By three standard errors: of a dozen that are tried, one is better by luck."""
        error = math.sqrt(self.accuracy * (1 - self.accuracy) / self.images)
        return self.accuracy - 3 * error > accuracy


def check_on_clean(deployed: DeployedModel, data: Labelled) -> Clean:
    """Accuracy on up to 512 clean images of `data`, evenly spread.

    Raises WeightsError when it is near chance, when the DNN cannot take such images, or gives other than one logit
    per class; each says what is probably wrong.
    """
    count = min(IMAGES, len(data.labels_N))
    rows = np.linspace(0, len(data.labels_N) - 1, count).round().astype(np.int64)
    rows = rows[np.argsort(np.arange(count) % max(count // FIRST, 1), kind="stable")]  # the first spread, too
    images, labels = data.images(rows), data.labels_N[rows]
    check_output(deployed, images[:2])
    for size in (min(FIRST, count), count):
        predicted = _predicted(deployed, images[:size])
        accuracy = float((predicted == labels[:size]).mean())
        if accuracy >= GOOD:
            return Clean(accuracy=accuracy, images=size)
    suspicions = [_reordered(predicted, labels, deployed.num_classes)]
    suspicions += _suspicions(deployed, images[:TRIED], labels[:TRIED])
    best = max(suspicions, key=lambda s: s.accuracy)
    better = best.beats(accuracy) and not _near_chance(best.accuracy, deployed.num_classes)
    if not _near_chance(accuracy, deployed.num_classes):
        if not better:
            return Clean(accuracy=accuracy, images=count)
        note = f"it is {best.accuracy:.1%} with {best.words}: probably {best.remedy}"
        return Clean(accuracy=accuracy, images=count, note=note)
    raise WeightsError(
        f"{deployed.name} gets {accuracy:.1%} of {count} clean images of {data.name} right, which is near chance "
        f"({1 / deployed.num_classes:.1%}). "
        + (
            f"With {best.words} it is {best.accuracy:.1%}: {best.remedy}."
            if better
            else _no_remedy(deployed, predicted)
        )
    )


def check_output(deployed: DeployedModel, images_BHWC_u8: Pixels) -> None:
    """Raises WeightsError unless the DNN takes such images and gives one logit per class."""
    shape = "×".join(map(str, images_BHWC_u8.shape[1:3]))
    size = shape if deployed.input_size is None else f"{deployed.input_size}×{deployed.input_size}"
    try:
        with torch.inference_mode():
            logits = deployed.module.eval()(deployed.normalise(images_BHWC_u8))
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
        said = " ".join(str(error).split())[:160]
        raise WeightsError(
            f"{deployed.name} cannot take a batch of images of {size} pixels with 3 channels ({type(error).__name__}: "
            f"{said}). Probably it was made for another size (set model.input_size to it) or number of channels."
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
    if logits.shape[1] != deployed.num_classes:
        raise WeightsError(
            f"{deployed.name} returns {logits.shape[1]} logits, and the data set has {deployed.num_classes} classes. "
            "Bring a DNN of these classes (a factory gets num_classes where it takes it), or name its data set."
        )


def _near_chance(accuracy: float, num_classes: int) -> bool:
    chance = 1 / num_classes
    return (accuracy - chance) / (1 - chance) < NEAR_CHANCE


def _predicted(deployed: DeployedModel, images_BHWC_u8: Pixels) -> Ints:
    classes: Ints = deployed.logits(images_BHWC_u8, batch_size=FIRST).argmax(1).numpy()
    return classes


def _suspicions(deployed: DeployedModel, images_BHWC_u8: Pixels, labels_B: Ints) -> Iterator[Suspicion]:
    """Each other preprocessing, with its accuracy."""
    if images_BHWC_u8.dtype != np.uint8 or images_BHWC_u8.shape[3] != 3:
        return  # floats are prepared already; grey images have no other order or usual normalisation
    stated = getattr(deployed.module, "pretrained_cfg", None) or {}
    usual = dict(USUAL)
    if stated.get("mean") and stated.get("std"):
        usual["that timm states for it"] = (tuple(stated["mean"]), tuple(stated["std"]))
    tried = []
    for words, (mean, std) in usual.items():
        settings = f"set model.mean to {_list(mean)} and model.std to {_list(std)}"
        other = replace(deployed, mean=mean, std=std)
        for channels, order in (
            ("", slice(None)),
            (" and the channels blue, green, red", slice(None, None, -1)),
        ):
            remedy = f"{settings}, and swap the channels in the factory's forward" if channels else settings
            predicted = _predicted(other, images_BHWC_u8[..., order])
            tried.append((f"the normalisation {words}{channels}", remedy, predicted))
    for size in SIZES:
        if size != images_BHWC_u8.shape[1]:
            fewer = min(FIRST, FIRST * FIRST**2 // size**2 + 16)  # as large images cost more
            resized = _at_size(deployed, images_BHWC_u8[:fewer], size)
            if resized is not None:
                tried.append((f"images resized to {size} pixels", f"set model.input_size to {size}", resized))
    for words, remedy, predicted in tried:
        right = float((predicted == labels_B[: len(predicted)]).mean())
        yield Suspicion(words=words, remedy=remedy, accuracy=right, images=len(predicted))


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
        words=f"another order of the classes (its class {moved} goes with the label {mapped[moved]})",
        remedy="reorder the classifier's rows, or the data set's labels",
        accuracy=float((mapped[predicted_B[1::2]] == labels_B[1::2]).mean()),
        images=len(labels_B[1::2]),
    )


def _no_remedy(deployed: DeployedModel, predicted_B: Ints) -> str:
    most = float(np.bincount(predicted_B, minlength=deployed.num_classes).max()) / len(predicted_B)
    one = f" {most:.0%} of the images get the same class." if most > 0.9 else ""
    return (
        f"None of the usual normalisations, channel orders, sizes, or orders of the classes helps.{one} Probably "
        "the weights are untrained or of another task, or the images are prepared in another way: check model.weights, "
        "model.mean and model.std (pixels in [0, 1]), model.input_size and data.name."
    )


def _list(values: tuple[float, ...]) -> str:
    return f"[{', '.join(f'{v:.4g}' for v in values)}]"
