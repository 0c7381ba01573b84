"""Test SENSEI: its image variants, its search, and training on the worst variant."""

from __future__ import annotations

import math
import pickle
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as V

from metarepair.adaptation.repair_data import RepairData
from metarepair.config.load import parse_config
from metarepair.methods import method_settings, training
from metarepair.methods.base import MethodContext
from metarepair.methods.budget import Budget, parse_limit
from metarepair.methods.registry import get_method
from metarepair.methods.repaired import RepairedModel
from metarepair.methods.sensei.method import AT_ONCE, Sensei, SenseiSettings, WorstVariantLoss
from metarepair.methods.sensei.populations import Populations
from metarepair.methods.sensei.variants import FILTER_GENES, spatial_genes, variants
from metarepair.methods.training import MethodBatch
from metarepair.models.build import DeployedModel, state_hash
from metarepair.repairs.stage import repair_fairly
from small import bright_failures, clean_of, deployed_of
from tasks.errors import ConfigError, DataError
from tasks.keys import keyed_generator
from tasks.records import Failures

SPATIAL = spatial_genes(rotation=30.0, translation=3.0, shear=0.1)
ALL = SPATIAL + FILTER_GENES
CONFIG = parse_config({"name": "unit", "device": "cpu", "mining": {"experiences": ["fog"]}})
SMALL: dict[str, Any] = {"epochs": 2, "batch_size": 8, "rate": 0.1, "variants": 5, "keep": 2}


def deployed(*, norm: bool = True, dtype: torch.dtype = torch.float32) -> DeployedModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        body = [nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4) if norm else nn.Identity(), nn.ReLU()]
        module = nn.Sequential(*body, nn.Dropout(0.2), nn.AvgPool2d(4), nn.Flatten(), nn.Linear(16, 3))
    return deployed_of(module.to(dtype).eval())


def failures(number: int, seed: int) -> Failures:
    """Return failures that can be learned, so that the trained weights are kept."""
    return bright_failures(number, seed, noise=70)


def data(*, learn: int = 10, clean: int = 14) -> RepairData:
    known = failures(clean, 1)
    return RepairData(
        target="snow",
        learn=failures(learn, 0),
        validation=failures(9, 2),
        clean=clean_of(known),
    )


def context(budget: Budget | None = None, folder: Path | None = None, **settings: Any) -> MethodContext:
    given = method_settings("sensei", SMALL | settings)
    return MethodContext(config=CONFIG, seed=3, settings=given, budget=budget or Budget(), folder=folder)


def repaired(around: MethodContext, net: DeployedModel | None = None) -> RepairedModel:
    return repair_fairly(get_method("sensei"), net or deployed(), data(), around)


def batch(rows: range | list[int] = range(10), step: int = 0) -> MethodBatch:
    learn = data().learn.take(np.array(rows))
    return MethodBatch(
        rows_B=np.array(rows),
        images_BHWC_u8=learn.images_NHWC[:],
        labels_B=torch.from_numpy(learn.labels_N),
        generator=keyed_generator("test-sensei", step),
    )


def loss_of(net: DeployedModel, **settings: Any) -> WorstVariantLoss:
    given = SenseiSettings(**SMALL | settings)
    populations = Populations(given.genes, images=10, keep=given.keep, seed=0)
    return WorstVariantLoss(net, populations, given, Budget())


class Seen:
    """Records the inputs of a module, in evaluation and in training mode."""

    def __init__(self, module: nn.Module) -> None:
        self.judged: list[Tensor] = []
        self.trained: list[Tensor] = []
        module.register_forward_pre_hook(self._note)

    def _note(self, module: nn.Module, given: tuple[Tensor, ...]) -> None:
        (self.trained if module.training else self.judged).append(given[0].detach().clone())


@pytest.mark.parametrize(
    ("angle", "x", "y", "slope", "zoom"),
    [
        (17.0, 0.0, 0.0, 0.0, 1.0),
        (0.0, 2.5, 0.0, 0.0, 1.0),
        (0.0, 0.0, -3.0, 0.0, 1.0),
        (0.0, 0.0, 0.0, 0.1, 1.0),
        (0.0, 0.0, 0.0, 0.0, 0.9),
        (-25.0, 1.0, -2.0, -0.07, 1.1),
    ],
)
def test_a_variant_is_torchvisions_affine_map(
    angle: float, x: float, y: float, slope: float, zoom: float
) -> None:
    images = torch.rand(2, 3, 12, 20, generator=torch.manual_seed(0), dtype=torch.float64) * 255
    vector = torch.tensor([angle, x, y, slope, zoom, 0.0, 1.0], dtype=torch.float64)
    found = variants(images, vector.expand(2, 1, 7), ALL)[:, 0].permute(0, 3, 1, 2)
    want = V.affine(
        images,
        angle=angle,
        translate=[x, y],
        scale=zoom,
        shear=[math.degrees(math.atan(slope)), 0.0],
        interpolation=InterpolationMode.BILINEAR,
    )
    torch.testing.assert_close(found, want, rtol=0, atol=1e-9)
    assert (found - images).abs().max() > 1


def test_variants_in_one_batch_equal_those_made_one_by_one_to_the_bit() -> None:
    generator = np.random.default_rng(0)
    populations = Populations(ALL, images=5, keep=6, seed=0)
    images = torch.from_numpy(generator.integers(256, size=(5, 3, 9, 11))).float()
    vectors = torch.from_numpy(populations.vectors_NPG)
    together = variants(images, vectors, ALL)
    for row in range(5):
        for number in range(6):
            vector = vectors[row, number].view(1, 1, -1)
            assert torch.equal(variants(images[row : row + 1], vector, ALL)[0, 0], together[row, number])


def test_the_identity_is_the_image_and_contrast_and_brightness_are_clipped() -> None:
    images = torch.rand(1, 3, 6, 6, generator=torch.manual_seed(0), dtype=torch.float64) * 255
    neutral = torch.tensor([g.neutral for g in ALL], dtype=torch.float64)
    bright = neutral.clone()
    bright[5:] = torch.tensor([32.0, 1.2])
    same, lit = variants(images, torch.stack([neutral, bright])[None], ALL)[0].permute(0, 3, 1, 2)
    torch.testing.assert_close(same, images[0])
    torch.testing.assert_close(lit, (images[0] * 1.2 + 32).clamp(0, 255))
    assert (lit == 255).any()


def test_the_dnn_is_trained_on_the_variant_of_the_largest_loss() -> None:
    net = deployed(dtype=torch.float64)
    seen, given = Seen(net.module), batch()
    net.module.train()
    loss_of(net, variants=7)(net.module, given)
    judged_BV = torch.cat(seen.judged).view(10, 7, 3, 8, 8)
    trained_B = seen.trained[0]
    assert len(seen.trained) == 1
    net.module.eval()
    better = 0
    for row in range(10):
        losses = cross_entropy(net.module(judged_BV[row]), given.labels_B[row].expand(7), reduction="none")
        assert torch.equal(trained_B[row], judged_BV[row, int(losses.argmax())])
        better += int(losses.argmax() > 0)
    assert better > 5  # not the unchanged image, which comes first


def test_a_planted_worst_variant_is_found_and_trained_on() -> None:
    """The DNN classifies by the brighter half, and only one shift moves the bright stripe to the other half."""
    net = deployed(dtype=torch.float64)
    weight = torch.ones(2, 3, 8, 8, dtype=torch.float64)
    weight[0, :, :, 4:] = weight[1, :, :, :4] = 0
    linear = nn.Linear(192, 2, dtype=torch.float64)
    with torch.no_grad():
        linear.weight.copy_(weight.flatten(1))
    net = replace(net, module=nn.Sequential(nn.Flatten(), linear))
    images = np.zeros((10, 8, 8, 3), np.uint8)
    images[:, :, 2:4] = 200
    loss = loss_of(net)
    loss.populations.vectors_NPG[:, 1] = [0.0, 2.0, 0.0, 0.0]  # moves the bright stripe to the right half
    seen, given = Seen(net.module), replace(batch(), images_BHWC_u8=images, labels_B=torch.zeros(10).long())
    loss(net.module, given)
    means = seen.trained[0].mean((1, 2))  # of each column
    assert (means[:, 4:].mean(1) > means[:, :4].mean(1)).all()


def test_evaluating_variants_changes_no_statistics_and_keeps_training_mode() -> None:
    net = deployed()
    before = state_hash(net.module.state_dict())
    net.module.train()
    loss = loss_of(net)
    loss._search(net.module.eval(), batch())
    assert state_hash(net.module.state_dict()) == before
    loss(net.module, batch())
    assert net.module.training
    assert all(part.training for part in net.module)  # type: ignore[union-attr]


def test_the_fittest_are_kept_in_order_and_without_duplicates() -> None:
    populations = Populations(SPATIAL, images=3, keep=3, seed=0)
    vectors = np.arange(20, dtype=np.float32).reshape(1, 5, 4)
    vectors[0, 4] = vectors[0, 1]
    losses = np.array([[0.5, 3.0, 1.0, 2.0, 3.0]], np.float32)
    untouched = populations.vectors_NPG[[0, 2]].copy()
    populations.keep_fittest(np.array([1]), vectors, losses)
    assert populations.losses_NP[1].tolist() == [3.0, 2.0, 1.0]
    assert np.array_equal(populations.vectors_NPG[1], vectors[0, [1, 3, 2]])
    assert np.array_equal(populations.vectors_NPG[[0, 2]], untouched)


def test_the_best_loss_of_a_fixed_dnn_never_falls_and_the_search_finds_worse_variants() -> None:
    net = deployed(dtype=torch.float64)
    loss = loss_of(net, skip_below=0.0)
    net.module.eval()
    best = []
    for step in range(12):
        loss._search(net.module, batch(step=step))
        best.append(loss.populations.losses_NP[:, 0].copy())
    assert all((after >= before - 1e-6).all() for before, after in pairwise(best))
    assert (best[-1] > best[0] + 1e-3).mean() > 0.7


def test_a_population_begins_with_the_identity_and_random_vectors_within_the_ranges() -> None:
    populations = Populations(ALL, images=40, keep=4, seed=0)
    low, high, neutral = (np.array([getattr(g, k) for g in ALL]) for k in ("low", "high", "neutral"))
    assert (populations.vectors_NPG[:, 0] == neutral.astype(np.float32)).all()
    others = populations.vectors_NPG[:, 1:].reshape(-1, len(ALL))
    assert (others >= low - 1e-6).all()
    assert (others <= high + 1e-6).all()
    assert (np.ptp(others, axis=0) > 0.9 * (high - low)).all()


@pytest.mark.parametrize(("genes", "changed"), [(SPATIAL, 2), (ALL, 4)])
def test_a_mutation_moves_half_of_the_genes_by_a_step_or_to_the_other_side(genes: Any, changed: int) -> None:
    populations = Populations(genes, images=50, keep=2, seed=0)
    best = populations.vectors_NPG[:, 1].copy()
    populations.vectors_NPG[:, 0] = best
    children = populations.children(
        np.arange(50), 6, mutate_probability=1.0, generator=np.random.default_rng(0)
    )
    moved = children != best[:, None]
    assert (moved.sum(-1) <= changed).all()  # fewer if a gene is already at its limit
    assert (moved.sum(-1) == changed).mean() > 0.8
    assert moved.any((0, 1)).all()
    low, high, step, neutral = (
        np.array([getattr(g, k) for g in genes], np.float32) for k in ("low", "high", "step", "neutral")
    )
    ways = [np.clip(way, low, high)[:, None] for way in (best + step, best - step, 2 * neutral - best)]
    near = np.stack([np.isclose(children, way, atol=1e-5) for way in ways])
    assert (near.any(0) | ~moved).all()
    assert all((one & moved).any() for one in near)


def test_a_crossover_mixes_in_genes_of_the_most_different_parent_and_differs_by_child() -> None:
    populations = Populations(SPATIAL, images=20, keep=4, seed=0)
    vectors = populations.vectors_NPG
    vectors[:, 3] = [30.0, 3.0, 3.0, 0.1]
    vectors[:, 1:3] *= 0.5
    children = populations.children(
        np.arange(20), 6, mutate_probability=0.0, generator=np.random.default_rng(0)
    )
    of_other = children == vectors[:, 3:]
    assert (of_other | (children == vectors[:, :1])).all()
    assert set(of_other.sum(-1).ravel()) == {1, 2, 3}
    assert all(len({tuple(child) for child in of_image}) == 6 for of_image in children.tolist())


def test_a_batch_mutates_with_the_given_probability() -> None:
    populations = Populations(SPATIAL, images=1, keep=2, seed=0)
    populations.vectors_NPG[0] = [[1, 1, 1, 0.01], [30, 3, 3, 0.1]]
    crossed = 0
    for number in range(300):
        children = populations.children(
            np.array([0]), 1, mutate_probability=0.6, generator=keyed_generator("test-mutate", number)
        )
        taken = children[0, 0] == populations.vectors_NPG[0, 1]
        crossed += int(taken.any())
    assert 0.3 < crossed / 300 < 0.5


def test_a_robust_image_is_not_searched_until_its_loss_rises_again() -> None:
    net = deployed(dtype=torch.float64)
    loss = loss_of(net, skip_below=0.1)
    loss.populations.losses_NP[[2, 5], 0] = 0.05
    before = loss.populations.vectors_NPG.copy()
    seen = Seen(net.module)
    loss(net.module, batch())
    assert sum(map(len, seen.judged)) == loss.budget.images_seen == 8 * 5 + 2
    assert np.array_equal(loss.populations.vectors_NPG[[2, 5]], before[[2, 5]])
    assert not np.array_equal(loss.populations.vectors_NPG, before)
    assert (loss.populations.losses_NP[[2, 5], 0] > 0.1).all()  # their losses under this DNN
    loss(net.module, batch(step=1))
    assert loss.budget.images_seen == 8 * 5 + 2 + 10 * 5


def test_with_a_threshold_of_zero_every_image_is_searched() -> None:
    loss = loss_of(deployed(), skip_below=0.0)
    loss.populations.losses_NP[:] = 0.0
    net = loss.deployed
    loss(net.module, batch())
    assert loss.budget.images_seen == 10 * 5


def test_large_batches_are_judged_in_parts_with_the_same_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, parts = (loss_of(deployed(dtype=torch.float64)) for _ in range(2))
    whole(whole.deployed.module, batch())
    monkeypatch.setitem(AT_ONCE, "cpu", 12)
    seen = Seen(parts.deployed.module)
    parts(parts.deployed.module, batch())
    assert [len(judged) for judged in seen.judged] == [10] * 5
    np.testing.assert_allclose(whole.populations.losses_NP, parts.populations.losses_NP, rtol=1e-5)
    assert np.array_equal(whole.populations.vectors_NPG, parts.populations.vectors_NPG)


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_same_seed_same_bits_with_and_without_batch_norm(norm: bool, dtype: torch.dtype) -> None:
    first, again = (repaired(context(), deployed(norm=norm, dtype=dtype)) for _ in range(2))
    other = repaired(replace(context(), seed=4), deployed(norm=norm, dtype=dtype))
    assert state_hash(first.state()) == state_hash(again.state()) != state_hash(other.state())
    own = deployed(norm=norm, dtype=dtype).module
    assert not torch.equal(own.get_parameter("6.weight"), first.parameters["6.weight"])


def test_filters_change_the_result_of_a_repair() -> None:
    with_filters = repaired(context(filters=True))
    assert with_filters.first_not_finite() is None
    assert state_hash(with_filters.state()) != state_hash(repaired(context()).state())


def test_a_budget_in_steps_ends_it_and_all_images_are_counted() -> None:
    found = repaired(context(Budget(parse_limit("3steps")), skip_below=0.0, epochs=50))
    assert found.gradient_steps == 3
    assert found.images_seen == 3 * 8 * (5 + 1)


class Interrupted(Budget):
    """Interrupts the process at a step."""

    def spend(self, *, images: int = 0, steps: int = 0) -> None:
        super().spend(images=images, steps=steps)
        if self.gradient_steps == 5 and steps:
            raise KeyboardInterrupt


def test_a_resumed_repair_equals_one_that_was_not_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "CHECKPOINT_S", 0.0)
    undisturbed = repaired(context())
    with pytest.raises(KeyboardInterrupt):
        repaired(context(Interrupted(), tmp_path))
    assert (tmp_path / training.CHECKPOINT).is_file()
    lines: list[str] = []
    resumed = repaired(replace(context(folder=tmp_path), say=lines.append))
    assert state_hash(undisturbed.state()) != state_hash(deployed().module.state_dict())
    assert lines[0] == "sensei: resumes from step 4"
    assert state_hash(resumed.state()) == state_hash(undisturbed.state())
    assert (resumed.images_seen, resumed.gradient_steps) == (
        undisturbed.images_seen,
        undisturbed.gradient_steps,
    )


def test_populations_can_be_saved_and_loaded() -> None:
    one, other = (Populations(SPATIAL, images=4, keep=2, seed=seed) for seed in (0, 1))
    one.losses_NP[1] = [2.0, 1.0]
    other.load(one.state())
    assert np.array_equal(one.vectors_NPG, other.vectors_NPG)
    assert np.array_equal(one.losses_NP, other.losses_NP)
    other.keep_fittest(np.array([0]), other.vectors_NPG[:1], np.ones((1, 2), np.float32))
    assert np.isinf(one.losses_NP[0]).all()


def test_the_deployed_dnn_stays_and_the_method_pickles() -> None:
    net = deployed()
    before = state_hash(net.module.state_dict())
    repaired(context(), net)
    assert state_hash(net.module.state_dict()) == before
    method, settings = pickle.loads(pickle.dumps((Sensei(), SenseiSettings(**SMALL))))
    assert method.name == "sensei"
    assert settings == SenseiSettings(**SMALL)


def test_the_published_numbers_are_the_defaults() -> None:
    given = SenseiSettings()
    assert (given.variants, given.keep, given.mutate, given.skip_below) == (10, 4, 0.6, 1e-3)
    assert [(g.high, round(g.step, 6)) for g in given.genes] == [(30, 6), (3, 1), (3, 1), (0.1, 0.02)]
    assert [g.name for g in SenseiSettings(filters=True).genes[4:]] == ["zoom", "brightness", "contrast"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"varints": 3}, "variants"),
        ({"keep": 10}, "keep=10 leaves no new variants among variants=10"),
        ({"keep": 1}, "keep"),
        ({"mutate": 1.5}, "mutate"),
        ({"rotation": 0.0}, "rotation"),
        ({"skip_below": -1.0}, "skip_below"),
    ],
)
def test_invalid_settings_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        method_settings("sensei", settings)


def test_no_failures_and_no_clean_images_are_refused() -> None:
    with pytest.raises(DataError, match=r"learning part of D_collect has none"):
        Sensei().repair(deployed(), data(learn=0), context())
    with pytest.raises(DataError, match="no clean image"):
        Sensei().repair(deployed(), data(clean=0), context())
