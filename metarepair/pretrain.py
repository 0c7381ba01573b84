"""Clean training split in, the weights of a DNN to deploy out.

The paper picks the checkpoint by the test split (Sec. 5.1.4); ours never looks at it: the weights are the
exponential moving average after the last epoch, and a part of the training split is held out to be watched.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metarepair.config import ModelConfig, PretrainConfig
from metarepair.models.build import DeployedModel, build_model, read_tensors, save_weights
from metarepair.models.preprocessing import mean_and_std
from tasks.datasets import Dataset, DatasetInfo
from tasks.errors import ConfigError, DivergedError
from tasks.keys import keyed_generator
from tasks.storage import Place

# B images, C H W, K classes


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """One line of the training log; accuracies are fractions."""

    epoch: int
    loss: float
    validation_accuracy: float
    seconds: float


def pretrain(
    model: ModelConfig,
    data: Dataset,
    info: DatasetInfo,
    config: PretrainConfig,
    *,
    seed: int,
    device: torch.device,
    folder: Place,
    on_epoch: Callable[[Epoch], None],
) -> DeployedModel:
    """Trains the DNN that `model` names on `data`, writing a checkpoint in `folder` after each epoch; goes on from it.

    SGD with Nesterov momentum, one-cycle cosine with linear warm-up, flips and shifts, label smoothing, EMA.
    Raises DivergedError when the loss is not finite.
    """
    torch.manual_seed(seed)
    deployed = _untrained(model, info, device)
    module = deployed.module
    rows = keyed_generator("pretrain-split", seed).permutation(len(data.labels_N))
    held_out = round(len(rows) * config.validation_fraction)
    validation, training = rows[:held_out], rows[held_out:]
    optimizer = torch.optim.SGD(
        module.parameters(), lr=config.rate, momentum=0.9, nesterov=True, weight_decay=config.weight_decay
    )
    average = {k: v.detach().clone() for k, v in module.state_dict().items()}
    first = _resume(folder, module, optimizer, average)
    steps = len(training) // config.batch_size
    if steps == 0:
        raise ConfigError(
            f"pretrain.batch_size={config.batch_size} is more than the {len(training)} images to train on. Lower it."
        )
    for epoch in range(first, config.epochs):
        started = time.monotonic()
        total = 0.0
        for step, batch in enumerate(_batches(training, config.batch_size, seed, epoch)):
            _set_rate(optimizer, config, (epoch * steps + step) / (config.epochs * steps))
            images = augment(deployed.normalise(data.images(batch)), config.shift, seed, epoch, step)
            labels = torch.from_numpy(data.labels_N[batch]).to(device)
            total += _step(module, optimizer, images, labels, config.label_smoothing, epoch)
            _follow(average, module, config.ema_decay)
        _save(folder, module, optimizer, average, epoch + 1)
        accuracy, seconds = _validate(deployed, average, data, validation), time.monotonic() - started
        on_epoch(Epoch(epoch=epoch + 1, loss=total / steps, validation_accuracy=accuracy, seconds=seconds))
    module.load_state_dict(average)
    module.eval()
    return deployed


def _untrained(model: ModelConfig, info: DatasetInfo, device: torch.device) -> DeployedModel:
    """With the stem, the input size and the normalisation that it will be deployed with."""
    module = build_model(model.name, len(info.classes), stem=model.stem).to(device)
    mean, std = model.mean, model.std
    if mean is None or std is None:
        usual_mean, usual_std = mean_and_std(module, model.name, info, model.normalisation)
        mean, std = mean or usual_mean, std or usual_std
    return DeployedModel(
        name=model.name,
        module=module,
        num_classes=len(info.classes),
        mean=mean,
        std=std,
        input_size=model.input_size,
    )


def _batches(rows: np.ndarray, batch_size: int, seed: int, epoch: int) -> Iterator[np.ndarray]:
    order = rows[keyed_generator("pretrain-order", seed, epoch).permutation(len(rows))]
    for start in range(0, len(order) - batch_size + 1, batch_size):
        yield order[start : start + batch_size]


def augment(images_BCHW: Tensor, shift: int, seed: int, epoch: int, step: int) -> Tensor:
    """Random horizontal flips and shifts by up to `shift` pixels (padding reflected), per image."""
    generator = keyed_generator("pretrain-augment", seed, epoch, step)
    batch, _, height, width = images_BCHW.shape
    padded = F.pad(images_BCHW, (shift,) * 4, mode="reflect")
    dy, dx = (torch.from_numpy(generator.integers(0, 2 * shift + 1, batch)) for _ in range(2))
    columns = torch.arange(width).expand(batch, width)
    flipped = torch.from_numpy(generator.random(batch) < 0.5)[:, None]
    columns = torch.where(flipped, width - 1 - columns, columns) + dx[:, None]
    rows = torch.arange(height)[None] + dy[:, None]
    index = torch.arange(batch)[:, None, None]
    shifted = padded.permute(0, 2, 3, 1)[index, rows[:, :, None], columns[:, None, :]]
    return shifted.permute(0, 3, 1, 2)


def _set_rate(optimizer: torch.optim.Optimizer, config: PretrainConfig, progress: float) -> None:
    warm = config.warmup_fraction
    cosine = 0.5 * (1 + math.cos(math.pi * (progress - warm) / (1 - warm)))
    factor = progress / warm if progress < warm else cosine
    for group in optimizer.param_groups:
        group["lr"] = config.rate * factor


def _step(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    labels: Tensor,
    smoothing: float,
    epoch: int,
) -> float:
    module.train()
    loss = F.cross_entropy(module(images), labels, label_smoothing=smoothing)
    value = loss.item()
    if not math.isfinite(value):
        raise DivergedError(
            f"The pretraining loss became {value} in epoch {epoch + 1}. Lower pretrain.rate and run again; "
            "the last epoch's checkpoint is kept, `--restart` begins anew."
        )
    optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    optimizer.step()
    return value


def _follow(average: dict[str, Tensor], module: nn.Module, decay: float) -> None:
    for key, value in module.state_dict().items():
        if value.is_floating_point():
            average[key].lerp_(value, 1 - decay)
        else:
            average[key].copy_(value)


def _validate(deployed: DeployedModel, average: dict[str, Tensor], data: Dataset, rows: np.ndarray) -> float:
    if len(rows) == 0:
        return math.nan
    kept = {k: v.detach().clone() for k, v in deployed.module.state_dict().items()}
    deployed.module.load_state_dict(average)
    predicted = deployed.logits(data.images(rows)).argmax(1).numpy()
    deployed.module.load_state_dict(kept)
    return float((predicted == data.labels_N[rows]).mean())


def _save(
    folder: Place,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: dict[str, Tensor],
    epochs_done: int,
) -> None:
    """One file with weights, average and momentum, replaced as a whole."""
    names = [name for name, _ in module.named_parameters()]
    momentum = {
        f"momentum.{name}": optimizer.state[parameter]["momentum_buffer"]
        for name, parameter in zip(names, module.parameters(), strict=True)
    }
    state = {f"model.{k}": v for k, v in module.state_dict().items()}
    state |= {f"average.{k}": v for k, v in average.items()} | momentum
    state["epochs_done"] = torch.tensor(epochs_done)
    save_weights(folder / "checkpoint.safetensors", state, {})


def _resume(
    folder: Place, module: nn.Module, optimizer: torch.optim.Optimizer, average: dict[str, Tensor]
) -> int:
    path = folder / "checkpoint.safetensors"
    if not path.exists():
        return 0
    state = read_tensors(path)
    module.load_state_dict({k.removeprefix("model."): v for k, v in state.items() if k.startswith("model.")})
    for key in average:
        average[key].copy_(state[f"average.{key}"])
    for name, parameter in module.named_parameters():
        optimizer.state[parameter]["momentum_buffer"] = state[f"momentum.{name}"].to(parameter.device)
    return int(state["epochs_done"])
