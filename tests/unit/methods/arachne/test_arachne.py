"""Test Arachne: the weights to blame and their Pareto front, the batched run of all candidates, and the search."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import differential_evolution
from torch import Tensor, nn

from metarepair.adaptation.repair_data import RepairData
from metarepair.config.repair import RepairConfig
from metarepair.data.clean_images import CleanImages
from metarepair.engine.stateless import seeded
from metarepair.methods import method_settings
from metarepair.methods.arachne import method
from metarepair.methods.arachne.candidates import Candidates
from metarepair.methods.arachne.localise import (
    Places,
    against,
    blame,
    correct_rows,
    front_rows,
    layers_of,
    pareto_front,
    weight_of,
)
from metarepair.methods.arachne.search import (
    AT_ONCE_BYTES,
    KEPT_BYTES,
    ArachneSettings,
    Fitness,
    Search,
    SearchState,
    layers_of_weights,
    scores,
    start,
)
from metarepair.methods.base import MethodContext
from metarepair.methods.budget import Budget, parse_limit
from metarepair.methods.examples import Examples
from metarepair.methods.registry import get_method
from metarepair.methods.repaired import RepairedModel
from metarepair.models.build import DeployedModel
from metarepair.repairs.stage import repair_fairly
from tasks.errors import ConfigError, DataError
from tasks.records import Failures, Ints, Pixels

CPU = torch.device("cpu")
SMALL: dict[str, Any] = {"population": 20, "generations": 30}


class Block(nn.Module):
    """Norms, depthwise and grouped convolutions, an in-place sum, a layer used twice, pooling, a concatenation."""

    def __init__(self, *, norm: bool = True) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4) if norm else nn.Identity()
        self.depthwise = nn.Conv2d(4, 8, 3, padding=1, groups=4, padding_mode="circular")
        self.grouped = nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=2, bias=False)
        self.shortcut = nn.Conv2d(4, 8, 1, stride=2)
        self.mixing = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))
        self.twice = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(24, 3)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x = self.relu(self.norm(self.stem(x_BCHW)))
        y = self.grouped(nn.functional.silu(self.depthwise(x)))
        y += self.shortcut(x)
        z = y + self.mixing(y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        z = self.twice(self.relu(self.twice(z)))
        parts = [nn.functional.avg_pool2d(y, 4), nn.functional.max_pool2d(z, 4), z.mean((2, 3), keepdim=True)]
        logits: Tensor = self.head(torch.cat(parts, 1).flatten(1))
        return logits


def block(*, norm: bool = True, dtype: torch.dtype = torch.float64) -> nn.Module:
    with seeded(CPU, 0):
        module = Block(norm=norm).to(dtype)
        if norm:
            module.get_buffer("norm.running_mean").normal_(0, 0.3)
            module.get_buffer("norm.running_var").uniform_(0.5, 2)
    return module.eval()


class Sorter(nn.Module):
    """Classifies an image by the strongest of three colours; four channels respond to each colour."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 12, 3, bias=False)
        self.fc = nn.Linear(12, 3, bias=False)
        sees = torch.eye(3).repeat_interleave(4, 0)
        with torch.no_grad():
            self.conv.weight.copy_(((sees + 0.02) / 9)[:, :, None, None].expand(-1, -1, 3, 3))
            self.fc.weight.copy_(sees.T - 0.25)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.conv(x_BCHW).relu().mean((2, 3)))
        return logits


class Branching(Sorter):
    """The sorter with a forward pass that cannot be run for all candidates at once."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        logits = super().forward(x_BCHW)
        return logits if bool(logits.isfinite().all()) else logits.nan_to_num()


def deployed(module: nn.Module) -> DeployedModel:
    return DeployedModel(name="small", module=module, num_classes=3, mean=(0.2,) * 3, std=(0.25,) * 3)


def coloured(labels_N: Ints, seed: int) -> Pixels:
    """Return 8-px noise images, each somewhat brighter in the colour of its label."""
    generator = np.random.default_rng(seed)
    found = generator.integers(0, 120, (len(labels_N), 8, 8, 3))
    found[np.arange(len(labels_N)), :, :, labels_N] += generator.integers(15, 110, (len(labels_N), 1, 1))
    return found.astype(np.uint8)


def failures(labels_N: Ints, seed: int) -> Failures:
    number = len(labels_N)
    return Failures(
        corruption="snow",
        image_ids_N=np.arange(number),
        severities_N=np.ones(number, np.int64),
        labels_N=labels_N,
        predicted_N=(labels_N + 1) % 3,
        images_NHWC=coloured(labels_N, seed),
    )


def clean(number: int = 60, seed: int = 3) -> CleanImages:
    labels_N = np.arange(number) % 3
    return CleanImages(images_NHWC=coloured(labels_N, seed), labels_N=labels_N)


def broken() -> DeployedModel:
    """The sorter with one planted weight that makes it fail on colour 1."""
    module = Sorter().double()
    with torch.no_grad():
        module.fc.weight[1, 5] = -8.0
    return deployed(module.eval())


ONES = np.ones(20, np.int64)


def hard() -> RepairData:
    """Return similar images with different labels: no DNN is right on all of them, so a search continues."""
    mixed = Failures(**{**vars(failures(ONES, 1)), "labels_N": np.arange(20) % 5 % 3})
    return RepairData(target="snow", learn=mixed, validation=mixed.take(np.arange(6)), clean=clean())


def data(labels_N: Ints = ONES) -> RepairData:
    return RepairData(
        target="snow", learn=failures(labels_N, 1), validation=failures(labels_N[:6], 2), clean=clean()
    )


def repaired(
    given: DeployedModel,
    collected: RepairData | None = None,
    *,
    budget: str | None = None,
    seed: int = 0,
    **around: Any,
) -> RepairedModel:
    settings = method_settings("arachne", {**SMALL, **around.pop("settings", {})})
    context = MethodContext(
        config=RepairConfig.model_construct(),
        seed=seed,
        settings=settings,
        budget=Budget(parse_limit(budget) if budget else None),
        **around,
    )
    return repair_fairly(get_method("arachne"), given, collected or data(), context)


def share_right(module: nn.Module, images: CleanImages | Failures) -> float:
    logits = deployed(module).logits(np.asarray(images.images_NHWC))
    return float((logits.argmax(1).numpy() == images.labels_N).mean())


def some_places(module: nn.Module, names: list[str], each: int = 2) -> Places:
    generator = np.random.default_rng(1)
    flat = [generator.choice(weight_of(module, name).numel(), each, replace=False) for name in names]
    return Places(layers=tuple(n for n in names for _ in range(each)), flat_W=np.concatenate(flat))


# All candidates at once

EACH = [["stem"], ["depthwise"], ["grouped"], ["shortcut"], ["mixing.1"], ["twice"], ["head"]]


def expect_logits_of_a_loop(
    module: nn.Module, names: list[str], size: tuple[int, ...] = (3, 8, 8), *, at_once: bool = True
) -> None:
    """Check four candidates, two weights of each layer, against the DNN with these weights set in turn."""
    places, dtype = some_places(module, names), next(module.parameters()).dtype
    with seeded(CPU, 2):
        images = torch.randn(5, *size, dtype=dtype)
        values_PW = places.values(module) + torch.randn(4, len(places), dtype=dtype)
    candidates = Candidates(module, places, images[:2])
    found = candidates.logits(candidates.keep(images), values_PW)
    assert (candidates.note is None) == at_once, candidates.note
    for values_W, logits in zip(values_PW, found, strict=True):
        changed = copy.deepcopy(module)
        places.fill(changed, values_W)
        expected = changed(images)
        assert (expected - copy.deepcopy(module)(images)).abs().max() > 1e-4  # the weights change the logits
        torch.testing.assert_close(logits, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("names", [*EACH, ["stem", "twice"], list(layers_of(block()))])
def test_candidates_have_the_logits_of_the_dnn_with_their_weights(names: list[str]) -> None:
    expect_logits_of_a_loop(block(), names)


class Attention(nn.Module):
    """Two attention heads over the positions of an image, with channels last; their input is normalised."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Conv2d(3, 8, 2, stride=2), nn.LayerNorm(8)
        self.qkv, self.project, self.head = nn.Linear(8, 24), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BTC = self.embed(x_BCHW).flatten(2).mT
        query, key, value = self.qkv(self.norm(x_BTC)).unflatten(2, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(query, key, value)
        logits: Tensor = self.head((x_BTC + self.project(mixed.transpose(1, 2).flatten(2))).mean(1))
        return logits


@pytest.mark.parametrize("name", ["embed", "qkv", "project", "head"])
def test_candidates_of_attention(name: str) -> None:
    with seeded(CPU, 0):
        module = Attention().double().eval()
    expect_logits_of_a_loop(module, [name])
    expect_logits_of_a_loop(module.to(memory_format=torch.channels_last), [name])  # type: ignore[call-overload]


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("pool", [nn.AdaptiveAvgPool2d(1), nn.AdaptiveMaxPool2d(1), nn.AvgPool2d(3)])
def test_candidates_in_either_memory_format_and_any_pooling(
    pool: nn.Module, memory_format: torch.memory_format
) -> None:
    with seeded(CPU, 0):
        norms = nn.Sequential(nn.BatchNorm2d(8, affine=False), nn.GroupNorm(2, 8), nn.BatchNorm2d(8))
        module = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2), norms, nn.ReLU(), pool, nn.Flatten(), nn.Linear(8, 3)
        )
        norms[2].bias.data.normal_()
        norms[2].running_mean.normal_()
    module = module.double().eval().to(memory_format=memory_format)
    expect_logits_of_a_loop(module, ["0"])
    expect_logits_of_a_loop(module, ["5"])


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_candidates_of_convolutions_of_any_dimension_and_padding(dims: int) -> None:
    convolution = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    with seeded(CPU, 0):
        module = nn.Sequential(
            convolution(4, 6, 3, padding="same", dilation=2, padding_mode="reflect"),
            nn.ReLU(inplace=True),
            convolution(6, 4, 2, stride=2, groups=2, padding=1),
            nn.Flatten(),
            nn.Linear(4 * 4**dims, 3),
        )
    for names in (["0"], ["2"], ["0", "2", "4"]):
        expect_logits_of_a_loop(module.double().eval(), names, (4, *[6] * dims))


class LastChannels(nn.Module):
    """Norm and dense layers on channels-last tensors, then pooling of a channels-first tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 4, 2, stride=2), nn.LayerNorm(4)
        self.wide, self.head = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BHWC = self.wide(self.norm(self.stem(x_BCHW).permute(0, 2, 3, 1)))
        logits: Tensor = self.head(
            nn.functional.adaptive_avg_pool2d(x_BHWC.permute(0, 3, 1, 2), 1).flatten(1)
        )
        return logits


@pytest.mark.parametrize("name", ["stem", "wide", "head"])
def test_candidates_of_layers_on_last_channels(name: str) -> None:
    with seeded(CPU, 0):
        module = LastChannels().double().eval()
    expect_logits_of_a_loop(module, [name])


class InPlace(nn.Module):
    """Changes its images and a stored attribute in place; a view sees the change."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.fc = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.Linear(12, 3)
        self.kept = torch.zeros(0)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        self.kept = self.first(x_BCHW.sub_(0.5).mul_(2))
        view_BD = self.kept.flatten(1)
        self.kept += x_BCHW
        x_BCHW = self.second(x_BCHW) * self.kept
        self.kept.mul_(2)
        logits: Tensor = self.fc(x_BCHW.flatten(1) + view_BD.relu_())
        return logits


@pytest.mark.parametrize("name", ["first", "second", "fc"])
def test_a_dnn_may_change_tensors_in_place(name: str) -> None:
    with seeded(CPU, 0):
        module = InPlace().double().eval()
    places, images = some_places(module, [name]), torch.rand(4, 3, 2, 2, dtype=torch.float64)
    before = images.clone()
    values_PW = places.values(module) + torch.rand(3, 2, dtype=torch.float64)
    candidates = Candidates(module, places, images)
    kept = candidates.keep(images)
    first, again = (candidates.logits(kept, values_PW) for _ in range(2))
    assert torch.equal(images, before)
    assert torch.equal(first, again)
    for values_W, logits in zip(values_PW, first, strict=True):
        places.fill(module, values_W)
        torch.testing.assert_close(logits, module(images.clone()), rtol=1e-9, atol=1e-9)


class Refused(nn.Module):
    """Does something, chosen by `way`, that cannot be run for all candidates at once."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.fc, self.more, self.way, self.calls = nn.Linear(12, 3), nn.Linear(3, 3), way, 0

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x = self.fc(x_BCHW.flatten(1))
        if self.way == "branch" and bool(x.sum() > 0):
            return 3 * x
        if self.way == "list":
            return torch.tensor(x.tolist(), dtype=x.dtype)
        if self.way == "weight":
            return x + self.fc.weight.sum()
        if self.way == "attribute":  # its subclass runs another function with the same weights
            return nn.functional.linear(input=x, weight=self.more.weight) + self.fc(x_BCHW.flatten(1))
        return Doubled.apply(x)  # type: ignore[no-any-return, no-untyped-call]


class Doubled(torch.autograd.Function):
    """An operation without a vmap rule."""

    @staticmethod
    def forward(_: Any, x: Tensor) -> Tensor:
        return 2 * x


@pytest.mark.parametrize("way", ["branch", "list", "weight", "function"])
def test_a_dnn_that_cannot_run_all_candidates_at_once_runs_them_one_by_one_with_the_same_logits(
    way: str,
) -> None:
    with seeded(CPU, 0):
        module = Refused(way).double().eval()
    expect_logits_of_a_loop(module, ["fc"], (3, 2, 2), at_once=False)


def test_a_layer_whose_weight_is_read_from_outside_is_run_one_by_one() -> None:
    with seeded(CPU, 0):
        attention = nn.MultiheadAttention(4, 2, batch_first=True)

        class Around(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.attention, self.fc = attention, nn.Linear(12, 3)

            def forward(self, x_BCHW: Tensor) -> Tensor:
                x_BTC = x_BCHW.flatten(2)
                logits: Tensor = self.fc(self.attention(x_BTC, x_BTC, x_BTC)[0].flatten(1))
                return logits

        module = Around().double().eval()
    expect_logits_of_a_loop(module, ["fc"], (3, 2, 2))
    expect_logits_of_a_loop(module, ["attention.out_proj"], (3, 2, 2), at_once=False)
    expect_logits_of_a_loop(module, ["attention.out_proj", "fc"], (3, 2, 2), at_once=False)


def test_a_second_use_of_a_weight_is_detected_however_small_its_effect() -> None:
    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(12, 3)

        def forward(self, x_BCHW: Tensor) -> Tensor:
            logits: Tensor = self.fc(x_BCHW.flatten(1)) + 1e-4 * self.fc.weight.sum()
            return logits

    candidates = Candidates(Around().eval(), some_places(Around(), ["fc"]), torch.ones(1, 3, 2, 2))
    assert "sum takes a searched weight" in str(candidates.note)


class Branch(nn.Module):
    """Runs different layers for bright images."""

    def __init__(self) -> None:
        super().__init__()
        self.dark, self.bright, self.fc = nn.Conv2d(3, 2, 1), nn.Conv2d(3, 2, 1), nn.Linear(8, 3)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x = self.bright(x_BCHW).relu() * 2 if bool(x_BCHW.mean() > 0) else self.dark(x_BCHW)
        logits: Tensor = self.fc(x.flatten(1))
        return logits


def test_a_dnn_may_branch_on_its_images_before_the_searched_layer() -> None:
    with seeded(CPU, 0):
        module = Branch().double().eval()
    places, images = some_places(module, ["fc"]), torch.rand(4, 3, 2, 2, dtype=torch.float64)
    candidates = Candidates(module, places, images)
    values_PW = places.values(module) + torch.rand(3, 2, dtype=torch.float64)
    for batch in (images, -images):
        found = candidates.logits(candidates.keep(batch), values_PW)
        for values_W, logits in zip(values_PW, found, strict=True):
            changed = copy.deepcopy(module)
            places.fill(changed, values_W)
            torch.testing.assert_close(logits, changed(batch), rtol=1e-9, atol=1e-9)
    assert candidates.note is None


class OfItsCalls(nn.Module):
    """Its output depends on the number of earlier calls."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(12, 3)
        self.calls = 0

    def forward(self, x_BCHW: Tensor) -> Tensor:
        self.calls += 1
        logits: Tensor = self.fc(x_BCHW.flatten(1)) * self.calls
        return logits


def test_a_dnn_with_hidden_state_is_run_one_by_one_with_a_note() -> None:
    images = torch.randn(2, 3, 2, 2)
    candidates = Candidates(OfItsCalls().eval(), Places(layers=("fc",), flat_W=np.array([1])), images)
    assert "candidates were run one after the other: OfItsCalls" in str(candidates.note)
    assert "its logits differ" in str(candidates.note)
    assert len(candidates.logits(candidates.keep(images), torch.zeros(3, 1))) == 3


class OfFirstCalls(OfItsCalls):
    """Alternates between two functions from call to call; they agree on images of ones."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x, self.calls = (x_BCHW + 1 if self.calls % 2 else 1 + 2 * x_BCHW), self.calls + 1
        logits: Tensor = self.fc(x.flatten(1))
        return logits


def test_a_dnn_that_runs_other_functions_when_it_is_run_again_is_run_one_by_one() -> None:
    candidates = Candidates(
        OfFirstCalls().eval(), Places(layers=("fc",), flat_W=np.array([1])), torch.ones(1, 3, 2, 2)
    )
    assert "it calls other functions" in str(candidates.note)


def test_candidates_leave_the_dnn_as_it_was() -> None:
    for module in (block(), Refused("branch").double().eval()):
        before = {k: v.clone() for k, v in module.state_dict().items()}
        places, images = some_places(module, [next(iter(layers_of(module)))]), torch.rand(2, 3, 8, 8).double()
        images = images if isinstance(module, Block) else images[..., :2, :2]
        candidates = Candidates(module, places, images)
        candidates.logits(candidates.keep(images), places.values(module).expand(3, -1) + 1)
        assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
        assert not any(m._forward_hooks or "forward" in vars(m) for m in module.modules())


def test_only_the_inputs_of_the_rest_of_the_dnn_are_kept() -> None:
    wide = [layer for _ in range(6) for layer in (nn.Conv2d(4, 4, 3, padding=1), nn.ReLU())]
    module = nn.Sequential(*wide, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).eval()
    candidates = Candidates(module, some_places(module, ["14"]), torch.randn(2, 4, 32, 32))
    one = 4 * 4 * 32 * 32  # bytes of an image and of each convolution's output
    assert candidates.bytes_kept < 3 * one
    assert candidates.bytes_moved == 4 * 3


# Which weights are to blame


def test_blame_equals_the_formulas_for_each_weight() -> None:
    with seeded(CPU, 0):
        module = nn.Sequential(
            nn.Conv2d(4, 6, 3, stride=2, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(24, 3)
        )
    module = nn.Sequential(nn.Conv2d(3, 4, 1), *module).double().eval()
    images = CleanImages(
        images_NHWC=np.random.default_rng(0).integers(0, 256, (7, 5, 5, 3), dtype=np.uint8),
        labels_N=np.array([0, 1, 2, 0, 1, 2, 0]),
    )
    given = deployed(module)
    found = blame(given, images, Budget())
    x = given.normalise(images.images_NHWC)
    conv, fc = module[1], module[4]
    entered = module[0](x).detach()
    out = conv(entered).detach().requires_grad_()
    logits = module[4](out.relu().flatten(1))
    (slope,) = torch.autograd.grad(logits.sum(), out, retain_graph=True)
    sensitivity = (slope.abs() / slope.abs().sum((1, 2, 3), keepdim=True)).mean(0)
    patches = nn.functional.unfold(entered, 3, stride=2).view(7, 2, 18, 2, 2)
    for o, i, a, b in ((0, 0, 0, 0), (2, 1, 1, 2), (5, 1, 2, 0)):
        terms = (patches[:, o // 3] * conv.weight[o].reshape(-1)[None, :, None, None]).abs()
        share = (terms[:, i * 9 + a * 3 + b] / terms.sum(1)).mean(0)
        torch.testing.assert_close(
            found["1"][0, o, i, a, b], (share * sensitivity[o]).sum(), rtol=1e-9, atol=0
        )
    features = out.detach().relu().flatten(1)
    terms = (features[:, None] * fc.weight).abs()
    impact = (terms / terms.sum(2, keepdim=True)).nan_to_num().mean(0) / 3  # each logit has a slope of 1/3
    torch.testing.assert_close(found["4"][0], impact.detach(), rtol=1e-9, atol=0)
    error = logits.softmax(1) - nn.functional.one_hot(torch.from_numpy(images.labels_N), 3)
    torch.testing.assert_close(found["4"][1], (error.T @ features).abs().detach(), rtol=1e-9, atol=1e-12)


def test_weights_that_correct_images_need_are_blamed_less() -> None:
    failures = {"fc": torch.tensor([[[2.0, 3.0]], [[2.0, 3.0]]])}
    correct = {"fc": torch.tensor([[[1.0, 0.0]], [[0.0, 2.0]]])}
    impact, gradient = against(failures, correct)["fc"]
    assert impact.tolist() == [[1.0, 3.0]]
    assert gradient.tolist() == [[2.0, 1.0]]


def test_the_front_holds_the_weights_that_no_other_weight_dominates() -> None:
    generator = np.random.default_rng(0)
    first = generator.integers(0, 30, 400).astype(float)
    second = 30 - first + generator.integers(0, 9, 400)
    better = (first[:, None] >= first) & (second[:, None] >= second)
    better &= (first[:, None] > first) | (second[:, None] > second)
    front = {(a, b) for a, b, bad in zip(first, second, better.any(0), strict=True) if not bad}
    rows = front_rows(first, second)
    assert {(first[r], second[r]) for r in rows} == front
    assert len(rows) == len(front) > 2  # equal points count once


def test_the_front_may_lie_over_several_layers() -> None:
    scored = {
        "a": torch.tensor([[[0.0, 5.0]], [[1.0, 1.0]]]),
        "b": torch.tensor([[[1.0], [2.0], [0.5]], [[0.0], [3.0], [9.0]]]),
    }
    places = pareto_front(scored)
    assert list(zip(places.layers, places.flat_W.tolist(), strict=True)) == [("a", 1), ("b", 1), ("b", 2)]


def test_correct_images_have_the_shares_of_the_classes_and_are_right() -> None:
    labels_N = np.repeat([0, 1, 2], [40, 20, 20])
    images = CleanImages(images_NHWC=coloured(labels_N, 5), labels_N=labels_N)
    wrong = np.arange(0, 40, 2)  # half of class 0 has another colour and is misclassified
    images.images_NHWC[wrong] = coloured(np.full(20, 2), 6)  # type: ignore[index]
    budget = Budget()
    rows = correct_rows(deployed(Sorter().eval()), images, count=16, seed=0, budget=budget)
    assert np.bincount(labels_N[rows]).tolist() == [8, 4, 4]
    assert len(set(rows.tolist())) == 16
    assert not set(rows.tolist()) & set(wrong.tolist())
    assert 16 < budget.images_seen <= 80


# The search


def test_a_planted_broken_weight_is_found_and_restored() -> None:
    given = broken()
    scored = against(blame(given, data().learn, Budget()), blame(given, _others(), Budget()))
    places = pareto_front(scored)
    assert ("fc", 17) in zip(places.layers, places.flat_W.tolist(), strict=True)
    assert len(places) <= 8
    assert share_right(given.module, data().learn) == 0
    found = repaired(given)
    module = found.fill(given.module)
    assert share_right(module, data().learn) == 1
    assert share_right(module, clean()) == 1
    assert module.get_parameter("fc.weight")[1, 5] > -2  # it was -8
    assert "accuracy on validation (which chose nothing) 0.0% to 100.0%" in found.notes


def _others() -> CleanImages:
    images = clean()
    rows = np.flatnonzero(images.labels_N != 1)
    return CleanImages(images_NHWC=images.images_NHWC[rows], labels_N=images.labels_N[rows])


def test_only_weights_of_the_front_change() -> None:
    given = broken()
    found = repaired(given)
    changed = sum(int((found.parameters[k] != v).sum()) for k, v in given.module.named_parameters())
    assert 0 < changed <= int(found.notes[0].split()[0]) <= 8


def test_the_last_layers_alone_may_be_searched() -> None:
    given = broken()
    found = repaired(given, settings={"last_layers": 1})
    assert "fc (" in found.notes[0]
    assert torch.equal(found.parameters["conv.weight"], given.module.get_parameter("conv.weight"))


def test_fitness_is_one_for_a_correct_image_and_falls_with_the_loss() -> None:
    logits = torch.tensor([[[2.0, 0.0], [2.0, 0.0]]])
    loss = np.log(1 + np.exp(2.0))
    torch.testing.assert_close(
        scores(logits, torch.tensor([0, 1])), torch.tensor([[1.0, 1 / (1 + loss)]], dtype=torch.float64)
    )


def test_fitness_counts_a_failure_ten_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(AT_ONCE_BYTES, "cpu", 200)  # many small chunks
    given = deployed(block())
    collected, correct = failures(np.arange(11) % 3, 1), clean(13)
    places = some_places(given.module, ["stem", "head"])
    budget = Budget()
    fitness = Fitness(given, places, Examples(collected, correct), 10.0, budget)
    with seeded(CPU, 1):
        values_PW = places.values(given.module) + torch.randn(5, len(places), dtype=torch.float64)
    found = fitness(values_PW.numpy())
    assert budget.images_seen == 5 * 24
    for values_W, value in zip(values_PW, found, strict=True):
        changed = deployed(copy.deepcopy(given.module))
        places.fill(changed.module, values_W)
        total = 0.0
        for images, factor in ((collected, 10.0), (correct, 1.0)):
            logits = changed.module(changed.normalise(images.images_NHWC)).detach()
            for row, label in zip(logits, images.labels_N.tolist(), strict=True):
                right = int(row.argmax()) == label
                total += factor * (1.0 if right else 1 / (1 - float(row.log_softmax(0)[label]) + 0))
        assert value == pytest.approx(total, rel=1e-9)


@pytest.mark.parametrize("names", [["twice"], ["stem", "head"]])
def test_fitness_is_the_same_in_chunks_of_any_size_kept_or_not(
    names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given, examples = deployed(block()), Examples(failures(np.arange(11) % 3, 1), clean(13))
    places = some_places(given.module, names)
    values_PW = places.values(given.module).numpy() + np.random.default_rng(0).normal(0, 1, (6, len(places)))
    pair = Fitness(given, places, examples, 10.0, Budget()).candidates.bytes_moved
    found = []
    for pairs, chunk in ((1, (1, 8)), (35, (4, 8)), (500, (6, 24))):
        for kept in (0, 1 << 20):
            monkeypatch.setitem(AT_ONCE_BYTES, "cpu", pairs * pair)
            monkeypatch.setitem(KEPT_BYTES, "cpu", kept)
            budget = Budget()
            fitness = Fitness(given, places, examples, 10.0, budget)
            found += [fitness(values_PW), fitness(values_PW)]
            assert (min(6, fitness.candidates_at_once), fitness.images_at_once) == chunk
            assert budget.images_seen == 2 * 6 * 24
            assert (len(fitness._kept) > 0) == (kept > 0)
    for again in found[1:]:
        np.testing.assert_allclose(again, found[0], rtol=1e-12)


def test_candidates_that_come_after_the_end_of_the_budget_have_no_fitness(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(AT_ONCE_BYTES, "cpu", 1)
    given, budget = deployed(block()), Budget(parse_limit("60images"))
    places = some_places(given.module, ["head"])
    examples = Examples(failures(np.arange(11) % 3, 1), clean(13))
    found = Fitness(given, places, examples, 10.0, budget)(np.ones((4, 2)))
    assert np.isfinite(found[:2]).all()
    assert (found[2:] == -np.inf).all()
    assert 60 <= budget.images_seen < 60 + 8


def test_the_budget_is_checked_before_each_candidate_that_is_run_alone() -> None:
    given, budget = deployed(Branching().double().eval()), Budget(parse_limit("60images"))
    examples = Examples(failures(np.arange(11) % 3, 1), clean(13))
    found = Fitness(given, some_places(given.module, ["fc"]), examples, 10.0, budget)(np.ones((4, 2)))
    assert np.isfinite(found).tolist() == [True, True, True, False]
    assert budget.images_seen == 3 * 24


def test_starts_come_from_the_layer_and_bounds_are_twice_its_ends() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    with torch.no_grad():
        module[0].weight.copy_(torch.tensor([[-1.0, 0.0], [1.0, 4.0]]))
        module[1].weight.copy_(torch.tensor([[1.0, 2.0], [2.0, 3.0]]))
    places = Places(layers=("0", "1"), flat_W=np.array([0, 3]))
    low_W, high_W, mean_W, sd_W = layers_of_weights(module, places)
    assert low_W.tolist() == [-2.0, 0.5]
    assert high_W.tolist() == [8.0, 6.0]
    assert mean_W.tolist() == [1.0, 2.0]
    assert sd_W == pytest.approx([np.sqrt(3.5), np.sqrt(0.5)])


def sphere(values_PW: np.ndarray[Any, np.dtype[np.float64]]) -> np.ndarray[Any, np.dtype[np.float64]]:
    found: np.ndarray[Any, np.dtype[np.float64]] = -((values_PW - np.array([0.3, -0.7, 0.1])) ** 2).sum(1)
    return found


def search(after: Any = lambda _: False, state: SearchState | None = None, **changes: Any) -> Search:
    settings = ArachneSettings(**({"population": 12, "generations": 25, "patience": 50} | changes))
    layers_4W = np.repeat([[-1.0], [1.0], [0.0], [2.0]], 3, axis=1)
    state = state or start(layers_4W, population=12, seed=3)
    return Search(fitness=sphere, layers_4W=layers_4W, settings=settings, seed=3, after=after, state=state)


def test_a_generation_is_rand_1_bin_and_replaces_candidates_that_are_not_better() -> None:
    states: list[SearchState] = []
    run = search(lambda state: states.append(state), generations=2)
    start = run.state.shares_PW
    assert start.min() == 0  # N(0, 2) within [-1, 1], clipped
    assert start.max() == 1
    run.run()
    best = states[0].fitness_P.argmax()
    assert best == 0
    assert (states[1].fitness_P[0] >= states[0].fitness_P[0]) or states[1].unchanged
    kept = [(row[None] == start).all(1).any() for row in states[0].shares_PW]
    assert not all(kept)
    assert states[0].fitness_P.min() >= sphere(run.values(start)).min()
    np.testing.assert_allclose(states[0].fitness_P, sphere(run.values(states[0].shares_PW)))


def test_a_trial_is_a_plus_a_difference_of_three_others() -> None:
    run = search(crossover=1.0, scale_low=0.5, scale_high=0.5)
    population = np.arange(36, dtype=float).reshape(12, 3) / 100
    trial = run._trial(4, population)
    sums = {
        tuple(np.round(population[a] + 0.5 * (population[b] - population[c]), 9))
        for a in range(12)
        for b in range(12)
        for c in range(12)
        if len({a, b, c, 4}) == 4
    }
    assert tuple(np.round(trial, 9)) in {tuple(np.clip(s, 0, 1)) for s in sums}
    one = search(crossover=0.0)._trial(4, population)
    assert (one != population[4]).sum() <= 1  # one weight in any case


def test_a_resumed_search_equals_one_that_was_not_interrupted() -> None:
    whole = search().run()
    assert whole.fitness_P[0] > -1e-2
    half = search(lambda state: state.generation == 11).run()
    assert half.generation == 11
    again = search(state=half).run()
    np.testing.assert_array_equal(again.shares_PW, whole.shares_PW)
    np.testing.assert_array_equal(again.fitness_P, whole.fitness_P)


@pytest.mark.parametrize("digits", [0, 1, 9])  # with few digits many candidates are equally good
def test_a_search_equals_scipys_given_the_same_trials(digits: int) -> None:
    def rugged(values_PW: Any) -> Any:
        return np.round(sphere(values_PW) + 0.2 * np.cos(9 * values_PW).sum(1), digits)

    states: list[SearchState] = []
    run = search(lambda state: states.append(state))
    run.fitness = rugged
    reference = search()
    theirs: list[Any] = []

    def after(intermediate_result: Any) -> None:
        theirs.append(intermediate_result)
        reference.state = reference.state._replace(generation=reference.state.generation + 1)

    differential_evolution(
        lambda shares_WP: -rugged(reference.values(shares_WP.T)),
        [(0, 1)] * 3,
        strategy=lambda candidate, shares_PW, **_: reference._trial(int(candidate), shares_PW),
        init=run.state.shares_PW,
        maxiter=25,
        tol=0,
        polish=False,
        callback=after,
        updating="deferred",
        vectorized=True,
    )
    run.run()
    assert len(states) == len(theirs) > 1
    for ours, their in zip(states, theirs, strict=True):
        np.testing.assert_allclose(ours.shares_PW, their.population, atol=1e-12)
        np.testing.assert_array_equal(ours.fitness_P, -their.population_energies)


def test_a_search_ends_when_all_candidates_are_equally_good() -> None:
    run = search()
    run.fitness = lambda values_PW: np.zeros(len(values_PW))
    assert run.run().generation == 1


def test_a_search_without_a_better_best_ends() -> None:
    run = search(patience=4)
    run.fitness = lambda values_PW: np.zeros(len(values_PW)) - np.arange(len(values_PW))
    states = run.run()
    assert states.generation == 6


# The method


def test_the_same_seed_gives_the_same_bits_and_another_seed_others() -> None:
    first, again, other = (repaired(broken(), hard(), budget="4steps", seed=seed) for seed in (0, 0, 1))
    assert all(torch.equal(first.parameters[k], again.parameters[k]) for k in first.parameters)
    assert any(not torch.equal(first.parameters[k], other.parameters[k]) for k in first.parameters)


def test_a_generation_is_a_step_of_the_budget() -> None:
    found = repaired(broken(), hard(), budget="3steps")
    assert found.gradient_steps == 3
    assert "in 3 generations" in found.notes[1]


def test_a_budget_that_ends_before_the_search_changes_nothing_and_says_so() -> None:
    given = broken()
    found = repaired(given, budget="30images")
    assert all(torch.equal(found.parameters[k], v) for k, v in given.module.named_parameters())
    assert "before the weights to blame were found" in found.notes[0]


def test_images_are_counted_for_each_candidate() -> None:
    few, more = (repaired(broken(), hard(), budget=f"{steps}steps").images_seen for steps in (1, 2))
    assert more - few == SMALL["population"] * 33  # 20 failures, 13 correct images
    assert repaired(broken(), hard(), budget="2000images").images_seen <= 2000 + 20 * 33


def test_where_no_candidate_is_better_the_deployed_weights_stay() -> None:
    given = deployed(Sorter().double().eval())
    collected = data(np.zeros(20, np.int64))  # this DNN classifies all of them correctly
    found = repaired(given, collected)
    assert all(torch.equal(found.parameters[k], v) for k, v in given.module.named_parameters())
    assert "no candidate was better" in found.notes[0]


def test_a_repair_without_vmap_gives_the_same_weights_and_says_so() -> None:
    given = broken()
    module = Branching().double().eval()
    module.load_state_dict(given.module.state_dict())
    at_once, one_by_one = repaired(given), repaired(deployed(module))
    for name, weights in at_once.parameters.items():
        torch.testing.assert_close(one_by_one.parameters[name], weights, rtol=1e-9, atol=1e-9)
    assert one_by_one.notes[:3] == at_once.notes
    assert "candidates were run one after the other: Branching cannot be run" in one_by_one.notes[3]
    assert one_by_one.images_seen == at_once.images_seen


class StoppedError(Exception):
    pass


def test_an_interrupted_repair_goes_on_to_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = repaired(broken(), hard(), budget="10steps")
    monkeypatch.setattr(method, "CHECKPOINT_S", 0.0)
    monkeypatch.setattr(method, "SAID_S", 0.0)

    def stop(line: str) -> None:
        if "generation 7 of" in line:
            raise StoppedError

    with pytest.raises(StoppedError):
        repaired(broken(), hard(), budget="10steps", folder=tmp_path, say=stop)
    lines: list[str] = []
    again = repaired(broken(), hard(), budget="10steps", folder=tmp_path, say=lines.append)
    assert "resumes from generation 6" in lines[0]
    assert all(torch.equal(whole.parameters[k], again.parameters[k]) for k in whole.parameters)
    assert (again.images_seen, again.gradient_steps) == (whole.images_seen + 33, whole.gradient_steps)


@pytest.mark.parametrize("norm", [True, False])
def test_it_repairs_dnns_with_and_without_batch_norm(norm: bool) -> None:
    given = deployed(block(norm=norm, dtype=torch.float32))
    before = {k: v.clone() for k, v in given.module.state_dict().items()}
    labels_N = (np.asarray(given.logits(coloured(np.arange(9) % 3, 1)).argmax(1)) + 1) % 3
    collected = RepairData(
        target="snow",
        learn=Failures(**{**vars(failures(np.arange(9) % 3, 1)), "labels_N": labels_N}),
        validation=failures(np.arange(3), 2),
        clean=clean(),
    )
    found = repaired(given, collected, settings={"generations": 2, "population": 6})
    assert found.first_not_finite() is None
    assert found.buffers.keys() == dict(given.module.named_buffers()).keys()
    assert all(torch.equal(v, before[k]) for k, v in given.module.state_dict().items())


def test_few_failures_may_be_used() -> None:
    found = repaired(broken(), settings={"max_failures": 5}, budget="1steps")
    assert found.images_seen < 400


def test_a_dnn_without_dense_or_convolution_layers_is_refused() -> None:
    module = nn.Sequential(nn.Flatten(), nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)))
    with pytest.raises(ConfigError, match="dense and convolution layers"):
        get_method("arachne").check(module, method_settings("arachne", {}))


def test_settings_that_cannot_work_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"scale_low=0\.9 is above"):
        get_method("arachne").check(
            Sorter(), method_settings("arachne", {"scale_low": 0.9, "scale_high": 0.6})
        )
    with pytest.raises(ConfigError, match=r"did you mean 'methods\.arachne\.population'"):
        method_settings("arachne", {"populations": 10})


def test_no_failures_and_nothing_right_are_refused() -> None:
    with pytest.raises(DataError, match="learning part of D_collect has none"):
        repaired(broken(), data(np.empty(0, np.int64)))
    wrong = CleanImages(images_NHWC=clean().images_NHWC, labels_N=(clean().labels_N + 1) % 3)
    collected = RepairData(target="snow", learn=data().learn, validation=data().validation, clean=wrong)
    with pytest.raises(DataError, match=r"it classifies none of the \d+ clean training images correctly"):
        repaired(deployed(Sorter().double().eval()), collected)


def test_settings_and_the_repaired_model_can_be_pickled() -> None:
    settings = method_settings("arachne", {"population": 7})
    assert pickle.loads(pickle.dumps(settings)) == settings
    found = pickle.loads(pickle.dumps(repaired(broken(), budget="1steps")))
    assert found.method == "arachne"
