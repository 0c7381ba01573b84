"""Test ArchRepair: it starts as the deployed DNN, finds the broken block, and its architecture can be loaded."""

from __future__ import annotations

import copy
import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

from metarepair.adaptation.accuracy import accuracy_on
from metarepair.adaptation.repair_data import RepairData
from metarepair.config.load import parse_config
from metarepair.config.run import Config
from metarepair.console.export import export
from metarepair.data.clean_images import CleanImages
from metarepair.data.workspace import load_surroundings
from metarepair.evaluation.predictions import called, predict_all
from metarepair.methods import method_settings, training
from metarepair.methods.archrepair.block import (
    OPERATIONS,
    BlockShape,
    ExtendedBlock,
    RelaxedBlock,
    as_json,
    build_operation,
    extend,
    from_json,
    keep,
    relax,
)
from metarepair.methods.archrepair.find import find_blocks, usable_blocks
from metarepair.methods.archrepair.localise import Localisation, fgsm, localise, tarantula, top_mean
from metarepair.methods.archrepair.method import ArchRepair, ArchRepairSettings
from metarepair.methods.archrepair.search import AlphaSteps, SearchSettings, halves
from metarepair.methods.base import MethodContext
from metarepair.methods.budget import Budget, BudgetPart, parse_limit
from metarepair.methods.examples import Examples
from metarepair.methods.registry import get_method
from metarepair.methods.repaired import RepairedModel
from metarepair.models.build import DeployedModel, load_deployed, state_hash
from metarepair.repairs.saved import ARCHITECTURE, WEIGHTS, load_repaired
from metarepair.repairs.stage import Unit, repair_fairly, repair_once
from small import clean_of, deployed_of, failures_of
from tasks.datasets import DataSource, dataset_info, load_dataset
from tasks.errors import ConfigError, DataError
from tasks.records import Failures

TINY_RUN: dict[str, Any] = {
    "name": "unit",
    "device": "cpu",
    "data": {"name": "cifar10_sample", "max_train_images": 64, "max_test_images": 64},
    "mining": {"experiences": ["fog"]},
}
CONFIG: Config = parse_config(TINY_RUN)
SMALL: dict[str, Any] = {
    "correct": 10,
    "search": {"epochs": 2, "batch_size": 8, "alpha_rate": 0.1},
    "tuning": {"epochs": 1, "batch_size": 8, "rate": 0.01},
}


class Residual(nn.Module):
    """Two convolutions and a shortcut, which is a projection if the number of channels changes."""

    def __init__(self, before: int, after: int, stride: int = 1, *, norm: bool = True) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1)
        self.norm = nn.BatchNorm2d(after) if norm else nn.GroupNorm(1, after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1)
        self.shortcut = nn.Conv2d(before, after, 1, stride) if before != after else nn.Identity()

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y_BCHW: Tensor = self.conv2(torch.relu(self.norm(self.conv1(x_BCHW))))
        return torch.relu(y_BCHW + self.shortcut(x_BCHW))


def deployed(*, norm: bool = True, dtype: torch.dtype = torch.float64) -> DeployedModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        blocks = nn.Sequential(Residual(4, 4, norm=norm), Residual(4, 6, 2, norm=norm))
        module = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        module.append(nn.Linear(6, 3))
    return deployed_of(module.to(dtype).eval())


def shipped(name: str) -> DeployedModel:
    weights = {"resnet8_cifar": "shipped:resnet8_cifar10", "convnext_cifar": "shipped:convnext_cifar10"}[name]
    return load_deployed(name, weights, dataset_info(DataSource(name="cifar10_sample")))


def failures(number: int, seed: int) -> Failures:
    generator = np.random.default_rng(seed)
    labels = generator.integers(3, size=number)
    images = generator.integers(256, size=(number, 8, 8, 3), dtype=np.uint8)
    return failures_of(labels, images, predicted_N=np.zeros(number, np.int64))


def data(*, learn: int = 10, clean: int = 40) -> RepairData:
    known = failures(clean, 1)
    return RepairData(
        target="snow",
        learn=failures(learn, 0),
        validation=failures(9, 2),
        clean=clean_of(known),
    )


def context(budget: Budget | None = None, folder: Path | None = None, **settings: Any) -> MethodContext:
    given = method_settings("archrepair", SMALL | settings)
    return MethodContext(config=CONFIG, seed=3, settings=given, budget=budget or Budget(), folder=folder)


def repaired(around: MethodContext, net: DeployedModel | None = None) -> RepairedModel:
    return repair_fairly(get_method("archrepair"), net or deployed(), data(), around)


def images(number: int, size: int = 32, *, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(number, 3, size, size, generator=generator, dtype=dtype)


def disturb(operations: nn.Module) -> None:
    """Set the zeroed scales to other values, so that the operations have an effect."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in operations.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))


# Blocks


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet8_cifar", ["stages.0", "stages.1", "stages.2"]),
        ("convnext_cifar", [f"stages.{i}.blocks.{j}" for i, j in ((0, 0), (1, 0), (2, 0), (2, 1), (3, 0))]),
        ("van_b0", [f"block{i + 1}.{j}" for i, depth in enumerate((3, 3, 5, 2)) for j in range(depth)]),
        ("resnet18", [f"layer{i}.{j}" for i in (1, 2, 3, 4) for j in (0, 1)]),
    ],
)
def test_blocks_of_known_dnns_are_found(name: str, expected: list[str]) -> None:
    assert list(find_blocks(timm.create_model(name, num_classes=10))) == expected


def test_a_dnn_in_a_wrapper_has_the_blocks_of_the_dnn() -> None:
    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inside = timm.create_model("resnet8_cifar", num_classes=10)

    assert list(find_blocks(Wrapper())) == [f"inside.stages.{i}" for i in range(3)]


def test_a_dnn_without_blocks_is_taken_by_its_convolutions() -> None:
    chain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Sequential(nn.Conv2d(4, 4, 3)), nn.Flatten())
    assert find_blocks(chain) == ("0", "2.0")


def test_named_blocks_are_taken_and_a_wrong_name_is_refused_with_near_ones() -> None:
    module = timm.create_model("resnet8_cifar", num_classes=10)
    assert find_blocks(module, ["stages.[12]", "stages.1"]) == ("stages.1", "stages.2")
    with pytest.raises(ConfigError, match=r"'stage\.1' names no module.*did you mean 'stages\.1'"):
        find_blocks(module, ["stage.1"])


def test_a_dnn_without_convolutions_is_refused_before_any_work() -> None:
    dense = nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.ReLU(), nn.Linear(4, 3))
    with pytest.raises(ConfigError, match=r"neither blocks of layers nor nn\.Conv2d"):
        ArchRepair().check(dense, ArchRepairSettings())


def test_modules_that_do_not_map_feature_maps_are_no_blocks() -> None:
    net = deployed()
    with pytest.raises(ConfigError, match=r"methods\.archrepair\.blocks were looked at"):
        usable_blocks(net.module, ["4"], images(2, 8, dtype=torch.float64))


# The relaxed block


@pytest.mark.parametrize("name", ["resnet8_cifar", "convnext_cifar"])
def test_a_relaxed_dnn_starts_as_the_deployed_one_to_the_bit(name: str) -> None:
    net, x_BCHW = shipped(name), images(2)
    shapes = usable_blocks(net.module, (), x_BCHW)
    for block, shape in shapes.items():
        module = copy.deepcopy(net.module)
        relaxed = relax(module, block, shape, seed=0)
        with torch.no_grad():
            relaxed.alpha_O.copy_(torch.linspace(-1, 1, len(OPERATIONS)))
            assert torch.equal(module(x_BCHW), net.module(x_BCHW))
            disturb(relaxed.operations)
            assert not torch.allclose(module(x_BCHW), net.module(x_BCHW), atol=1e-3)


@pytest.mark.parametrize("norm", [True, False])
def test_a_relaxed_block_is_the_block_and_the_mean_of_its_operations(norm: bool) -> None:
    module, x_BCHW = deployed(norm=norm).module, images(3, 8, dtype=torch.float64)
    blocks = usable_blocks(module, (), x_BCHW)
    assert {shape.norm for shape in blocks.values()} == {"batch" if norm else "group"}
    relaxed = relax(module, "1.1", blocks["1.1"], seed=0)
    disturb(relaxed.operations)
    with torch.no_grad():
        relaxed.alpha_O.copy_(torch.arange(len(OPERATIONS)))
        h_BCHW = module[1][0](module[0](x_BCHW))
        expected = relaxed.block(h_BCHW)
        shares = np.exp(np.arange(7.0)) / np.exp(np.arange(7.0)).sum()
        for share, name in zip(shares[1:], OPERATIONS[1:], strict=True):
            expected = expected + share * relaxed.operations[name](h_BCHW)
        assert torch.allclose(relaxed(h_BCHW), expected, atol=1e-12)


@pytest.mark.parametrize("name", OPERATIONS[1:])
@pytest.mark.parametrize("size", [7, 8])
def test_every_operation_fits_a_block_that_changes_channels_and_size(name: Any, size: int) -> None:
    shape = BlockShape(in_channels=3, out_channels=5, stride=(2, 2), norm="batch")
    block = nn.Conv2d(3, 5, 4, 2, 1)  # the block makes 3 px of 7, the operations would make 4
    extended = ExtendedBlock(block, build_operation(name, shape)).eval()
    x_BCHW = images(2, size)
    assert torch.equal(extended(x_BCHW), block(x_BCHW))
    disturb(extended.operation)
    assert extended(x_BCHW).shape == block(x_BCHW).shape
    assert not torch.allclose(extended(x_BCHW), block(x_BCHW), atol=1e-3)


def test_a_dense_layer_is_called_with_a_list() -> None:
    class Dense(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(6, 4, 1)

        def forward(self, maps: list[Tensor]) -> Tensor:
            found: Tensor = self.conv(torch.cat(maps, 1))
            return found

    relaxed = RelaxedBlock(
        Dense(), BlockShape(in_channels=6, out_channels=4, stride=(1, 1), norm="group")
    ).eval()
    maps = [images(2, 8), images(2, 8)]
    assert torch.equal(relaxed(maps), relaxed.block(maps))
    disturb(relaxed.operations)
    assert not torch.allclose(relaxed(maps), relaxed.block(maps), atol=1e-3)


def test_the_kept_operation_keeps_its_share_of_the_output() -> None:
    module, x_BCHW = deployed().module, images(3, 8, dtype=torch.float64)
    relaxed = relax(module, "1.0", usable_blocks(module, (), x_BCHW)["1.0"], seed=0)
    disturb(relaxed.operations)
    with torch.no_grad():
        relaxed.alpha_O[OPERATIONS.index("max_pool")] = 2.0
        h_BCHW, share = module[0](x_BCHW), relaxed.shares()["max_pool"]
        expected = relaxed.block(h_BCHW) + share * relaxed.operations["max_pool"](h_BCHW)
        operation, block = keep(module, "1.0")
        assert operation == "max_pool"
        assert module[1][0] is block
        assert torch.allclose(block(h_BCHW), expected, atol=1e-12)


@pytest.mark.parametrize(("zero", "expected"), [(True, "zero"), (False, "skip")])
def test_without_learning_the_zero_operation_is_kept_unless_it_is_excluded(zero: bool, expected: str) -> None:
    module = deployed().module
    block = module[1][0]
    relax(module, "1.0", usable_blocks(module, (), images(2, 8, dtype=torch.float64))["1.0"], seed=0)
    assert keep(module, "1.0", zero=zero)[0] == expected
    assert (module[1][0] is block) == zero


def test_an_architecture_is_built_again_from_its_json_with_the_same_logits() -> None:
    net, x_BCHW = shipped("resnet8_cifar"), images(2)
    module = copy.deepcopy(net.module)
    shape = usable_blocks(module, (), x_BCHW)["stages.2"]
    disturb(extend(module, "stages.2", shape, "dilated_3x3").operation)
    text = json.dumps(as_json("stages.2", "dilated_3x3", shape))
    again = ArchRepair().rebuild(net.module, json.loads(text))
    again.load_state_dict(module.state_dict())
    assert torch.equal(again.eval()(x_BCHW), module.eval()(x_BCHW))
    assert not torch.allclose(module(x_BCHW), net.module(x_BCHW), atol=1e-3)


@pytest.mark.parametrize(
    "change",
    [{"operation": "mystery"}, {"stride": [0, 1]}, {"stride": [1]}, {"block": "nowhere"}, {"norm": 3}],
)
def test_a_damaged_architecture_is_refused(change: dict[str, Any]) -> None:
    shape = BlockShape(in_channels=4, out_channels=4, stride=(1, 1), norm="batch")
    architecture = as_json("1.0", "skip", shape)
    from_json(deployed().module, architecture)
    with pytest.raises((ValueError, AttributeError)):
        from_json(deployed().module, architecture | change)


# Localisation


def test_suspiciousness_is_tarantula_by_hand() -> None:
    active_NC = torch.tensor([[1, 0, 1, 0], [1, 1, 0, 0], [0, 1, 0, 0], [1, 0, 0, 0], [0, 1, 1, 0]]).bool()
    failing_N = torch.tensor([True, True, False, False, False])
    found_C = tarantula(active_NC, failing_N)
    # Active in failing / passing images: 2 of 2 / 1 of 3; 1 of 2 / 2 of 3; 1 of 2 / 1 of 3; never.
    expected_C = torch.tensor([1 / (1 + 1 / 3), 0.5 / (0.5 + 2 / 3), 0.5 / (0.5 + 1 / 3), 0.0])
    assert torch.allclose(found_C, expected_C.double())
    assert top_mean(found_C, 0.1) == pytest.approx(0.75)
    assert top_mean(found_C, 0.5) == pytest.approx((0.75 + 0.6) / 2)


def test_fgsm_moves_every_pixel_by_epsilon_within_the_range_of_a_pixel() -> None:
    net = deployed()
    x_BCHW = net.normalise(np.array([0, 100, 200, 255], np.uint8).repeat(3).reshape(1, 2, 2, 3))
    gradient_BCHW = (
        torch.tensor([-1.0, 2.0, -3.0, 4.0]).repeat_interleave(3).view(1, 2, 2, 3).permute(0, 3, 1, 2)
    )
    moved_BCHW = fgsm(net, x_BCHW, gradient_BCHW, 10 / 255)
    pixels = (moved_BCHW * 0.25 + 0.5) * 255
    assert torch.allclose(pixels[0, 0].flatten(), torch.tensor([0.0, 110.0, 190.0, 255.0]).double())


def localised(
    net: DeployedModel, around: RepairData, budget: Budget | None = None, **settings: Any
) -> Localisation:
    given = {
        "correct": 100,
        "epsilon": 2 / 255,
        "top_share": 0.1,
        "gradient": "weighted",
        "seed": 0,
    } | settings
    shapes = usable_blocks(net.module, (), net.normalise(around.learn.images_NHWC[:2]))
    return localise(net, shapes, around, budget or Budget(), **given)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet8_cifar", "convnext_cifar"])
def test_a_planted_broken_block_is_found_wherever_it_is(name: str) -> None:
    sample = load_dataset(DataSource(name="cifar10_sample"), "test")
    blocks = find_blocks(shipped(name).module)
    assert len(blocks) > 1
    for broken in blocks:
        net, generator = shipped(name), torch.Generator().manual_seed(0)
        with torch.no_grad():
            for weight in net.module.get_submodule(broken).parameters():
                if weight.ndim > 1:
                    weight.add_(torch.randn(weight.shape, generator=generator) * weight.std())
        pixels, labels = sample.images_NHWC[:300], sample.labels_N[:300]
        predicted = net.logits(pixels).argmax(1).numpy()
        wrong = np.flatnonzero(predicted != labels)[:60]
        learn = Failures(
            corruption="planted",
            image_ids_N=wrong,
            severities_N=np.ones(len(wrong), np.int64),
            labels_N=labels[wrong],
            predicted_N=predicted[wrong],
            images_NHWC=pixels[wrong],
        )
        clean = CleanImages(images_NHWC=pixels, labels_N=labels)
        given = RepairData(target="planted", learn=learn, validation=learn, clean=clean)
        assert localised(net, given, correct=60).block == broken


def test_localisation_ends_with_the_budget_and_counts_its_images() -> None:
    many = replace(data(), learn=failures(300, 0))
    whole, cut = Budget(), Budget(parse_limit("50images"))
    net = deployed()
    localised(net, many, whole)
    localised(net, many, cut)
    right = int((net.logits(many.clean.images_NHWC).argmax(1).numpy() == many.clean.labels_N).sum())
    assert whole.images_seen == 300 + 40 + right
    assert cut.images_seen == 100 + 40 + right  # a batch of each kind
    assert (whole.gradient_steps, cut.gradient_steps) == (0, 0)


def test_the_failures_decide_which_block_is_suspicious() -> None:
    net, one = deployed(), data()
    other = replace(one, learn=failures(30, 8))
    assert localised(net, one).scores != localised(net, other).scores
    weighted, mean = localised(net, one).scores, localised(net, one, gradient="mean").scores
    assert weighted.keys() == mean.keys() == {"1.0", "1.1"}
    assert weighted != mean


def test_a_dnn_that_is_right_on_no_clean_image_is_refused() -> None:
    net, given = deployed(), data()
    assert given.clean is not None
    predicted = net.logits(given.clean.images_NHWC).argmax(1).numpy()
    wrong = replace(given, clean=replace(given.clean, labels_N=(predicted + 1) % 3))
    with pytest.raises(DataError, match="classifies none of the 40 clean images correctly"):
        localised(net, wrong)


# Search


def test_the_halves_share_no_image_and_leave_none_out() -> None:
    given = data()
    assert given.clean is not None
    twice = replace(given.learn, image_ids_N=np.arange(10) // 2)
    found, whole = halves(twice, given.clean, 0), Examples(twice, given.clean)
    parts = [found.weights, found.alpha]
    pixels = [part.images(np.arange(len(part))) for part in parts]
    assert sum(len(part) for part in parts) == len(whole)
    as_bytes = [{image.tobytes() for image in part} for part in pixels]
    assert not as_bytes[0] & as_bytes[1]
    assert as_bytes[0] | as_bytes[1] == {image.tobytes() for image in whole.images(np.arange(50))}
    ids = [{twice.image_ids_N[row] for row in part._rows_N if row < 10} for part in parts]  # type: ignore[attr-defined]
    assert ids[0] | ids[1] == set(range(5))
    assert not ids[0] & ids[1]
    with pytest.raises(DataError, match=r"1\s+image\(s\) in D_collect"):
        halves(given.learn.take(np.array([0])), given.clean, 0)


def test_alpha_grows_for_the_operation_that_helps_on_the_held_out_half() -> None:
    """The block outputs zero and the class is the brightest channel, so the identity is the best operation."""
    block = nn.Conv2d(3, 3, 1)
    nn.init.zeros_(block.weight)
    shape = BlockShape(in_channels=3, out_channels=3, stride=(1, 1), norm="group")
    module = nn.Sequential(block, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    relaxed = relax(module, "0", shape, seed=0)
    skip = relaxed.operations["skip"]
    nn.init.ones_(skip[-1].weight)  # type: ignore[index]
    net = deployed_of(module)
    bright = failures(60, 4)
    pixels = np.full((60, 4, 4, 3), 50, np.uint8)
    pixels[np.arange(60), ..., bright.labels_N] = 200
    examples = Examples(replace(bright, images_NHWC=pixels))
    around = context()
    steps = AlphaSteps(relaxed, net, examples, around, SearchSettings(alpha_rate=0.1, collected_share=None))
    before = {k: v.clone() for k, v in module.named_parameters()}
    for step in range(20):
        steps.take(module, step)
    shares = relaxed.shares()
    assert max(shares, key=lambda name: shares[name]) == "skip"
    assert shares["skip"] > 0.3
    assert all(torch.equal(v, before[k]) for k, v in module.named_parameters() if "alpha" not in k)
    assert around.budget.gradient_steps == 20


def test_a_part_of_a_budget_has_its_own_limit_and_counts_in_the_whole() -> None:
    whole = Budget(parse_limit("100steps"))
    whole.spend(steps=20)
    part = BudgetPart(whole, end=0.5)  # ends at 60 steps
    part.spend(steps=20)
    assert part.share == pytest.approx(0.5)
    part.spend(steps=20, images=3)
    assert part.share == pytest.approx(1)
    assert whole.share == pytest.approx(0.6)
    assert (whole.gradient_steps, whole.images_seen) == (60, 3)
    assert BudgetPart(whole).share == 0
    assert not BudgetPart(Budget(), end=0.0).over


# The repair


@pytest.mark.parametrize("norm", [True, False])
def test_only_the_block_is_changed(norm: bool) -> None:
    net = deployed(norm=norm)
    found = repaired(context(keep_zero=False), net)
    assert found.architecture is not None
    block = found.architecture["block"]
    own = {**dict(net.module.named_parameters()), **dict(net.module.named_buffers())}
    moved = set()
    for name, tensor in found.state().items():
        inside = name.startswith(f"{block}.")
        old = own.get(name.replace(f"{block}.block.", f"{block}.") if inside else name)
        if old is not None and not torch.equal(old, tensor):
            moved.add(inside)
    assert moved == {True}
    assert f"{block}.block.conv1.weight" in found.parameters


def test_a_repair_that_keeps_zero_has_the_deployed_architecture() -> None:
    found = repaired(context(budget=Budget(parse_limit("1steps"))))
    assert found.module is None
    assert found.architecture is None
    assert found.parameters.keys() == dict(deployed().module.named_parameters()).keys()
    assert "operation zero" in found.notes[0]


@pytest.mark.parametrize("limit", ["1steps", "7steps", "12steps"])
def test_a_budget_in_steps_is_kept_to(limit: str) -> None:
    found = repaired(context(Budget(parse_limit(limit)), search={"epochs": 50}, tuning={"epochs": 50}))
    assert found.gradient_steps == int(limit.removesuffix("steps"))


def test_the_same_seed_gives_the_same_bits_and_another_seed_others() -> None:
    around = context(keep_zero=False)
    one, two = (repaired(replace(around, budget=Budget())) for _ in range(2))
    assert state_hash(one.state()) == state_hash(two.state())
    other = repaired(replace(around, budget=Budget(), seed=4))
    assert state_hash(one.state()) != state_hash(other.state())


class Interrupted(Budget):
    """Interrupts a repair after `after` calls of `spend`."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.after = after

    def spend(self, *, images: int = 0, steps: int = 0) -> None:
        self.after -= 1
        if self.after < 0:
            raise KeyboardInterrupt
        super().spend(images=images, steps=steps)


def test_a_resumed_repair_equals_one_that_was_not_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "CHECKPOINT_S", 0.0)
    undisturbed = repaired(context(keep_zero=False))
    for after in (6, 3, 13):  # twice in the search, once in the fine-tuning
        with pytest.raises(KeyboardInterrupt):
            repaired(context(Interrupted(after), tmp_path, keep_zero=False))
    lines: list[str] = []
    resumed = repaired(replace(context(folder=tmp_path, keep_zero=False), say=lines.append))
    assert any(line.startswith("archrepair.tuning: resumes from step") for line in lines)
    assert not any("most vulnerable" in line for line in lines)
    assert resumed.architecture == undisturbed.architecture
    assert state_hash(resumed.state()) == state_hash(undisturbed.state())
    assert resumed.images_seen == undisturbed.images_seen
    assert resumed.gradient_steps == undisturbed.gradient_steps


def test_the_deployed_dnn_stays_and_the_repaired_model_pickles() -> None:
    net = deployed()
    before = state_hash(net.module.state_dict())
    found = repaired(context(keep_zero=False), net)
    assert state_hash(net.module.state_dict()) == before
    again = pickle.loads(pickle.dumps(found))
    x_BCHW = images(2, 8, dtype=torch.float64)
    assert torch.equal(again.fill(net.module)(x_BCHW), found.fill(net.module)(x_BCHW))
    assert pickle.loads(pickle.dumps(ArchRepair())).name == "archrepair"


def test_settings_are_checked_with_near_names() -> None:
    with pytest.raises(ConfigError, match=r"methods\.archrepair\.search\.epoch\b.*did you mean.*epochs"):
        method_settings("archrepair", {"search": {"epoch": 3}})
    with pytest.raises(ConfigError, match=r"least_rate=0\.5 is above"):
        repaired(context(search={"least_rate": 0.5}))


def test_missing_data_are_said() -> None:
    method, net, given = get_method("archrepair"), deployed(), data()
    with pytest.raises(ConfigError, match="clean training split"):
        repair_fairly(method, net, replace(given, clean=None), context())
    with pytest.raises(DataError, match="Collect more failures"):
        repair_fairly(method, net, replace(given, learn=failures(0, 0)), context())


# What comes after a repair


def test_a_changed_architecture_is_judged_as_its_own_module() -> None:
    net, given = deployed(), data()
    found = repaired(context(keep_zero=False), net)
    fail = given.validation
    pixels = fail.images_NHWC[:]
    after = replace(net, module=found.fill(net.module))
    expected = after.logits(pixels).argmax(1).numpy()
    accuracy = accuracy_on(found.architecture_of(net), found.parameters, found.buffers, fail)
    assert accuracy == pytest.approx(float((expected == fail.labels_N).mean()))

    judged = predict_all(
        net, called(net, [found]), lambda rows: pixels[rows], np.arange(9), batch_size=4
    ).classes
    assert np.array_equal(judged[0], net.logits(pixels).argmax(1).numpy())
    assert np.array_equal(judged[1], expected)


@pytest.fixture(scope="module")
def unit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a repair by ArchRepair that has changed the architecture."""
    root = tmp_path_factory.mktemp("run") / "repaired" / "snow"
    settings = SMALL | {"keep_zero": False}
    config = parse_config(TINY_RUN | {"methods": {"archrepair": settings}})
    here = load_surroundings(config)
    train = here.split("train")
    rows = np.arange(24)
    labels = train.labels_N[rows]
    wrong = failures_of(labels, train.images(rows), predicted_N=labels)
    clean = CleanImages(images_NHWC=train.images_NHWC, labels_N=train.labels_N)
    given = RepairData(target="snow", learn=wrong, validation=wrong, clean=clean)
    folder = root / "archrepair" / "0"
    one = Unit(
        method="archrepair",
        seed=0,
        folder=folder,
        load_meta=lambda: pytest.fail("no experiences"),
        limit=parse_limit("12steps"),
    )
    repair_once(one, config, given, here)
    (root / "result.json").write_text(json.dumps({"config": config.model_dump(mode="json")}))
    return folder


def test_a_saved_repair_loads_again_with_its_architecture(unit: Path) -> None:
    net = shipped("resnet8_cifar")
    assert (unit / WEIGHTS).is_file()
    architecture = json.loads((unit / ARCHITECTURE).read_text())
    again = load_repaired(unit, "archrepair", net)
    assert isinstance(again.get_submodule(architecture["block"]), ExtendedBlock)
    with torch.no_grad():
        assert not torch.allclose(again(images(2)), net.module(images(2)), atol=1e-4)


@pytest.mark.slow
def test_a_changed_architecture_is_exported_as_a_program(
    unit: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    export(str(unit / WEIGHTS), kind="torch", out=str(tmp_path / "a.pt2"), config_file=None)
    net = shipped("resnet8_cifar")
    program = torch.export.load(tmp_path / "a.pt2").module()
    x_BCHW = images(3)
    with torch.no_grad():
        assert torch.allclose(program(x_BCHW), load_repaired(unit, "archrepair", net)(x_BCHW), atol=1e-4)
    assert any("the same classes on" in message for message in caplog.messages)


def test_a_changed_architecture_is_not_exported_into_the_deployed_file_format(
    unit: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"another architecture.*Use --format torch or onnx"):
        export(str(unit), kind="original", out=str(tmp_path / "a"), config_file=None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_densenet_starts_as_deployed_and_a_dense_block_of_it_is_repaired() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = timm.create_model("densenet121", num_classes=3).eval()
    assert list(find_blocks(module)) == [f"features.denseblock{i}" for i in (1, 2, 3, 4)]
    net = DeployedModel(
        name="d", module=module, num_classes=3, mean=(0.5,) * 3, std=(0.25,) * 3, input_size=32
    )
    x_BCHW = images(2)
    for name, shape in usable_blocks(module, (), x_BCHW).items():
        changed = copy.deepcopy(module)
        relax(changed, name, shape, seed=0)
        with torch.no_grad():
            assert torch.equal(changed(x_BCHW), module(x_BCHW))
    found = repaired(context(Budget(parse_limit("2steps")), keep_zero=False), net)
    assert found.architecture is not None
    again = ArchRepair().rebuild(module, found.architecture)
    filled = found.fill(module)
    again.load_state_dict(filled.state_dict())
    with torch.no_grad():
        assert torch.equal(again.eval()(x_BCHW), filled(x_BCHW))
