"""Test augmentation against torchvision's, and that the draws of an image depend only on its key."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2

from metarepair.config.pretraining import PretrainConfig
from metarepair.pretraining.augmentation import (
    OPERATIONS,
    Draws,
    Mixing,
    flipped_and_shifted,
    mixed,
    rand_augment,
    sample_draws,
    sample_mixing,
)


@pytest.fixture(scope="module")
def images() -> Tensor:
    generator = np.random.default_rng(0)
    coarse = generator.integers(0, 256, (6, 3, 8, 8)).astype(np.uint8)
    return torch.from_numpy(coarse.repeat(3, axis=2).repeat(3, axis=3))


def draws(
    batch: int, *, flip: float = 0.9, shift: tuple[float, float] = (0.0, 0.0), operation: float = 0.0
) -> Draws:
    return Draws(
        flip_B=np.full(batch, flip),
        shift_B2=np.tile(shift, (batch, 1)),
        operations_BO=np.full((batch, 1), operation),
    )


@pytest.mark.parametrize("magnitude", [6, 17, 30])
@pytest.mark.parametrize("sign", [0, 1])
def test_each_operation_equals_torchvisions(images: Tensor, magnitude: int, sign: int) -> None:
    theirs: Any = v2.RandAugment(num_ops=1, magnitude=magnitude)
    assert list(OPERATIONS) == list(theirs._AUGMENTATION_SPACE)
    for number, (name, (ranges, signed)) in enumerate(theirs._AUGMENTATION_SPACE.items()):
        steps = ranges(31, *images.shape[-2:])
        strength = 0.0 if steps is None else float(steps[magnitude]) * (-1 if signed and sign else 1)
        expected = theirs._apply_image_or_video_transform(
            images, name, strength, theirs.interpolation, theirs._fill
        )
        choice = (2 * number + sign + 0.5) / (2 * len(OPERATIONS))
        ours = rand_augment(images, draws(len(images), operation=choice), magnitude=magnitude)
        # torchvision's factors are float32, so a pixel value that ends in .5 may be rounded either way.
        difference = (ours.int() - expected.int()).abs()
        assert difference.max() <= 1, name
        assert (difference > 0).float().mean() < 0.02, name
        assert name in {"Identity", "Equalize", "AutoContrast"} or not ours.equal(images), name


def test_an_image_is_augmented_alike_in_any_batch(images: Tensor) -> None:
    ids = [7, 3, 99, 4, 12, 5]

    def augmented(rows: list[int]) -> Tensor:
        found = sample_draws([ids[row] for row in rows], seed=1, epoch=2, operations=2)
        out = rand_augment(images[rows], found, magnitude=9)
        return flipped_and_shifted(out.float(), found, flip=True, shift=4)

    together = augmented(list(range(6)))
    assert together[[4, 2]].equal(augmented([4, 2]))
    assert not together.equal(images.float())
    other = sample_draws(ids, seed=1, epoch=3, operations=2)
    assert (other.operations_BO != sample_draws(ids, seed=1, epoch=2, operations=2).operations_BO).all()


def test_images_are_flipped_and_shifted_by_their_draws(images: Tensor) -> None:
    x = images.float()
    assert flipped_and_shifted(x, draws(6, flip=0.4, shift=(0.5, 0.5)), flip=True, shift=4).equal(x.flip(3))
    assert flipped_and_shifted(x, draws(6, flip=0.4, shift=(0.5, 0.5)), flip=False, shift=4).equal(x)
    up = flipped_and_shifted(x, draws(6, shift=(0.999, 0.5)), flip=True, shift=4)  # by 4 pixels
    assert up[:, :, :-4].equal(x[:, :, 4:])
    assert up[:, :, -4:].equal(x[:, :, -5:-1].flip(2))
    assert flipped_and_shifted(x, draws(6), flip=True, shift=0).equal(x)


def test_mixed_images_equal_torchvisions(images: Tensor) -> None:
    x = images.double() / 255
    mixup = v2.MixUp(num_classes=2).transform(x.clone(), {"lam": 0.3, "batch_size": 6, "labels": None})
    torch.testing.assert_close(mixed(x, x.roll(1, 0), Mixing(weight=0.3)), mixup)
    params = {"box": (2, 3, 9, 20), "lam_adjusted": 0.5, "batch_size": 6, "labels": None}
    cutmix = v2.CutMix(num_classes=2).transform(x.clone(), params)
    assert mixed(x, x.roll(1, 0), Mixing(weight=0.5, box=(3, 20, 2, 9))).equal(cutmix)
    assert not cutmix.equal(x)


def test_the_cutmix_weight_is_the_share_of_the_image_that_remains() -> None:
    config = PretrainConfig(cutmix=1.0)
    found = [sample_mixing(config, 24, 16, seed=0, epoch=0, step=step) for step in range(200)]
    for mixing in found:
        assert mixing is not None
        assert mixing.box is not None
        left = mixed(torch.ones(1, 1, 24, 16), torch.zeros(1, 1, 24, 16), mixing).mean()
        assert float(left) == pytest.approx(mixing.weight)
    assert 0.5 < np.mean([mixing.weight for mixing in found if mixing is not None]) < 0.8


def test_a_step_draws_one_of_mixup_and_cutmix() -> None:
    both = [
        sample_mixing(PretrainConfig(mixup=0.2, cutmix=1.0), 8, 8, seed=0, epoch=0, step=step)
        for step in range(100)
    ]
    cut = sum(mixing is not None and mixing.box is not None for mixing in both)
    assert 30 < cut < 70
    assert sample_mixing(PretrainConfig(), 8, 8, seed=0, epoch=0, step=0) is None
