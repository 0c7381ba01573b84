"""The state of a DNN in training: weights, optimizer, running average and best epoch, saved in one checkpoint file."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from metarepair.config.pretraining import PretrainConfig
from metarepair.meta_training.outer import load_optimizer_state, optimizer_state
from metarepair.models.build import read_tensors, save_weights
from tasks.storage.paths import Place

CHECKPOINT = "training.safetensors"


class TrainedWeights:
    """A module's parameters under an optimizer, their exponential moving average, and the best average so far."""

    def __init__(self, module: nn.Module, config: PretrainConfig) -> None:
        self.module, self.config = module, config
        self.parameters: dict[str, Tensor] = {k: p for k, p in module.named_parameters() if p.requires_grad}
        self.optimizer = _build_optimizer(self.parameters, config)
        self.average = _copy(module.state_dict())
        self.best: dict[str, Tensor] = {}
        self.best_epoch, self.best_accuracy, self.epochs_done = 0, -math.inf, 0
        self.core_seconds = 0.0  # of all workers

    def set_rate(self, rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def gradients(self) -> list[Tensor]:
        """Return the gradient of every parameter, zeros for one that the loss does not depend on."""
        for parameter in self.parameters.values():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        return [p.grad for p in self.parameters.values() if p.grad is not None]

    def statistics(self) -> list[Tensor]:
        """Return the floating-point buffers that forward passes update, such as running means of batch norms."""
        return [b for b in self.module.buffers() if b.is_floating_point()]

    def step(self) -> None:
        """Take one step of the optimizer, and update the average."""
        self.optimizer.step()
        for key, value in self.module.state_dict().items():
            if value.is_floating_point():
                self.average[key].lerp_(value, 1 - self.config.ema_decay)
            else:
                self.average[key].copy_(value)

    def epoch_done(self, validation_accuracy: float) -> None:
        """Count the epoch, and keep the average as the best so far unless an earlier one was better."""
        self.epochs_done += 1
        if self.config.keep == "best" and validation_accuracy >= self.best_accuracy:
            self.best, self.best_epoch = _copy(self.average), self.epochs_done
            self.best_accuracy = validation_accuracy

    def kept(self) -> Mapping[str, Tensor]:
        """Return the weights to deploy."""
        return self.best if self.config.keep == "best" else self.average

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Give the module the averaged weights inside the block."""
        trained = _copy(self.module.state_dict())
        self.module.load_state_dict(self.average)
        try:
            yield
        finally:
            self.module.load_state_dict(trained)


def _build_optimizer(parameters: Mapping[str, Tensor], config: PretrainConfig) -> torch.optim.Optimizer:
    if config.optimizer == "sgd":
        return torch.optim.SGD(
            parameters.values(), lr=config.rate, momentum=0.9, nesterov=True, weight_decay=config.weight_decay
        )
    # No weight decay on biases and scales of norms (Liu et al. 2022, as in timm).
    groups = [
        {"params": [p for p in parameters.values() if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters.values() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=config.rate)


def _copy(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k: v.detach().clone() for k, v in state.items()}


def save_checkpoint(folder: Place, weights: TrainedWeights) -> None:
    """Write the state as one file, replaced as a whole, so a killed training resumes from the end of an epoch."""
    groups: dict[str, Mapping[str, Tensor]] = {
        "model": weights.module.state_dict(),
        "average": weights.average,
        "best": weights.best,
        "optimizer": optimizer_state(weights.optimizer, weights.parameters),
        "count": {
            "epochs_done": torch.tensor(weights.epochs_done),
            "best_epoch": torch.tensor(weights.best_epoch),
            "best_accuracy": torch.tensor(weights.best_accuracy, dtype=torch.float64),
            "core_seconds": torch.tensor(weights.core_seconds, dtype=torch.float64),
        },
    }
    tensors = {f"{group}.{key}": value for group, state in groups.items() for key, value in state.items()}
    save_weights(folder / CHECKPOINT, tensors, {})


def load_checkpoint(folder: Place, weights: TrainedWeights) -> None:
    """Load what `save_checkpoint` wrote; do nothing if there is no file."""
    if not (folder / CHECKPOINT).exists():
        return
    groups: dict[str, dict[str, Tensor]] = {"best": {}}
    for name, value in read_tensors(folder / CHECKPOINT).items():
        group, _, key = name.partition(".")
        groups.setdefault(group, {})[key] = value
    weights.module.load_state_dict(groups["model"])
    for key, average in weights.average.items():
        average.copy_(groups["average"][key])
        if groups["best"]:
            weights.best[key] = groups["best"][key].to(average.device)
    load_optimizer_state(weights.optimizer, weights.parameters, groups["optimizer"])
    weights.epochs_done = int(groups["count"]["epochs_done"])
    weights.best_epoch = int(groups["count"]["best_epoch"])
    weights.best_accuracy = float(groups["count"]["best_accuracy"])
    weights.core_seconds = float(groups["count"].get("core_seconds", 0.0))
