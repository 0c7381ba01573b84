"""Test that the images that pass through a DNN are counted, forward and backward, whoever calls it."""

from __future__ import annotations

import copy
import pickle

import torch
from torch import nn

from metarepair.engine import Batch, FunctionalNet, InnerRule, TaskBatch, adapt, task_gradient
from metarepair.engine.passes import Passes


def dnn() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def batch(count: int) -> Batch:
    return Batch(images_BCHW=torch.randn(count, 3, 4, 4).double(), labels_B=torch.arange(count) % 3)


def counted(passes: Passes) -> tuple[int, int]:
    found = passes.forward, passes.backward
    passes.forward, passes.backward = 0, 0
    return found


def test_calls_and_derivatives_are_counted() -> None:
    module, passes = dnn(), Passes()
    handle = passes.watch(module)
    images = batch(5).images_BCHW
    with torch.no_grad():
        module(images)
    assert counted(passes) == (5, 0)
    module(images).sum().backward()
    assert counted(passes) == (5, 5)
    handle.remove()
    module(images)
    assert counted(passes) == (0, 0)


def test_the_engine_is_counted() -> None:
    """Six support and four query images, two steps: each gradient and each Hessian product is a derivative."""
    module, passes = dnn(), Passes()
    passes.watch(module)
    net, task = (
        FunctionalNet(module, InnerRule(steps=2, rate=0.1, batch_norm="frozen")),
        TaskBatch(support=batch(6), query=batch(4)),
    )
    state = net.parameters(), net.buffers()
    adapt(net, *state, task.support)
    assert counted(passes) == (12, 12)
    task_gradient(net, *state, task, order="first")
    assert counted(passes) == (12 + 4, 12 + 4)
    task_gradient(net, *state, task, order="second", memory="graph")
    assert counted(passes) == (12 + 4, 12 + 4 + 12)
    task_gradient(net, *state, task, order="second", memory="recompute")
    assert counted(passes) == (2 * 12 + 4, 2 * 12 + 4 + 12)
    net.logits(*state, task.query.images_BCHW)
    assert counted(passes) == (4, 0)


def test_a_copy_counts_in_the_same_place_until_it_is_left() -> None:
    module, passes = dnn(), Passes()
    passes.watch(module)
    whole = nn.Sequential(copy.deepcopy(module))
    whole(batch(3).images_BCHW)
    assert counted(passes) == (3, 0)
    passes.leave(whole)
    whole(batch(3).images_BCHW)
    assert counted(passes) == (0, 0)
    assert not any(part._forward_hooks for part in whole.modules())
    assert module._forward_hooks


def test_in_another_process_it_counts_for_itself() -> None:
    module, passes = dnn(), Passes()
    passes.watch(module)
    there = pickle.loads(pickle.dumps(module))
    there(batch(3).images_BCHW)
    assert counted(passes) == (0, 0)


def test_passes_of_an_uncounted_block_are_not_counted() -> None:
    module, passes = nn.Linear(3, 2), Passes()
    passes.watch(module)
    module(torch.zeros(4, 3)).sum().backward()
    with passes.uncounted():
        module(torch.zeros(5, 3)).sum().backward()
    assert (passes.forward, passes.backward) == (4, 4)
