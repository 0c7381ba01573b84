"""Test DeepRepair: stylised images have the style's band statistics and the content's edges."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from metarepair.adaptation.repair_data import RepairData
from metarepair.config.repair import RepairConfig
from metarepair.data.clean_images import CleanImages
from metarepair.methods import training
from metarepair.methods.augmix import method as augmix
from metarepair.methods.augmix.method import AugMixLoss
from metarepair.methods.augmix.operations import STYLE, MixDraws
from metarepair.methods.base import MethodContext
from metarepair.methods.budget import Budget, parse_limit
from metarepair.methods.deeprepair.haar import haar, inverse_haar
from metarepair.methods.deeprepair.method import DeepRepairSettings
from metarepair.methods.deeprepair.style import (
    StyledImages,
    WaveletStatistics,
    band_statistics,
    k_means,
    standardised,
    style_rows,
)
from metarepair.methods.registry import get_method, method_settings
from metarepair.methods.repaired import RepairedModel
from metarepair.methods.training import MethodBatch
from metarepair.repairs.stage import repair_fairly
from small import failures_of, mean_dnn
from tasks.errors import ConfigError, DataError
from tasks.records import Failures, Ints, Pixels

CPU = torch.device("cpu")
SIZE = 16


def images(count: int, *, seed: int, contrast: float, mean: float = 128, size: int = SIZE) -> Pixels:
    """Images of 4 × 4-pixel blocks with noise, around a mean."""
    generator = np.random.default_rng(seed)
    blocks = generator.normal(0, 1, (count, size // 4, size // 4, 3)).repeat(4, 1).repeat(4, 2)
    grain = generator.normal(0, 0.3, blocks.shape)
    return (mean + contrast * (blocks + grain)).clip(0, 255).round().astype(np.uint8)


def float_planes(pixels: Pixels) -> Tensor:
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float()


def test_haar_bands_reconstruct_the_image_and_separate_its_edges() -> None:
    x = torch.randn(2, 3, 8, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    bands = haar(x)
    assert bands.shape == (4, 2, 3, 4, 3)
    torch.testing.assert_close(inverse_haar(bands), x)
    assert float(bands.square().sum()) == pytest.approx(float(x.square().sum()))  # orthonormal
    columns = torch.tensor([[0.0, 1.0]]).repeat(2, 1)[None, None]
    assert haar(columns).flatten().tolist() == [1.0, 1.0, 0.0, 0.0]  # vertical edges are in LH alone
    assert haar(columns.mT).flatten().tolist() == [1.0, 0.0, 1.0, 0.0]


def test_stylised_image_has_the_styles_band_statistics_and_the_contents_edges() -> None:
    content = images(6, seed=0, contrast=45)
    styles = images(2, seed=1, contrast=12, mean=170)
    which = np.array([0, 1, 0, 1, 0, 1])
    styled = haar(float_planes(WaveletStatistics(styles, CPU)(content, which)))
    for found, wanted in zip(
        band_statistics(styled), band_statistics(haar(float_planes(styles[which]))), strict=True
    ):
        torch.testing.assert_close(found, wanted, rtol=0, atol=0.3)  # the rounding error of whole grey levels
    original = haar(float_planes(content))
    (mean, deviation), (own_mean, own_deviation) = band_statistics(styled), band_statistics(original)
    assert (mean - own_mean).abs().max() > 50  # … and not the content's
    agreement = ((styled - mean) / deviation * (original - own_mean) / own_deviation).mean((3, 4))
    assert agreement.min() > 0.95
    others = ((styled - mean) / deviation).roll(1, 1) * (original - own_mean) / own_deviation
    assert others.mean((3, 4)).abs().mean() < 0.3


def test_flat_and_odd_images_can_be_stylised() -> None:
    styles = images(1, seed=1, contrast=20)
    flat = np.full((1, SIZE, SIZE, 3), 90, np.uint8)
    styled = WaveletStatistics(styles, CPU)(flat, np.array([0]))
    assert np.abs(styled.mean((1, 2)) - styles.mean((1, 2))).max() < 1
    odd = WaveletStatistics(styles[:, :13, :11], CPU)(
        images(2, seed=0, contrast=9)[:, :7, :9], np.array([0, 0])
    )
    assert odd.shape == (2, 7, 9, 3)


def test_k_means_finds_planted_clusters() -> None:
    generator = np.random.default_rng(0)
    truth = np.arange(40) % 4
    points = 10 * np.eye(4, 12)[truth] + generator.normal(0, 0.5, (40, 12))
    groups = k_means(points, 4, np.random.default_rng(3))
    assert len({(t, g) for t, g in zip(truth.tolist(), groups.tolist(), strict=True)}) == 4
    assert len(np.unique(groups)) == 4


def test_fewer_points_than_clusters_give_fewer_clusters() -> None:
    points = np.array([[0.0, 1.0], [0.0, 1.0], [5.0, 2.0]])
    groups = k_means(points, 5, np.random.default_rng(0))
    assert groups[0] == groups[1] != groups[2]
    assert len(k_means(points[:1], 5, np.random.default_rng(0))) == 1


def test_pixels_are_standardised_over_the_images() -> None:
    found = standardised(np.array([[10, 7], [30, 7], [50, 7]], np.uint8))
    assert found.mean(0) == pytest.approx([0, 0])
    assert found.std(0) == pytest.approx([1, 0])


def failures(count: int = 30, *, seed: int = 5, contrast: float = 10) -> Failures:
    labels = np.arange(count) % 3
    made = images(count, seed=seed, contrast=contrast, mean=180)
    return failures_of(labels, made, corruption="fog")


def test_each_cluster_of_each_class_gives_one_style_image() -> None:
    labels, clusters = np.repeat([0, 1], 12), np.tile(np.repeat([0, 1, 2], 4), 2)
    pixels = images(3, seed=0, contrast=40)[clusters]
    pixels = pixels + np.random.default_rng(0).integers(0, 5, pixels.shape).astype(np.uint8)
    planted = failures_of(labels, pixels, predicted_N=1 - labels, corruption="fog")
    rows = style_rows(planted, clusters=3, seed=0)
    assert sorted(zip(labels[rows], clusters[rows], strict=True)) == [
        (a, b) for a in (0, 1) for b in (0, 1, 2)
    ]
    assert np.array_equal(rows, style_rows(planted, clusters=3, seed=0))
    assert any(not np.array_equal(rows, style_rows(planted, clusters=3, seed=seed)) for seed in (1, 2, 3))


def test_a_class_with_few_failures_uses_all_of_them_as_styles() -> None:
    rows = style_rows(failures(8), clusters=5, seed=0)
    assert sorted(rows) == list(range(8))


def test_an_image_has_one_stylised_version_in_every_batch() -> None:
    clean, made = images(20, seed=2, contrast=30), list[int]()
    transfer = WaveletStatistics(images(4, seed=3, contrast=8), CPU)

    def counted(pixels: Pixels, styles: Ints) -> Pixels:
        made.append(len(pixels))
        return transfer(pixels, styles)

    styled = StyledImages(clean, counted, styles=4, seed=0)
    some = styled(np.array([3, 7, 3, 11]))
    assert np.array_equal(some[0], some[2])
    again = StyledImages(clean, transfer, styles=4, seed=0)(np.arange(20))
    assert np.array_equal(styled(np.array([11, 3, 5])), again[[11, 3, 5]])
    assert made == [3, 1]  # each version is made once
    assert len(np.unique(styled.style_N)) == 4
    assert styled(np.array([], np.int64)).shape == (0, SIZE, SIZE, 3)


def data(*, contrast: float = 10) -> RepairData:
    found = failures(contrast=contrast)
    return RepairData(
        target="fog",
        learn=found.take(np.arange(24)),
        validation=found.take(np.arange(24, 30)),
        clean=CleanImages(images_NHWC=images(40, seed=2, contrast=30), labels_N=np.arange(40) % 3),
    )


def repaired(
    given: RepairData | None = None,
    *,
    limit: str = "5steps",
    folder: Path | None = None,
    norm: bool = False,
    **settings: Any,
) -> RepairedModel:
    context = MethodContext(
        config=RepairConfig(),
        seed=0,
        settings=method_settings("deeprepair", {"batch_size": 16, "patience": None} | settings),
        budget=Budget(parse_limit(limit)),
        folder=folder,
    )
    return repair_fairly(get_method("deeprepair"), mean_dnn(norm=norm), given or data(), context)


def same(one: RepairedModel, other: RepairedModel) -> bool:
    return all(torch.equal(v, other.state()[k]) for k, v in one.state().items())


def last_of(monkeypatch: pytest.MonkeyPatch, given: RepairData) -> tuple[RepairedModel, dict[str, Tensor]]:
    """Return the repair and the parameters at its last step; the repair keeps those of the best check."""
    last: dict[str, Tensor] = {}
    whole = AugMixLoss.__call__

    def noted(self: AugMixLoss, module: nn.Module, batch: MethodBatch) -> Tensor:
        last.update({k: v.detach().clone() for k, v in module.named_parameters()})
        return whole(self, module, batch)

    with monkeypatch.context() as patch:
        patch.setattr(AugMixLoss, "__call__", noted)
        return repaired(given), last


def test_failures_are_never_trained_on(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = list[tuple[bytes, int]]()
    whole = AugMixLoss.__call__

    def noted(self: AugMixLoss, module: nn.Module, batch: MethodBatch) -> Tensor:
        pixels = [image.tobytes() for image in batch.images_BHWC_u8]
        seen.extend(zip(pixels, batch.labels_B.tolist(), strict=True))
        return whole(self, module, batch)

    monkeypatch.setattr(AugMixLoss, "__call__", noted)
    repaired()
    clean = data().clean
    assert clean is not None
    known = set(zip((i.tobytes() for i in clean.images_NHWC), clean.labels_N.tolist(), strict=True))
    assert len(seen) == 5 * 16
    assert set(seen) <= known


def test_another_style_of_the_failures_trains_another_dnn(monkeypatch: pytest.MonkeyPatch) -> None:
    _, one = last_of(monkeypatch, data())
    _, equal = last_of(monkeypatch, data())
    _, other = last_of(monkeypatch, data(contrast=40))
    assert all(torch.equal(v, equal[k]) for k, v in one.items())
    assert not all(torch.equal(v, other[k]) for k, v in one.items())


def test_the_version_in_style_is_flipped_and_shifted_like_its_image(monkeypatch: pytest.MonkeyPatch) -> None:
    def all_styled(generator: np.random.Generator, count: int, **_: Any) -> MixDraws:
        return MixDraws(
            operations_BWD=np.full((count, 1, 1), STYLE),
            levels_BWD=np.ones((count, 1, 1)),
            weights_BW=np.ones((count, 1)),
            share_B=np.ones(count),
        )

    monkeypatch.setattr(augmix, "sample_mix", all_styled)
    clean = images(8, seed=2, contrast=30) // 2
    rows = np.array([5, 1, 2])
    step = MethodBatch(
        rows_B=rows,
        images_BHWC_u8=clean[rows],
        labels_B=torch.zeros(3, dtype=torch.int64),
        generator=np.random.default_rng(0),
    )
    loss = AugMixLoss(
        deployed=mean_dnn(), settings=DeepRepairSettings(), stylise=lambda rows: np.asarray(clean[rows] * 2)
    )
    views = loss.views(step)
    assert views[1].equal(2 * views[0])
    assert views[2].equal(2 * views[0])


@pytest.mark.parametrize("norm", [False, True])
def test_repair_obeys_its_budget_and_names_its_style(norm: bool) -> None:
    found = repaired(norm=norm)
    assert (found.gradient_steps, found.images_seen) == (5, 5 * 16 * 3)
    assert "without a pretrained network" in found.notes[0]
    assert "15 style images" in found.notes[0]  # three classes of five clusters


def test_a_resumed_repair_has_the_bits_of_an_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = repaired(norm=True)
    assert same(undisturbed, repaired(norm=True))
    monkeypatch.setattr(training, "CHECKPOINT_S", 0.0)
    calls, divergence = [], augmix.divergence

    def failing(logits_VBK: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return divergence(logits_VBK)

    with monkeypatch.context() as patch:
        patch.setattr(augmix, "divergence", failing)
        with pytest.raises(KeyboardInterrupt):
            repaired(norm=True, folder=tmp_path)
    resumed = repaired(norm=True, folder=tmp_path)
    assert same(resumed, undisturbed)
    assert resumed.gradient_steps == 5


def test_patience_ends_a_training_that_does_not_improve() -> None:
    stuck = repaired(limit="40steps", rate=1e-9, patience=2)
    assert 2 < stuck.gradient_steps < 10
    assert "ended early" in stuck.notes[-1]
    whole = repaired(limit="40steps", rate=1e-9)
    assert whole.gradient_steps == 40
    assert "ended early" not in whole.notes[-1]


def test_method_and_settings_pickle() -> None:
    settings = method_settings("deeprepair", {"clusters": 2})
    assert pickle.loads(pickle.dumps((get_method("deeprepair"), settings)))[1] == settings


def test_settings_that_cannot_work_are_refused() -> None:
    with pytest.raises(ConfigError, match="clusters"):
        method_settings("deeprepair", {"cluster": 4})
    with pytest.raises(ConfigError, match="wave_encoder_cat5_l4"):
        method_settings("deeprepair", {"style": "wct2"})
    with pytest.raises(ConfigError, match="is not used by style"):
        method_settings("deeprepair", {"weights": "somewhere"})
    with pytest.raises(ConfigError, match="collected_share"):
        method_settings("deeprepair", {"collected_share": 0.5})


def test_missing_failures_are_refused() -> None:
    whole = data()
    none = RepairData(
        target="fog", learn=whole.learn.take(np.arange(0)), validation=whole.validation, clean=whole.clean
    )
    with pytest.raises(DataError, match="Collect more failures"):
        repaired(none)
