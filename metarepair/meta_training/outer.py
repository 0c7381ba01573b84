"""The outer step of meta-training: the optimizer, the schedules of its rate, order and loss, and its state as tensors.

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
    """The optimizer that the settings name, over all tensors of `parameters` in their order."""
    return make_optimizer(
        settings.outer_optimizer, list(parameters.values()), settings.outer_options, lr=settings.outer_rate
    )


def outer_step(optimizer: Optimizer, parameters: State, gradients: State, rate: float) -> None:
    """Take one step of the optimizer at `rate`; `parameters` change in place (lines 10-11)."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    for key, parameter in parameters.items():
        parameter.grad = gradients[key]
    optimizer.step()


def all_finite(state: State) -> bool:
    """Whether no tensor contains NaN or infinity. Waits for the device only once."""
    return bool(torch.stack([v.isfinite().all() for v in state.values()]).all())


def outer_rate(settings: TrainConfig, episode: float) -> float:
    """The rate of an episode: a linear warm-up, then the decay over the remaining episodes.

    Episodes are counted from 0; here and below, they may be fractions, where processor time measures them.
    """
    if episode < settings.warmup_episodes:
        return settings.outer_rate * min(1.0, (episode + 1) / settings.warmup_episodes)
    left = max(settings.episodes - settings.warmup_episodes, 1)
    passed = (episode - settings.warmup_episodes) / left
    falls = {"constant": 1.0, "linear": 1 - passed, "cosine": 0.5 * (1 + math.cos(math.pi * passed))}
    return settings.outer_rate * falls[settings.outer_decay]


def outer_order(settings: TrainConfig, episode: float) -> Order:
    """The derivative order of an episode (counted from 0)."""
    return "first" if episode < settings.first_order_episodes else settings.order


def outer_loss(settings: TrainConfig, episode: float, steps: int) -> OuterLoss:
    """The outer loss of an episode (counted from 0).

    In episode e of the E multi-step episodes, each of the K inner steps but the last has the weight (1 − e/E)/K. The
    last step has the remaining weight.
    """
    beside = settings.query.beside if settings.query.failures else 0.0  # else all images are the query
    if episode >= settings.multi_step_episodes:
        return OuterLoss(clean_weight=beside)
    early = (1 - episode / settings.multi_step_episodes) / steps
    weights = (early,) * (steps - 1)
    return OuterLoss(clean_weight=beside, step_weights=(*weights, 1 - sum(weights)))


def optimizer_state(optimizer: Optimizer, parameters: State) -> State:
    """The tensors that the optimizer keeps for every parameter, named `field.parameter`."""
    return {
        f"{field}.{key}": value
        for key, parameter in parameters.items()
        for field, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


def load_optimizer_state(optimizer: Optimizer, parameters: State, state: State) -> None:
    """Restore what `optimizer_state` returned."""
    for name, value in state.items():
        field, _, key = name.partition(".")
        device = torch.device("cpu") if field == "step" else parameters[key].device
        optimizer.state[parameters[key]][field] = value.to(device)
