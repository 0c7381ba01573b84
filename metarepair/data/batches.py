"""Makes normalised batches on the DNN's device from uint8 failures and clean images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from metarepair.data.clean_images import CleanImages
from metarepair.engine.types import Batch
from metarepair.models.build import DeployedModel
from tasks.errors import ConfigError
from tasks.records import Failures, Ints, Pixels


def failure_batch(deployed: DeployedModel, failures: Failures, rows: Ints, *, seed: int = 0) -> Batch:
    """The given rows of `failures` as a batch; `seed` keys its dropout masks."""
    return image_batch(deployed, failures.images_NHWC[rows], failures.labels_N[rows], seed=seed)


def support_batch(
    deployed: DeployedModel,
    failures: Failures,
    rows: Ints,
    clean: CleanImages | None,
    *,
    count: int,
    generator: np.random.Generator,
    seed: int = 0,
) -> Batch:
    """The given rows of `failures`, then `count` random clean images; `seed` keys the dropout masks."""
    images_B, labels_B = failures.images_NHWC[rows], failures.labels_N[rows]
    if count and clean is None:
        raise ConfigError(
            f"task.clean_support={count} needs clean training images, but none are given. Set it to 0, or give them."
        )
    if count and clean is not None:
        drawn = clean.sample(count, generator)
        images_B = np.concatenate([images_B, drawn.images_NHWC])
        labels_B = np.concatenate([labels_B, drawn.labels_N])
    return image_batch(deployed, images_B, labels_B, seed=seed)


def image_batch(deployed: DeployedModel, images_BHWC_u8: Pixels, labels_B: Ints, *, seed: int = 0) -> Batch:
    """Images [B, H, W, C] and labels [B] as a batch."""
    return Batch(
        images_BCHW=deployed.normalise(images_BHWC_u8),
        labels_B=torch.from_numpy(np.ascontiguousarray(labels_B)).to(deployed.device),
        seed=seed,
    )


def counts_of(size: int, shares: Sequence[float]) -> list[int]:
    """Return the images of each source in a batch, in proportion to the shares; they sum to the batch size."""
    ends = np.rint(np.cumsum(shares) / np.sum(shares) * size).astype(int)
    return [int(count) for count in np.diff([0, *ends])]
