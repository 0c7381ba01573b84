"""The meta-gradient against central finite differences in float64, and its modes against each other."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor, nn

from metarepair.inner import Batch, BatchNormMode, FunctionalNet, InnerRule, State, adapt
from metarepair.meta_gradient import (
    Memory,
    TaskBatch,
    flatten,
    pairwise_sum,
    task_gradient,
    unflatten,
)

MODES: tuple[BatchNormMode, ...] = ("frozen", "adapt", "batch")
MEMORIES: tuple[Memory, ...] = ("graph", "recompute")


def smooth_net() -> nn.Module:
    """Convolution, batch norm with uneven statistics, a smooth activation, a head."""
    torch.manual_seed(3)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.Tanh(),
        nn.AvgPool2d(4),
        nn.Flatten(),
        nn.Linear(16, 3),
    ).double()
    norm = net[1]
    assert isinstance(norm, nn.BatchNorm2d)
    norm.running_mean = torch.randn(4, dtype=torch.float64) * 0.2
    norm.running_var = torch.rand(4, dtype=torch.float64) + 0.5
    return net


def batch(seed: int, size: int = 6) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(size, 3, 8, 8, dtype=torch.float64, generator=generator)
    return Batch(images_BCHW=images, labels_B=torch.randint(0, 3, (size,), generator=generator))


def task(clean: bool = False) -> TaskBatch:
    return TaskBatch(support=batch(1), query=batch(2), clean=batch(4) if clean else None)


def functional(mode: BatchNormMode, steps: int = 3) -> FunctionalNet:
    return FunctionalNet(
        smooth_net(), InnerRule(steps=steps, rate=0.3, batch_norm=mode, batch_norm_momentum=0.4)
    )


def recorded_buffers(net: FunctionalNet, parameters: State) -> State:
    return adapt(net, parameters, net.buffers(), task().support)[1]


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def finite_differences(net: FunctionalNet, vector_P: Tensor, clean_weight: float, replayed: State) -> Tensor:
    """Central differences of the query loss after adaptation, one parameter at a time."""
    step, like = 1e-5, net.parameters()
    slopes = []
    for index in range(len(vector_P)):
        losses = []
        for sign in (1, -1):
            moved = vector_P.clone()
            moved[index] += sign * step
            result = task_gradient(
                net,
                unflatten(moved, like),
                net.buffers(),
                task(clean_weight > 0),
                order="first",  # the loss is the same; its gradient is not used here
                clean_weight=clean_weight,
                replayed_buffers=replayed,
            )
            losses.append(result.loss)
        slopes.append((losses[0] - losses[1]) / (2 * step))
    return torch.tensor(slopes, dtype=torch.float64)


@pytest.mark.parametrize("clean_weight", [0.0, 0.3])
@pytest.mark.parametrize("mode", MODES)
def test_both_memory_modes_agree_with_finite_differences(mode: BatchNormMode, clean_weight: float) -> None:
    net = functional(mode)
    parameters = net.parameters()
    replayed = recorded_buffers(net, parameters)
    truth = finite_differences(net, flatten(parameters), clean_weight, replayed)
    for memory in MEMORIES:
        result = task_gradient(
            net,
            parameters,
            net.buffers(),
            task(clean_weight > 0),
            memory=memory,
            clean_weight=clean_weight,
            replayed_buffers=replayed,
        )
        assert relative(flatten(result.gradient), truth) < 1e-6


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_graph_and_recompute_agree_to_rounding(mode: BatchNormMode, steps: int) -> None:
    net = functional(mode, steps)
    results = [
        task_gradient(net, net.parameters(), net.buffers(), task(), memory=memory) for memory in MEMORIES
    ]
    assert relative(flatten(results[0].gradient), flatten(results[1].gradient)) < 1e-12
    assert results[0].loss == pytest.approx(results[1].loss, rel=1e-14)


@pytest.mark.parametrize("mode", MODES)
def test_first_order_differs_measurably_from_second_order(mode: BatchNormMode) -> None:
    net = functional(mode)
    first, second = (
        flatten(task_gradient(net, net.parameters(), net.buffers(), task(), order=order).gradient)
        for order in ("first", "second")
    )
    assert relative(first, second) > 0.02


def test_first_order_is_the_query_gradient_at_the_adapted_parameters() -> None:
    net = functional("adapt")
    adapted, statistics = adapt(net, net.parameters(), net.buffers(), task().support)
    leaves = {k: v.clone().requires_grad_() for k, v in adapted.items()}
    loss, _ = net.query(leaves, statistics, task().query)
    expected = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, list(leaves.values()))])
    found = task_gradient(net, net.parameters(), net.buffers(), task(), order="first")
    assert relative(flatten(found.gradient), expected) < 1e-12


def test_adapt_moves_statistics_and_frozen_leaves_them() -> None:
    for mode, moves in (("frozen", False), ("adapt", True), ("batch", False)):
        net = functional(mode)  # type: ignore[arg-type]  # the loop's strings are modes
        _, after = adapt(net, net.parameters(), net.buffers(), task().support)
        before = net.buffers()
        assert torch.equal(after["1.running_mean"], before["1.running_mean"]) != moves


def test_a_task_leaks_nothing_into_the_module() -> None:
    net = functional("adapt")
    before = {k: v.clone() for k, v in net.module.state_dict().items()}
    task_gradient(net, net.parameters(), net.buffers(), task())
    assert all(torch.equal(v, before[k]) for k, v in net.module.state_dict().items())
    assert not any(m.training for m in net.module.modules())


def test_a_parameter_that_the_loss_does_not_reach_has_gradient_zero() -> None:
    module = smooth_net()
    module.unused = nn.Parameter(torch.ones(2, dtype=torch.float64))
    net = FunctionalNet(module, InnerRule(steps=2, rate=0.1, batch_norm="frozen"))
    for memory in MEMORIES:
        gradient = task_gradient(net, net.parameters(), net.buffers(), task(), memory=memory).gradient
        assert torch.equal(gradient["unused"], torch.zeros(2, dtype=torch.float64))


def test_queries_in_adapt_mode_do_not_depend_on_their_batch() -> None:
    net = functional("adapt")
    whole, part = batch(2, size=6), batch(2, size=6)
    alone = Batch(images_BCHW=part.images_BCHW[:1], labels_B=part.labels_B[:1])
    together = net.logits(net.parameters(), net.buffers(), whole.images_BCHW)[:1]
    assert torch.allclose(
        net.logits(net.parameters(), net.buffers(), alone.images_BCHW), together, atol=1e-14
    )


def test_flatten_and_unflatten_are_inverse() -> None:
    state = functional("frozen").parameters()
    back = unflatten(flatten(state), state)
    assert all(torch.equal(back[k], v) for k, v in state.items())


def test_pairwise_sum_of_contiguous_halves_has_the_same_bits() -> None:
    generator = torch.Generator().manual_seed(0)
    terms = list(torch.randn(8, 1000, generator=generator).unbind())
    halves = pairwise_sum(terms[:4]) + pairwise_sum(terms[4:])
    assert torch.equal(pairwise_sum(terms), halves)
    assert torch.allclose(pairwise_sum(terms), torch.stack(terms).sum(0), atol=1e-5)


def test_an_attention_net_has_a_second_order_gradient() -> None:
    net = timm.create_model("test_vit", num_classes=3)
    size = net.default_cfg["input_size"][1]
    functional_net = FunctionalNet(net, InnerRule(steps=1, rate=0.1, batch_norm="frozen"))
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(4, 3, size, size, generator=generator)
    batch_ = Batch(images_BCHW=images, labels_B=torch.tensor([0, 1, 2, 0]))
    parts = TaskBatch(support=batch_, query=batch_)
    first, second = (
        flatten(
            task_gradient(
                functional_net, functional_net.parameters(), functional_net.buffers(), parts, order=order
            ).gradient
        )
        for order in ("first", "second")
    )
    assert relative(first, second) > 1e-3
