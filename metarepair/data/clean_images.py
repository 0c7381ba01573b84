"""Holds the clean training split: images to learn from, and a held-out part that is used only for selection."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

from tasks.keys import keyed_generator
from tasks.records import Ints, PixelRows

# N images, H W C pixels

HELD_OUT = 500  # at most; a tenth of the images if that is fewer


class LabelledImages(Protocol):
    """Failures, or clean images."""

    @property
    def images_NHWC(self) -> PixelRows: ...
    @property
    def labels_N(self) -> Ints: ...


@dataclass(frozen=True, kw_only=True)
class CleanImages:
    """Pixels [N, H, W, C], uint8 (or float32, the DNN's own input), and labels [N].

    selects: other images for selection; without them, some of these are held out for it.
    """

    images_NHWC: PixelRows
    labels_N: Ints
    selects: CleanImages | None = None

    def __len__(self) -> int:
        return len(self.labels_N)

    def take(self, rows: Ints) -> CleanImages:
        """The given rows, in the given order (pixels are copied)."""
        return CleanImages(images_NHWC=self.images_NHWC[rows], labels_N=self.labels_N[rows])

    @cached_property
    def held_out_rows(self) -> Ints:
        """Rows of the images for selection, in ascending order; no repair learns from them."""
        if self.selects is not None:
            return np.empty(0, np.int64)
        count = min(HELD_OUT, max(1, len(self) // 10))
        return np.sort(keyed_generator("clean-held-out").permutation(len(self))[:count])

    @cached_property
    def held_out(self) -> CleanImages:
        """The images for selection, as a `CleanImages`."""
        return self.take(self.held_out_rows) if self.selects is None else self.selects

    def sample(self, count: int, generator: np.random.Generator) -> CleanImages:
        """Draws `count` images that are not held out, without replacement; fewer if there are fewer."""
        left = len(self) - len(self.held_out_rows)
        places = np.sort(generator.choice(left, size=min(count, left), replace=False))
        rows = places + np.searchsorted(
            self.held_out_rows - np.arange(len(self.held_out_rows)), places, "right"
        )
        return self.take(rows)
