"""The photographs that a diagnosis may see: those to learn from and to select by, never those that judge."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from metarepair.features.extractors import FeatureExtractor, build_extractor
from metarepair.models.build import DeployedModel
from metarepair.runs.progress import Progress
from tasks.environments import UserImages
from tasks.records import Ints, PixelRows, Pixels, SelectedPixels
from tasks.splits import JUDGE, LEARN, SELECT, UNUSED

# N images, B of a batch, D features

BATCH = 64  # images: few enough that progress is told in time


@dataclass(frozen=True, kw_only=True)
class Seen:
    """The photographs to learn from and to select by; the others are not reachable from here.

    Attributes:
        source: all photographs, of which only `rows_N` are read.
        rows_N: int64 [N], rows of the source.
    """

    source: UserImages
    rows_N: Ints

    def __len__(self) -> int:
        return len(self.rows_N)

    @property
    def labels_N(self) -> Ints:
        """int64 [N]."""
        return self.source.labels_N[self.rows_N]

    @property
    def groups_N(self) -> Ints:
        """int64 [N], the number of each photograph's group."""
        return self.source.groups_N[self.rows_N]

    @property
    def selects_N(self) -> NDArray[np.bool_]:
        """bool [N], which photographs select; the others are learned from."""
        selects_N: NDArray[np.bool_] = self.source.parts_N[self.rows_N] == SELECT
        return selects_N

    @property
    def images_NHWC(self) -> PixelRows:
        """The pixels, read when they are used."""
        return SelectedPixels(pixels=self.source.images_NHWC, rows_N=self.rows_N)

    def names(self, places: Ints) -> list[str]:
        """The file names of some of the N photographs."""
        return [self.source.names[row] for row in self.rows_N[places]]


def seen_of(source: UserImages) -> Seen:
    """The photographs of a user's environment that a diagnosis may see."""
    return Seen(source=source, rows_N=np.flatnonzero(source.learned_N))


def counts_of(source: UserImages) -> dict[str, int]:
    """How many photographs are for what."""
    parts = {"learn": LEARN, "select": SELECT, "judge": JUDGE, "unused": UNUSED}
    return {name: int((source.parts_N == part).sum()) for name, part in parts.items()}


@dataclass(frozen=True, kw_only=True, eq=False)
class Answers:
    """What the DNN answers to N images: classes [N], and the softmax of the predicted class [N]."""

    classes_N: Ints
    confidence_N: NDArray[np.float32]

    def right(self, labels_N: Ints) -> NDArray[np.bool_]:
        """Which answers are right, bool [N]."""
        right_N: NDArray[np.bool_] = self.classes_N == labels_N
        return right_N


def answers(deployed: DeployedModel, images_NHWC: PixelRows, label: str) -> Answers:
    """Classify images, with progress under `label`."""
    tops = [torch.softmax(deployed.logits(batch), dim=1).max(1) for batch in _batches(images_NHWC, label)]
    return Answers(
        classes_N=np.concatenate([np.empty(0, np.int64), *(top.indices.numpy() for top in tops)]),
        confidence_N=np.concatenate([np.empty(0, np.float32), *(top.values.numpy() for top in tops)]),
    )


def deployed_extractor(deployed: DeployedModel) -> FeatureExtractor:
    """The extractor of the DNN's own features. Raises ConfigError if they cannot be found."""
    return build_extractor(
        "deployed",
        weights=None,
        deployed=deployed.module,
        mean=deployed.mean,
        std=deployed.std,
        device=deployed.device,
        input_size=deployed.input_size,
    )


def features_of(extractor: FeatureExtractor, images_NHWC: PixelRows, label: str) -> NDArray[np.float32]:
    """Compute features [N, D] of images, with progress under `label`."""
    nothing = np.empty((0, extractor.dim), np.float32)
    return np.concatenate([nothing, *map(extractor, _batches(images_NHWC, label))])


def _batches(images_NHWC: PixelRows, label: str) -> Iterator[Pixels]:
    progress = Progress(label, len(images_NHWC), "images")
    for start in range(0, len(images_NHWC), BATCH):
        rows = np.arange(start, min(start + BATCH, len(images_NHWC)))
        yield np.asarray(images_NHWC[rows])
        progress.advance(len(rows))
