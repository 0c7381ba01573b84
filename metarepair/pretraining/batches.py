"""Make the augmented batches of one worker from the training split, as a pure function of (seed, epoch, step, worker).

The images of a step are divided into contiguous blocks, one per worker. An image is mixed with the one before it in the
step, even if that belongs to another worker, so all workers together see what a single one would see.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metarepair.config.pretraining import PretrainConfig
from metarepair.meta_training.task_source import slots_of
from metarepair.models.build import DeployedModel
from metarepair.pretraining.augmentation import (
    flipped_and_shifted,
    mixed,
    rand_augment,
    sample_draws,
    sample_mixing,
)
from tasks.datasets import Dataset
from tasks.keys import keyed_generator

# B images of a worker's block, C channels, H W pixels, N training images


@dataclass(frozen=True, kw_only=True)
class TrainingBatch:
    """Normalised, augmented images [B, C, H, W]; an own label counts `weight`, the partner's label 1 − `weight`."""

    images_BCHW: Tensor
    labels_B: Tensor
    partner_labels_B: Tensor
    weight: float

    def parts(self, number: int) -> list[TrainingBatch]:
        """Split the batch into `number` batches of about equal size, in the same order."""
        tensors = (self.images_BCHW, self.labels_B, self.partner_labels_B)
        return [
            TrainingBatch(images_BCHW=x, labels_B=y, partner_labels_B=z, weight=self.weight)
            for x, y, z in zip(*(t.tensor_split(number) for t in tensors), strict=True)
        ]


@dataclass(frozen=True, kw_only=True)
class BatchSource:
    """The batches of worker `rank`, made from the training rows `rows_N` of `data`."""

    deployed: DeployedModel
    data: Dataset
    rows_N: NDArray[np.int64]
    config: PretrainConfig
    seed: int
    rank: int
    world_size: int
    _orders: dict[int, NDArray[np.int64]] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        """Steps of an epoch; the images left over at its end are not used, and each epoch has a new order."""
        return len(self.rows_N) // self.config.batch_size

    def batch(self, key: tuple[int, int]) -> TrainingBatch:
        """Make this worker's block of the step `key`, (epoch, step)."""
        (epoch, step), size = key, self.config.batch_size
        rows_B = self._order(epoch)[step * size : (step + 1) * size]
        block = slots_of(self.rank, self.world_size, size)
        first = block.start - 1 if self.config.mixup or self.config.cutmix else block.start
        rows_B = rows_B[np.arange(first, block.stop)]  # with the partner of the first; −1 is the step's last
        images_BCHW = self._augmented(rows_B, epoch)
        labels_B = torch.from_numpy(self.data.labels_N[rows_B]).to(images_BCHW.device)
        mixing = sample_mixing(self.config, *images_BCHW.shape[2:], seed=self.seed, epoch=epoch, step=step)
        if mixing is None:
            return TrainingBatch(
                images_BCHW=images_BCHW, labels_B=labels_B, partner_labels_B=labels_B, weight=1.0
            )
        return TrainingBatch(
            images_BCHW=mixed(images_BCHW[1:], images_BCHW[:-1], mixing),
            labels_B=labels_B[1:],
            partner_labels_B=labels_B[:-1],
            weight=mixing.weight,
        )

    def following(self, key: tuple[int, int]) -> tuple[int, int] | None:
        """Return the step after `key`, None after the last one."""
        epoch, step = key
        if step + 1 < self.steps:
            return epoch, step + 1
        return (epoch + 1, 0) if epoch + 1 < self.config.epochs else None

    def _order(self, epoch: int) -> NDArray[np.int64]:
        order_N = self._orders.get(epoch)
        if order_N is None:
            generator = keyed_generator("pretrain-order", self.seed, epoch)
            order_N = self.rows_N[generator.permutation(len(self.rows_N))]
            self._orders.clear()
            self._orders[epoch] = order_N
        return order_N

    def _augmented(self, rows_B: NDArray[np.int64], epoch: int) -> Tensor:
        config, pixels_BHWC = self.config, torch.from_numpy(self.data.images(rows_B)).to(self.deployed.device)
        draws = sample_draws(
            self.data.image_ids_N[rows_B].tolist(),
            seed=self.seed,
            epoch=epoch,
            operations=config.randaugment_ops if config.randaugment else 0,
        )
        if config.randaugment:
            augmented = rand_augment(pixels_BHWC.permute(0, 3, 1, 2), draws, magnitude=config.randaugment)
            pixels_BHWC = augmented.permute(0, 2, 3, 1)
        images_BCHW = self.deployed.normalise(pixels_BHWC)
        return flipped_and_shifted(images_BCHW, draws, flip=config.flip, shift=config.shift)
