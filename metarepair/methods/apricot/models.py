"""Train Apricot's reduced models (rDLM): DNNs of the deployed architecture, each on a subset of the clean images.

Source: Zhang & Chan 2019 (Apricot, ASE), its first step. Each model has its own subset, start and order, keyed by its
number, because models that are all alike would say nothing about a failure.

A random start calls `reset_parameters` of every module that has it. Layers therefore start as torch (or their author)
initialises them, without what the architecture's own constructor may do afterwards. Parameters that no such call
changes, such as timm's layer scale or a position embedding, are drawn from a normal distribution with the mean and
standard deviation of the deployed tensor. So only these two numbers of the tensor are used; a scalar stays as it is.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count, takewhile
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import nn
from torch.nn import functional as F

from metarepair.config.section import Positive, Rate, Section
from metarepair.data.clean_images import CleanImages
from metarepair.data.workspace import pick_device
from metarepair.engine.stateless import seeded
from metarepair.engine.vectors import State
from metarepair.methods.base import MethodContext
from metarepair.methods.budget import Budget, Limit
from metarepair.methods.examples import BatchOrder
from metarepair.models.build import DeployedModel, read_tensors, save_weights, state_hash
from metarepair.models.wrappers import copied
from tasks.errors import ConfigError, DataError, DivergedError, StageError
from tasks.keys import keyed_generator
from tasks.records import Ints
from tasks.storage.paths import Place, read_json, write_text
from tasks.storage.sealed_parts import is_untouched, missing_parts, seal

# N clean images, B images in a batch

PREPARE_FIRST = "`metarepair compare` makes them before it repairs."


class ReducedSettings(Section):
    """Settings of the reduced models; the defaults are the published numbers."""

    models: Annotated[int, Field(ge=2)] = Field(20, description="Number of reduced models.")
    per_class: Positive = Field(
        1000, description="Clean training images of each class that a model is trained on."
    )
    epochs: Positive = Field(60, description="Passes over these images; for start=deployed a few are enough.")
    batch_size: Positive = Field(128, description="Images per step.")
    rate: Rate = Field(2e-4, description="Learning rate of Adam.")
    start: Literal["random", "deployed"] = Field(
        "random",
        description="random: train from new random weights. deployed: fine-tune the deployed DNN, for large DNNs.",
    )


@dataclass(frozen=True, kw_only=True)
class ReducedModel:
    """One reduced model and its file. `recipe` is everything that it depends on except its number."""

    number: int
    folder: Place
    recipe: dict[str, Any]

    @property
    def path(self) -> Place:
        return path_of(self.folder, self.number)

    @property
    def cost_path(self) -> Place:
        """The file of what its training took, as `Budget.spent`."""
        return self.path.with_name(self.path.name + ".json")

    @property
    def identity(self) -> dict[str, Any]:
        return self.recipe | {"number": self.number}

    @property
    def generator(self) -> np.random.Generator:
        return keyed_generator("apricot-model", self.recipe["seed"], self.number)


def path_of(folder: Place, number: int) -> Place:
    """Return the file of the model `number`, from 0."""
    return folder / f"reduced-{number:03d}.safetensors"


def prepare_models(
    deployed: DeployedModel, clean: CleanImages, settings: ReducedSettings, context: MethodContext
) -> None:
    """Train the models that `context.prepared` does not have yet, each separately through `context.map`.

    The budget counts all models, including those that were there already; a limit is divided among them, and decides in
    place of the epochs. Raises ConfigError if a class has too few images, and DivergedError if a loss is not finite.
    """
    assert context.prepared is not None
    _check_classes(deployed, clean, settings)
    limit = context.budget.limit
    each = None if limit is None else replace(limit, amount=limit.amount / settings.models)
    recipe = _recipe(deployed, clean, settings, context.seed) | ({} if each is None else {"limit": str(each)})
    parts = [
        ReducedModel(number=number, folder=context.prepared, recipe=recipe)
        for number in range(settings.models)
    ]
    missing = missing_parts(parts)
    work = partial(
        _make, deployed=deployed, clean=clean, settings=settings, device=context.device, limit=each
    )
    started = time.monotonic()
    for done, (part, line) in enumerate(zip(missing, context.map(work, missing), strict=True), start=1):
        left = (time.monotonic() - started) / done * (len(missing) - done)
        context.say(f"apricot: reduced model {part.number + 1} of {len(parts)}, {line}, {left:.0f} s left")
    spent = [read_json(part.cost_path) if part.cost_path.is_file() else {} for part in parts]
    sums = {key: sum(one.get(key, 0) for one in spent) for key in context.budget.spent}
    context.budget.go_on(**sums | {"seconds": context.budget.seconds})


def load_models(
    folder: Place | None, deployed: DeployedModel, settings: ReducedSettings
) -> list[tuple[State, State]]:
    """Load parameters and buffers of every model, on the CPU.

    Raises StageError if one is missing or damaged, DataError if one belongs to another DNN or two are the same.
    """
    if folder is None:
        raise StageError(f"apricot needs its reduced models, and none are prepared: {PREPARE_FIRST}")
    paths = [path_of(folder, number) for number in range(settings.models)]
    missing = [path for path in paths if not is_untouched(path)]
    if missing:
        raise StageError(
            f"{len(missing)} of apricot's {len(paths)} reduced models are missing or damaged (first: {missing[0]}). "
            f"Delete {folder} if it exists: {PREPARE_FIRST}"
        )
    models = [_load(path, deployed.module) for path in paths]
    hashes = [state_hash(parameters | buffers) for parameters, buffers in models]
    for number, digest in enumerate(hashes):
        if hashes.index(digest) != number:
            raise DataError(
                f"{paths[number]} and {paths[hashes.index(digest)]} are the same model, and apricot learns from how "
                "its models differ. Delete both, and prepare again."
            )
    return models


def reinitialise(module: nn.Module) -> list[str]:
    """Give the module new random weights in place, drawn from torch's generator.

    Parameters with requires_grad=False stay as they are. Returns the names of the parameters that no module resets.
    """
    before = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    for part in reversed(list(module.modules())):  # parents last: a parent may initialise its children itself
        reset = getattr(part, "reset_parameters", None) or getattr(part, "_reset_parameters", None)
        if callable(reset):
            reset()
    drawn = []
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            old = before[name]
            if not parameter.requires_grad:
                parameter.copy_(old)
                continue
            deviation = float(old.std(correction=0))
            # An unchanged constant tensor may have been reset to the same zeros or ones; a draw would not change it.
            if deviation > 0 and torch.equal(parameter, old):
                parameter.normal_(float(old.mean()), deviation)
                drawn.append(name)
    return drawn


def subset(labels_N: Ints, *, per_class: int, generator: np.random.Generator) -> Ints:
    """Return the rows of a random subset with `per_class` images of every class."""
    chosen = [
        generator.choice(np.flatnonzero(labels_N == label), per_class, replace=False)
        for label in np.unique(labels_N)
    ]
    return np.sort(np.concatenate(chosen))


def _make(
    part: ReducedModel,
    *,
    deployed: DeployedModel,
    clean: CleanImages,
    settings: ReducedSettings,
    device: str,
    limit: Limit | None,
) -> str:
    """Train one model and save it. Returns the end of a log line: its loss and how it was initialised."""
    generator = part.generator
    rows_N = subset(clean.labels_N, per_class=settings.per_class, generator=generator)
    module, seed = copied(deployed.module).to(pick_device(device)), int(generator.integers(2**63))
    deployed, budget = replace(deployed, module=module), Budget(limit)  # images go to the module's device
    budget.passes.watch(module)
    drawn: Sequence[str] = ()
    with seeded(deployed.device, seed):
        if settings.start == "random":
            drawn = reinitialise(module)
        loss = _train(module, deployed, clean, rows_N, settings, budget, seed=seed)
    if not math.isfinite(loss):
        raise DivergedError(
            f"apricot's reduced model {part.number + 1} diverged: its loss became {loss}. Lower "
            "methods.apricot.reduced.rate."
        )
    state = dict((*module.named_parameters(), *module.named_buffers()))
    save_weights(part.path, state, part.identity)
    write_text(part.cost_path, json.dumps(budget.spent))
    seal(part.path, part.identity)
    note = f", {len(drawn)} tensors initialised from their mean and standard deviation" if drawn else ""
    return f"loss {loss:.3f}{note}"


def _train(
    module: nn.Module,
    deployed: DeployedModel,
    clean: CleanImages,
    rows_N: Ints,
    settings: ReducedSettings,
    budget: Budget,
    *,
    seed: int,
) -> float:
    """Train the module on the rows until the budget or, without a limit, the epochs end it.

    Returns the mean loss of the last pass.
    """
    module.train()
    optimizer = torch.optim.Adam([p for p in module.parameters() if p.requires_grad], lr=settings.rate)
    order = _order(deployed, settings, seed=seed)
    losses = deque[torch.Tensor](maxlen=order.steps_per_epoch)
    steps = count() if budget.limit is not None else range(settings.epochs * order.steps_per_epoch)
    for step in takewhile(lambda _: not budget.over, steps):
        rows_B = rows_N[order.rows(step)]
        logits_BK = module(deployed.normalise(clean.images_NHWC[rows_B]))
        loss = F.cross_entropy(logits_BK, torch.from_numpy(clean.labels_N[rows_B]).to(deployed.device))
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimizer.step()
        losses.append(loss.detach())
        budget.spend(images=len(rows_B), steps=1)
    return float(torch.stack(list(losses)).mean())


def _order(deployed: DeployedModel, settings: ReducedSettings, *, seed: int) -> BatchOrder:
    return BatchOrder([settings.per_class * deployed.num_classes], batch_size=settings.batch_size, seed=seed)


def _recipe(
    deployed: DeployedModel, clean: CleanImages, settings: ReducedSettings, seed: int
) -> dict[str, Any]:
    """Return everything that a model depends on except its number.

    Only the shape of the pixels is in it, because the run itself records which data set it uses.
    """
    module = deployed.module
    return {
        "settings": settings.model_dump(mode="json", exclude={"models"}),
        "seed": seed,
        "deployed": state_hash(dict((*module.named_parameters(), *module.named_buffers()))),
        "images": list(clean.images_NHWC.shape),
        "labels": hashlib.blake2b(clean.labels_N.tobytes(), digest_size=12).hexdigest(),
    }


def _check_classes(deployed: DeployedModel, clean: CleanImages, settings: ReducedSettings) -> None:
    counts = np.bincount(clean.labels_N, minlength=deployed.num_classes)
    fewest = int(counts.argmin())
    if counts[fewest] < settings.per_class:
        raise ConfigError(
            f"methods.apricot.reduced.per_class={settings.per_class}, and the clean training split has "
            f"{counts[fewest]} images of class {fewest}. Set it lower than that, for example to half, so that the "
            "subsets differ."
        )


def _load(path: Place, module: nn.Module) -> tuple[State, State]:
    tensors = read_tensors(path)
    parameters, buffers = dict(module.named_parameters()), dict(module.named_buffers())
    wanted = {k: v.shape for k, v in (parameters | buffers).items()}
    shapes = {k: v.shape for k, v in tensors.items()}
    if shapes != wanted:
        differ = sorted(k for k in shapes.keys() | wanted.keys() if shapes.get(k) != wanted.get(k))
        raise DataError(
            f"{path} does not fit this DNN: {len(differ)} tensors are missing, unexpected, or of another "
            f"shape (first: {differ[0]}). Delete {path.parent}, and prepare again."
        )
    return {k: tensors[k] for k in parameters}, {k: tensors[k] for k in buffers}
