"""Test the meta-gradient against central finite differences in float64, and its modes against each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metarepair.engine.inner import FunctionalNet, adapt
from metarepair.engine.memory import Memory
from metarepair.engine.meta_gradient import OuterLoss, TaskGradient, task_gradient
from metarepair.engine.types import Batch, BatchNormMode, InnerRule, TaskBatch
from metarepair.engine.vectors import State, flatten, pairwise_sum, unflatten

MODES: tuple[BatchNormMode, ...] = ("frozen", "adapt", "batch")
MEMORIES: tuple[Memory | int, ...] = ("graph", "recompute", 1)
DOUBLE: Any = {"dtype": torch.float64}


class LayerScale(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.linspace(0.5, 1.5, channels))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return x_BCHW * self.scale[:, None, None]


def uneven(norm: nn.BatchNorm2d) -> nn.BatchNorm2d:
    """Return a batch norm whose stored statistics differ from those of any batch."""
    norm.running_mean = torch.randn(norm.num_features) * 0.2
    norm.running_var = torch.rand(norm.num_features) + 0.5
    return norm


def convolution_net() -> nn.Module:
    body = (nn.Conv2d(3, 4, 3, padding=1), uneven(nn.BatchNorm2d(4)), nn.Tanh(), nn.AvgPool2d(4))
    return nn.Sequential(*body, nn.Flatten(), nn.Linear(16, 3))


def depthwise_net() -> nn.Module:
    body = (nn.Conv2d(3, 6, 3, padding=1, groups=3), uneven(nn.BatchNorm2d(6)), nn.SiLU(), nn.Conv2d(6, 4, 1))
    return nn.Sequential(*body, nn.Tanh(), nn.AvgPool2d(4), nn.Flatten(), nn.Linear(16, 3))


def layer_norm_net() -> nn.Module:
    body = (
        nn.Conv2d(3, 4, 4, stride=4),
        nn.LayerNorm([4, 2, 2]),
        nn.GELU(),
        LayerScale(4),
        nn.GroupNorm(2, 4),
    )
    return nn.Sequential(*body, nn.Flatten(), nn.Linear(16, 3))


NETS: dict[str, Callable[[], nn.Module]] = {
    "convolution": convolution_net,
    "depthwise": depthwise_net,
    "layer_norm": layer_norm_net,
}
RULES: dict[str, dict[str, Any]] = {
    "sgd": {},
    "momentum": {"momentum": 0.8},
    "decay": {"weight_decay": 0.05},
    "momentum and decay": {"momentum": 0.8, "weight_decay": 0.05},
    "learned rates": {"learned_rates": True},
    "learned rates and momentum": {"learned_rates": True, "momentum": 0.8, "weight_decay": 0.05},
    "head": {"parts": ("head",)},
    "head with momentum": {"parts": ("head",), "momentum": 0.8, "weight_decay": 0.05},
    "pattern": {"parts": ("0.*", "5.bias")},
}


def batch(seed: int, size: int = 6) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(size, 3, 8, 8, generator=generator, **DOUBLE)
    return Batch(images_BCHW=images, labels_B=torch.randint(0, 3, (size,), generator=generator))


def task(*, clean: bool = False) -> TaskBatch:
    return TaskBatch(support=batch(1), query=batch(2), clean=batch(4) if clean else None)


def functional(net: str = "convolution", mode: BatchNormMode = "adapt", **rule: Any) -> FunctionalNet:
    torch.manual_seed(3)
    settings = {"steps": 3, "rate": 0.3, "batch_norm_momentum": 0.4} | rule
    return FunctionalNet(NETS[net]().double(), InnerRule(batch_norm=mode, **settings))


def uneven_factors(net: FunctionalNet) -> State:
    """Return learned rate factors that differ by tensor and step, or {} if the rule learns no rates."""
    if not net.rule.learned_rates:
        return {}
    generator = torch.Generator().manual_seed(9)
    ones = net.rate_factors()
    return {k: v + 0.5 * torch.rand(v.shape, generator=generator, **DOUBLE) for k, v in ones.items()}


def recorded(net: FunctionalNet, factors: State) -> dict[int, State]:
    """Return the buffers after each number of steps, starting from the module's own parameters."""
    found = {}
    for steps in range(1, net.rule.steps + 1):
        shorter = FunctionalNet(net.module, replace(net.rule, steps=steps))
        found[steps] = adapt(shorter, net.parameters(), net.buffers(), task().support, factors)[1]
    return found


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def all_of(found: TaskGradient) -> Tensor:
    return flatten(found.gradient | {f"factor {k}": v for k, v in found.factors.items()})


def directions(size: int, count: int | None) -> Iterator[Tensor]:
    """Return every axis, or `count` random unit vectors."""
    if count is None:
        yield from torch.eye(size, **DOUBLE)
        return
    random = torch.randn(count, size, generator=torch.Generator().manual_seed(5), **DOUBLE)
    yield from random / random.norm(dim=1, keepdim=True)


def worst_error(net: FunctionalNet, outer: OuterLoss | None = None, *, count: int | None = None) -> float:
    """Return the largest relative distance, over all memory modes, of the gradient from central differences."""
    factors, outer = uneven_factors(net), outer or OuterLoss()
    start = net.parameters() | {f"factor {k}": v for k, v in factors.items()}
    replayed, parts = recorded(net, factors), task(clean=outer.clean_weight > 0)

    def at(vector_P: Tensor, **options: Any) -> TaskGradient:
        state = unflatten(vector_P, start)
        parameters = {k: state.pop(k) for k in net.parameters()}
        moved = {k.removeprefix("factor "): v for k, v in state.items()}
        return task_gradient(
            net,
            parameters,
            net.buffers(),
            parts,
            factors=moved,
            outer=outer,
            replayed_buffers=replayed,
            **options,
        )

    middle, step = flatten(start), 1e-5
    axes = list(directions(len(middle), count))
    # The loss does not depend on the order; first order is the fastest way to compute it.
    slopes = [
        (at(middle + step * d, order="first").loss - at(middle - step * d, order="first").loss) / (2 * step)
        for d in axes
    ]
    truth = torch.tensor(slopes, **DOUBLE)
    found = [torch.stack(axes) @ all_of(at(middle, memory=memory)) for memory in MEMORIES]
    return max(relative(projected, truth) for projected in found)


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("mode", MODES)
def test_every_entry_agrees_with_finite_differences(net: str, mode: BatchNormMode) -> None:
    assert worst_error(functional(net, mode)) < 1e-6


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("mode", MODES)
def test_any_number_of_steps_agrees_with_finite_differences(
    net: str, mode: BatchNormMode, steps: int
) -> None:
    assert worst_error(functional(net, mode, steps=steps), count=8) < 1e-6


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_every_inner_rule_agrees_with_finite_differences(rule: str, mode: BatchNormMode, steps: int) -> None:
    assert worst_error(functional("convolution", mode, steps=steps, **RULES[rule]), count=8) < 1e-6


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("mode", MODES)
def test_clean_and_multi_step_losses_agree_with_finite_differences(rule: str, mode: BatchNormMode) -> None:
    net = functional("depthwise", mode, **RULES[rule] | {"parts": ("*",)})
    outer = OuterLoss(clean_weight=0.3, step_weights=(0.2, 0.3, 0.5))
    assert worst_error(net, outer, count=8) < 1e-6


def test_dropout_agrees_with_finite_differences() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(192, 12), nn.Dropout(0.4), nn.Tanh(), nn.Linear(12, 3))
    net = FunctionalNet(module.double(), InnerRule(steps=2, rate=0.2, batch_norm="frozen", dropout=True))
    assert worst_error(net, count=12) < 1e-6


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_memory_modes_agree_to_rounding(rule: str, mode: BatchNormMode, steps: int) -> None:
    net = functional("convolution", mode, steps=steps, **RULES[rule])
    factors, results = uneven_factors(net), []
    for memory in ("graph", "recompute", 1, 2):
        for on_host in (False, True):
            found = task_gradient(
                net,
                net.parameters(),
                net.buffers(),
                task(),
                memory=memory,  # type: ignore[arg-type]  # the loop's strings are modes
                factors=factors,
                theta_on_host=on_host,
            )
            results.append(found)
    for other in results[1:]:
        assert relative(all_of(other), all_of(results[0])) < 1e-12
        assert other.loss == pytest.approx(results[0].loss, rel=1e-14)


@pytest.mark.parametrize("mode", MODES)
def test_first_order_differs_measurably_from_second_order(mode: BatchNormMode) -> None:
    net = functional(mode=mode)
    first, second = (
        flatten(task_gradient(net, net.parameters(), net.buffers(), task(), order=order).gradient)
        for order in ("first", "second")
    )
    assert relative(first, second) > 0.02


def test_frozen_statistics_stay_as_given_in_every_memory_mode() -> None:
    net = functional(mode="frozen")
    moved = {k: v + 0.7 if k.endswith("running_mean") else v for k, v in net.buffers().items()}
    found = [
        flatten(task_gradient(net, net.parameters(), moved, task(), memory=memory).gradient)
        for memory in MEMORIES
    ]
    own = flatten(task_gradient(net, net.parameters(), net.buffers(), task()).gradient)
    assert max(relative(other, found[0]) for other in found) < 1e-12
    assert relative(own, found[0]) > 0.01


def query_gradient(net: FunctionalNet, factors: State | None = None) -> Tensor:
    adapted, statistics = adapt(net, net.parameters(), net.buffers(), task().support, factors)
    leaves = {k: v.clone().requires_grad_() for k, v in adapted.items()}
    with net.query(leaves, statistics, task().query) as found:
        return torch.cat([g.reshape(-1) for g in torch.autograd.grad(found.loss, list(leaves.values()))])


def test_first_order_is_the_query_gradient_at_the_adapted_parameters() -> None:
    net = functional()
    found = task_gradient(net, net.parameters(), net.buffers(), task(), order="first")
    assert relative(flatten(found.gradient), query_gradient(net)) < 1e-12


def test_reptile_is_the_change_of_parameters_by_adaptation() -> None:
    net = functional(momentum=0.5)
    adapted, _ = adapt(net, net.parameters(), net.buffers(), task().support)
    found = task_gradient(net, net.parameters(), net.buffers(), task(), order="reptile")
    assert torch.equal(flatten(found.gradient), flatten(net.parameters()) - flatten(adapted))


def test_a_task_leaks_nothing_into_the_module() -> None:
    net = functional()
    before = {k: v.clone() for k, v in net.module.state_dict().items()}
    task_gradient(net, net.parameters(), net.buffers(), task())
    assert all(torch.equal(v, before[k]) for k, v in net.module.state_dict().items())
    assert not any(m.training for m in net.module.modules())


def test_a_parameter_that_the_loss_does_not_reach_has_gradient_zero() -> None:
    module = convolution_net().double()
    module.unused = nn.Parameter(torch.ones(2, dtype=torch.float64))
    net = FunctionalNet(module, InnerRule(steps=2, rate=0.1, batch_norm="frozen"))
    for memory in MEMORIES:
        gradient = task_gradient(net, net.parameters(), net.buffers(), task(), memory=memory).gradient
        assert torch.equal(gradient["unused"], torch.zeros(2, dtype=torch.float64))


def test_flatten_and_unflatten_are_inverse() -> None:
    state = functional().parameters()
    back = unflatten(flatten(state), state)
    assert all(torch.equal(back[k], v) for k, v in state.items())


def test_pairwise_sum_of_contiguous_halves_has_the_same_bits() -> None:
    generator = torch.Generator().manual_seed(0)
    terms = list(torch.randn(8, 1000, generator=generator).unbind())
    halves = pairwise_sum(terms[:4]) + pairwise_sum(terms[4:])
    assert torch.equal(pairwise_sum(terms), halves)
    assert torch.allclose(pairwise_sum(terms), torch.stack(terms).sum(0), atol=1e-5)
