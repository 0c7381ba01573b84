"""The outer step of meta-training: optimizer by name, schedule of its rate, and its state as tensors.

Source: paper Algorithm 1, lines 10-11; Antoniou et al. 2019, Sec. 4 (the annealing of order and multi-step loss).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.optim import Optimizer

from metarepair.config.optimizers import make_optimizer
from metarepair.config.training import TrainConfig
from metarepair.engine.meta_gradient import Order, OuterLoss
from metarepair.engine.vectors import State


def build_optimizer(settings: TrainConfig, parameters: State) -> Optimizer:
    """The optimizer that the settings name, over all tensors in their order."""
    return make_optimizer(
        settings.outer_optimizer, list(parameters.values()), settings.outer_options, lr=settings.outer_rate
    )


def outer_step(optimizer: Optimizer, parameters: State, gradients: State, rate: float) -> None:
    """One step of the optimizer at `rate`."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    for key, parameter in parameters.items():
        parameter.grad = gradients[key]
    optimizer.step()


def all_finite(state: State) -> bool:
    """Whether there is no NaN and no infinity in any tensor; one wait for the device."""
    return bool(torch.stack([v.isfinite().all() for v in state.values()]).all())


def outer_rate(settings: TrainConfig, episode: int) -> float:
    """The rate of an episode (from 0): a linear rise, then the decay over what is left."""
    if episode < settings.warmup_episodes:
        return settings.outer_rate * (episode + 1) / settings.warmup_episodes
    left = max(settings.episodes - settings.warmup_episodes, 1)
    passed = (episode - settings.warmup_episodes) / left
    falls = {"constant": 1.0, "linear": 1 - passed, "cosine": 0.5 * (1 + math.cos(math.pi * passed))}
    return settings.outer_rate * falls[settings.outer_decay]


def outer_order(settings: TrainConfig, episode: int) -> Order:
    """The derivative order of an episode (from 0)."""
    return "first" if episode < settings.first_order_episodes else settings.order


def outer_loss(settings: TrainConfig, episode: int, steps: int) -> OuterLoss:
    """The loss of an episode (from 0): while multi-step, each of the first steps weighs (1 − e/E)/K."""
    if episode >= settings.multi_step_episodes:
        return OuterLoss(clean_weight=settings.clean_weight)
    early = (1 - episode / settings.multi_step_episodes) / steps
    weights = (early,) * (steps - 1)
    return OuterLoss(clean_weight=settings.clean_weight, step_weights=(*weights, 1 - sum(weights)))


def optimizer_state(optimizer: Optimizer, parameters: State) -> State:
    """What the optimizer keeps of every parameter, as `field.parameter`."""
    return {
        f"{field}.{key}": value
        for key, parameter in parameters.items()
        for field, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


def load_optimizer_state(optimizer: Optimizer, parameters: State, state: State) -> None:
    """The inverse of `optimizer_state`."""
    for name, value in state.items():
        field, _, key = name.partition(".")
        place = torch.device("cpu") if field == "step" else parameters[key].device
        optimizer.state[parameters[key]][field] = value.to(place)
