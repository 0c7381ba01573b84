"""Join labelled images of several sources, and choose the rows of each training batch.

The order is keyed by (seed, pass), so a batch depends on its number alone: a training that resumes sees the same
batches as one that was never interrupted.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from metarepair.adaptation.repair_data import RepairData
from metarepair.data.batches import counts_of
from metarepair.data.clean_images import CleanImages, LabelledImages
from tasks.errors import DataError
from tasks.keys import keyed_generator
from tasks.records import Ints, Pixels

# B images in a batch, N examples, H W C pixels


class Examples:
    """Labelled images of several sources as one list of rows, one source after the other."""

    def __init__(self, *sources: LabelledImages) -> None:
        self.sources = sources
        self.sizes = [len(source.labels_N) for source in sources]
        self.labels_N: Ints = np.concatenate([source.labels_N for source in sources])
        self._ends = np.cumsum(self.sizes)

    def __len__(self) -> int:
        return len(self.labels_N)

    def images(self, rows: Ints) -> Pixels:
        """Return a copy of the pixels [B, H, W, C], uint8."""
        images = np.empty((len(rows), *self.sources[0].images_NHWC.shape[1:]), np.uint8)
        which_B = np.searchsorted(self._ends, rows, side="right")
        for number, source in enumerate(self.sources):
            here = which_B == number
            if here.any():
                start = int(self._ends[number]) - self.sizes[number]
                images[here] = source.images_NHWC[rows[here] - start]
        return images


def clean_beside_failures(method: str, data: RepairData) -> CleanImages:
    """Return the clean images. Raises DataError if there are none, or no failures to learn from."""
    if data.clean is None or not len(data.clean):
        raise DataError(
            f"{method} learns from failures and clean training images, and there are no clean images. Give data with a "
            "training split, or use a method that needs none (finetune, bn_adapt)."
        )
    if not len(data.learn):
        raise DataError(
            f"{method} learns from collected failures, and the learning part of D_collect has none. Collect more "
            "failures, or lower repair.validation_fraction."
        )
    return data.clean


class BatchOrder:
    """The rows of each batch. Every pass over a source has a new random order.

    shares: the share of each source in a batch. With None the sources are shuffled together, so on average each has
    the share of its size.
    """

    def __init__(
        self, sizes: Sequence[int], *, batch_size: int, seed: int, shares: Sequence[float] | None = None
    ) -> None:
        whole = sum(sizes)
        self.batch_size, self.seed = min(batch_size, whole), seed
        self.steps_per_epoch = -(-whole // self.batch_size)
        self._sizes = [whole] if shares is None else list(sizes)
        self._counts = [self.batch_size] if shares is None else counts_of(self.batch_size, shares)
        self._permutation = lru_cache(maxsize=2 * len(self._sizes))(self._new_permutation)

    def rows(self, step: int) -> Ints:
        """Return the rows [B] of batch number `step`, from 0."""
        rows, start = [], 0
        for source, (size, count) in enumerate(zip(self._sizes, self._counts, strict=True)):
            places = np.arange(step * count, (step + 1) * count)
            parts = [
                self._permutation(source, turn)[places[places // size == turn] % size]
                for turn in np.unique(places // size).tolist()
            ]
            rows += [start + part for part in parts]
            start += size
        return np.concatenate(rows)

    def _new_permutation(self, source: int, turn: int) -> Ints:
        order: Ints = keyed_generator("method-order", self.seed, source, turn).permutation(
            self._sizes[source]
        )
        return order
