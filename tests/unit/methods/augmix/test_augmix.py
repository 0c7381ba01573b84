"""Test AugMix: operations against Pillow, mixtures against Algorithm 1, and its loss."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from scipy.spatial.distance import jensenshannon
from torch import Tensor
from torch.nn import functional as F

from metarepair.adaptation.accuracy import accuracy_on
from metarepair.adaptation.repair_data import RepairData
from metarepair.config.repair import RepairConfig
from metarepair.methods import training
from metarepair.methods.augmix import method as augmix
from metarepair.methods.augmix.method import VIEWS, AugMixLoss, AugMixSettings, divergence
from metarepair.methods.augmix.operations import (
    NOTHING,
    OPERATIONS,
    STYLE,
    MixDraws,
    flip_and_crop_matrices,
    mixture,
    move,
    operate,
    sample_mix,
)
from metarepair.methods.base import MethodContext
from metarepair.methods.budget import Budget, parse_limit
from metarepair.methods.registry import get_method, method_settings
from metarepair.methods.repaired import RepairedModel
from metarepair.methods.training import MethodBatch
from metarepair.repairs.stage import repair_fairly
from small import clean_of, failures_of, mean_dnn
from tasks.errors import ConfigError, DataError
from tasks.records import Failures, Pixels

SIZE = 16
BILINEAR, AFFINE = Image.Resampling.BILINEAR, Image.Transform.AFFINE


def textured(count: int, *, seed: int = 0, size: int = 32) -> Pixels:
    generator = np.random.default_rng(seed)
    coarse = generator.integers(30, 226, (count, 4, 4, 3)).repeat(size // 4, 1).repeat(size // 4, 2)
    return (coarse + generator.integers(-30, 30, coarse.shape)).astype(np.uint8)


def planes(images: Pixels) -> Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def by_pillow(image: Image.Image, name: str, level: float) -> Image.Image:
    size, positive, (a, b) = image.size, abs(level), (level * 0.03, int(level * image.size[0] / 30))
    done: dict[str, Callable[[], Image.Image]] = {
        "autocontrast": lambda: ImageOps.autocontrast(image),
        "equalize": lambda: ImageOps.equalize(image),
        "posterize": lambda: ImageOps.posterize(image, 4 - int(positive * 4 / 10)),
        "solarize": lambda: ImageOps.solarize(image, 256 - int(positive * 256 / 10)),
        "rotate": lambda: image.rotate(int(level * 3), resample=BILINEAR),
        "shear_x": lambda: image.transform(size, AFFINE, (1, a, 0, 0, 1, 0), resample=BILINEAR),
        "shear_y": lambda: image.transform(size, AFFINE, (1, 0, 0, a, 1, 0), resample=BILINEAR),
        "translate_x": lambda: image.transform(size, AFFINE, (1, 0, b, 0, 1, 0), resample=BILINEAR),
        "translate_y": lambda: image.transform(size, AFFINE, (1, 0, 0, 0, 1, b), resample=BILINEAR),
    }
    return done[name]()


@pytest.mark.parametrize("level", [0.3, 2.9, -2.9, 9.7])
@pytest.mark.parametrize("name", OPERATIONS)
def test_each_operation_is_pillows(name: str, level: float) -> None:
    images = textured(3)
    ours = planes(images).clone()
    operate(ours, np.full(3, OPERATIONS.index(name)), np.full(3, level))
    theirs = np.stack([np.asarray(by_pillow(Image.fromarray(image), name, level)) for image in images])
    assert (ours.int() - planes(theirs).int()).abs().max() <= 1  # Pillow truncates or rounds
    assert level == 0.3 or not ours.equal(planes(images))


def test_a_batch_of_mixed_operations_equals_each_image_on_its_own() -> None:
    images = planes(textured(24))
    draws = sample_mix(np.random.default_rng(1), 24, severity=3, width=3)
    together = mixture(images, draws)
    for row, image in enumerate(images):
        whole = (1 - draws.share_B[row]) * image.double()
        for chain in range(3):
            found = image[None].clone()
            for number, level in zip(
                draws.operations_BWD[row, chain], draws.levels_BWD[row, chain], strict=True
            ):
                operate(found, np.array([number]), np.array([level]))
            whole += draws.share_B[row] * draws.weights_BW[row, chain] * found[0].double()
        torch.testing.assert_close(together[row].double(), whole, rtol=0, atol=1e-3)
    assert (together - images).abs().mean() > 5


def test_draws_have_the_published_distributions() -> None:
    draws = sample_mix(np.random.default_rng(0), 3000, severity=3, width=3)
    done = draws.operations_BWD != NOTHING
    assert np.all(done[..., :-1] >= done[..., 1:])  # only the slots after the end of a chain are empty
    assert np.bincount(done.sum(2).ravel())[1:] / 9000 == pytest.approx([1 / 3] * 3, abs=0.02)
    assert np.bincount(draws.operations_BWD[done]) / done.sum() == pytest.approx([1 / 9] * 9, abs=0.01)
    assert 0.1 <= np.abs(draws.levels_BWD).min() < 0.11
    assert 2.99 < np.abs(draws.levels_BWD).max() <= 3
    assert (draws.levels_BWD > 0).mean() == pytest.approx(0.5, abs=0.02)
    assert draws.weights_BW.sum(1) == pytest.approx(1)
    assert draws.weights_BW.std() == pytest.approx(math.sqrt(1 / 18), abs=0.01)  # of Dirichlet(1, 1, 1)
    assert (draws.share_B.mean(), draws.share_B.std()) == pytest.approx((0.5, math.sqrt(1 / 12)), abs=0.02)
    assert not draws.styled_BW.any()


def test_depth_and_style_are_drawn_when_they_are_enabled() -> None:
    draws = sample_mix(np.random.default_rng(0), 2000, severity=3, width=2, depth=2, style=True)
    assert draws.operations_BWD.shape == (2000, 2, 2)
    assert (draws.operations_BWD == STYLE).mean() == pytest.approx(0.1, abs=0.01)
    assert draws.styled_BW.mean() == pytest.approx(0.19, abs=0.02)


def test_style_comes_first_wherever_its_chain_drew_it() -> None:
    images, others = planes(textured(4)), planes(textured(4, seed=9))
    rotate, posterize = OPERATIONS.index("rotate"), OPERATIONS.index("posterize")

    def draws(*chain: int) -> MixDraws:
        return MixDraws(
            operations_BWD=np.tile(np.array(chain), (4, 1, 1)),
            levels_BWD=np.full((4, 1, 3), 2.5),
            weights_BW=np.ones((4, 1)),
            share_B=np.ones(4),
        )

    late = mixture(images, draws(rotate, posterize, STYLE), styled_BCHW_u8=others)
    assert late.equal(mixture(others, draws(NOTHING, rotate, posterize)))
    assert mixture(images, draws(STYLE, STYLE, NOTHING), styled_BCHW_u8=others).equal(others.float())
    assert mixture(images, draws(rotate, NOTHING, NOTHING), styled_BCHW_u8=others).equal(
        mixture(images, draws(rotate, NOTHING, NOTHING))
    )


def test_flips_and_crops_are_those_of_an_image_with_black_edges() -> None:
    images = textured(40)
    matrices = flip_and_crop_matrices(np.random.default_rng(0), 40, width=32, flip=True, shift=4)
    moved = move(planes(images), matrices).permute(0, 2, 3, 1).numpy()
    flipped = matrices[:, 0, 0] < 0
    assert 8 < flipped.sum() < 32
    for image, found, matrix, turned in zip(images, moved, matrices, flipped, strict=True):
        x = int(32 - matrix[0, 2] if turned else matrix[0, 2]) + 4
        y = int(matrix[1, 2]) + 4
        padded = np.pad(image[:, ::-1] if turned else image, ((4, 4), (4, 4), (0, 0)))
        assert np.array_equal(found, padded[y : y + 32, x : x + 32])
    still = flip_and_crop_matrices(np.random.default_rng(0), 40, width=32, flip=False, shift=0)
    assert move(planes(images), still).equal(planes(images))


def test_divergence_is_the_jensen_shannon_divergence() -> None:
    logits = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    two = [float(jensenshannon(*pair) ** 2) for pair in logits[:2].softmax(2).transpose(0, 1).numpy()]
    assert float(divergence(logits[:2])) == pytest.approx(np.mean(two))
    sure = 200 * torch.eye(3, dtype=torch.float64)[:, None]
    assert float(divergence(sure)) == pytest.approx(math.log(3))


class Still(AugMixLoss):
    """A loss whose views all equal the image."""

    def views(self, batch: MethodBatch) -> Tensor:
        return torch.from_numpy(batch.images_BHWC_u8)[None].repeat(VIEWS, 1, 1, 1, 1)


def batch(size: int = 6) -> MethodBatch:
    return MethodBatch(
        rows_B=np.arange(size),
        images_BHWC_u8=textured(size, size=SIZE),
        labels_B=torch.arange(size) % 3,
        generator=np.random.default_rng(0),
    )


def test_loss_falls_to_cross_entropy_for_identical_views() -> None:
    net, step = mean_dnn(), batch()
    expected = F.cross_entropy(net.module(net.normalise(step.images_BHWC_u8)), step.labels_B)
    settings = AugMixSettings(flip=False, shift=0)
    still = Still(deployed=net, settings=settings)(net.module, step)
    torch.testing.assert_close(still, expected, rtol=0, atol=1e-9)
    moved = AugMixLoss(deployed=net, settings=settings)(net.module, step)
    assert moved > expected + 1e-5


def test_disagreement_counts_by_its_weight() -> None:
    net = mean_dnn()
    one, twelve, thirteen = (
        AugMixLoss(deployed=net, settings=AugMixSettings(consistency=weight))(net.module, batch()).item()
        for weight in (1.0, 12.0, 13.0)
    )
    assert thirteen - twelve == pytest.approx((twelve - one) / 11)
    assert thirteen > twelve


def test_views_are_the_image_and_two_different_mixtures() -> None:
    settings = AugMixSettings(flip=False, shift=0)
    views = AugMixLoss(deployed=mean_dnn(), settings=settings).views(batch())
    assert views.shape == (VIEWS, 6, SIZE, SIZE, 3)
    assert views[0].equal(torch.from_numpy(batch().images_BHWC_u8).float())
    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert (views[first] - views[second]).abs().mean() > 1
    assert views.min() >= 0
    assert views.max() <= 255.01


def failures(count: int = 24, *, seed: int = 1) -> Failures:
    """Images of three classes that differ in their mean colour."""
    labels = np.arange(count) % 3
    images = textured(count, seed=seed, size=SIZE) // 2
    images[np.arange(count), :, :, labels] += 120
    return failures_of(labels, images, corruption="fog")


def data() -> RepairData:
    found, clean = failures(), failures(60, seed=2)
    learn, validation = found.take(np.arange(18)), found.take(np.arange(18, 24))
    return RepairData(target="fog", learn=learn, validation=validation, clean=clean_of(clean))


def repaired(
    *, limit: str = "6steps", folder: Path | None = None, norm: bool = False, seed: int = 0, **settings: Any
) -> RepairedModel:
    context = MethodContext(
        config=RepairConfig(),
        seed=seed,
        settings=method_settings("augmix", {"batch_size": 16} | settings),
        budget=Budget(parse_limit(limit)),
        folder=folder,
    )
    return repair_fairly(get_method("augmix"), mean_dnn(norm=norm), data(), context)


def same(one: RepairedModel, other: RepairedModel) -> bool:
    return all(torch.equal(v, other.state()[k]) for k, v in one.state().items())


@pytest.mark.parametrize("norm", [False, True])
def test_repair_learns_with_and_without_batch_norm(norm: bool) -> None:
    net, found = mean_dnn(norm=norm), repaired(limit="20steps", norm=norm, rate=0.3)
    before = accuracy_on(
        net, dict(net.module.named_parameters()), dict(net.module.named_buffers()), data().validation
    )
    assert accuracy_on(net, found.parameters, found.buffers, data().validation) > before
    assert all(v.dtype == torch.float64 for v in found.parameters.values())


def test_batches_are_of_failures_and_of_clean_images(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    whole = AugMixLoss.views

    def noted(self: AugMixLoss, batch: MethodBatch) -> Tensor:
        seen.append(batch.images_BHWC_u8)
        return whole(self, batch)

    monkeypatch.setattr(AugMixLoss, "views", noted)
    repaired(collected_share=0.25)
    known = {image.tobytes() for image in data().learn.images_NHWC}
    shares = [np.mean([image.tobytes() in known for image in images]) for images in seen]
    assert shares == [0.25] * 6


def test_same_seed_gives_the_same_bits_and_another_seed_others() -> None:
    assert same(repaired(), repaired())
    assert not same(repaired(), repaired(seed=1))


def test_budget_is_obeyed_and_counts_three_images_an_example() -> None:
    found = repaired(limit="5steps")
    assert (found.gradient_steps, found.images_seen) == (5, 5 * 16 * 3)


def test_a_resumed_repair_has_the_bits_of_an_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = repaired(norm=True)
    monkeypatch.setattr(training, "CHECKPOINT_S", 0.0)
    calls = []

    def failing(logits_VBK: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return divergence(logits_VBK)

    with monkeypatch.context() as patch:
        patch.setattr(augmix, "divergence", failing)
        with pytest.raises(KeyboardInterrupt):
            repaired(norm=True, folder=tmp_path)
    resumed = repaired(norm=True, folder=tmp_path)
    assert len(calls) == 4
    assert same(resumed, undisturbed)
    assert (resumed.gradient_steps, resumed.images_seen) == (6, 6 * 16 * 3)


def test_method_and_settings_pickle() -> None:
    settings = method_settings("augmix", {"severity": 2.0})
    assert pickle.loads(pickle.dumps((get_method("augmix"), settings)))[1] == settings


def test_an_unknown_setting_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match="severity"):
        method_settings("augmix", {"severty": 3.0})
    with pytest.raises(ConfigError, match=r"methods\.augmix\.severity"):
        method_settings("augmix", {"severity": 11.0})


def test_missing_data_is_refused() -> None:
    context = MethodContext(config=RepairConfig(), seed=0, settings=AugMixSettings())
    whole = data()
    none = RepairData(
        target="fog", learn=whole.learn.take(np.arange(0)), validation=whole.validation, clean=whole.clean
    )
    with pytest.raises(DataError, match="Collect more failures"):
        repair_fairly(get_method("augmix"), mean_dnn(), none, context)
    no_clean = RepairData(target="fog", learn=whole.learn, validation=whole.validation)
    with pytest.raises(ConfigError, match="clean training split"):
        repair_fairly(get_method("augmix"), mean_dnn(), no_clean, context)
    with pytest.raises(DataError, match="no clean images"):
        get_method("augmix").repair(mean_dnn(), no_clean, context)
