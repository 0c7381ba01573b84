"""θ and a target's D_collect in, repaired parameters out: Algorithm 1, lines 13-23.

Every episode starts from θ; its tasks' updates accumulate (or start over: the "Separate Update" ablation). The
walk is a generator keyed by (seed, episode, slot): the evaluator walks it again once D_fail is opened, so that
nothing of D_fail is near while a repair is made or chosen.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import nn

from metarepair.config.repair import AnyConfig
from metarepair.data.batches import support_batch
from metarepair.data.clean_images import CleanImages, LabelledImages
from metarepair.engine.inner import FunctionalNet, adapt
from metarepair.engine.types import InnerRule
from metarepair.engine.vectors import State, copied_buffers, copied_parameters
from metarepair.models.build import DeployedModel, read_tensors
from metarepair.runs.layout import RATES
from tasks.errors import ConfigError, WeightsError
from tasks.keys import keyed_generator
from tasks.records import Failures
from tasks.sampling.sampler import semantic_cover, split_validation
from tasks.storage.manifest import require_manifest, verify_checksums
from tasks.storage.paths import Place

# N failures, B images


@dataclass(frozen=True, kw_only=True)
class RepairData:
    """What a method may see of the target: D_collect, in a part to learn from and a part that only selects.

    `clean` is the clean training split, None where it is not given. There is no way from here to D_fail, or to the test
    split beyond D_collect.
    """

    target: str
    learn: Failures
    validation: Failures
    clean: CleanImages | None = None


class Spending(Protocol):
    """What counts the images and steps of a repair, and says when they are used up (metarepair.methods.budget)."""

    @property
    def over(self) -> bool: ...
    def spend(self, *, images: int = 0, steps: int = 0) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Start:
    """Where a repair begins: θ, its buffers, and the factors of learned rates where these were learned."""

    parameters: State
    buffers: State
    factors: State = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Step:
    """θ̂ after a task of the meta-test."""

    episode: int
    slot: int
    parameters: State
    buffers: State
    images_seen: int


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The episode's end that is best on validation, over all rates tried; not `whole` where the budget ended it."""

    rate: float
    episode: int
    weight: float
    score: float
    step: Step
    whole: bool = True


def load_start(folder: Place, module: nn.Module, config: AnyConfig, *, remedy: str) -> Start:
    """θ_meta of a run's meta/<target>/ for `module`.

    Raises StageError with the remedy where it is not finished, DataError for damage, WeightsError for another DNN's.
    """
    verify_checksums(folder, require_manifest(folder, remedy))
    tensors = read_tensors(folder / "model.safetensors")
    wanted = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    differ = [k for k, v in wanted.items() if k not in tensors or tensors[k].shape != v.shape]
    if differ or len(tensors) != len(wanted):
        raise WeightsError(
            f"{folder} holds {len(tensors)} tensors and the given DNN has {len(wanted)}: {len(differ)} of these are "
            f"missing there or of another shape (first: {(differ or ['none'])[0]}). Give the DNN that the run "
            "deployed."
        )
    rates = read_tensors(folder / RATES) if config.inner.learned_rates else {}
    return Start(
        parameters={k: tensors[k].to(v) for k, v in module.named_parameters()},
        buffers={k: tensors[k].to(v) for k, v in module.named_buffers()},
        factors={k: v.to(wanted[k]) for k, v in rates.items()},
    )


def repair_data(collect: Failures, config: AnyConfig, seed: int) -> RepairData:
    """Splits D_collect by image; the same split for every method of a seed."""
    learn, validation = split_validation(
        collect.image_ids_N,
        fraction=config.repair.validation_fraction,
        seed=config.seed + seed,
        target=collect.corruption,
    )
    return RepairData(
        target=collect.corruption, learn=collect.take(learn), validation=collect.take(validation)
    )


def inner_rule(config: AnyConfig, rate: float | None = None) -> InnerRule:
    """The inner rule of a run's settings, at another rate where one is given."""
    settings = config.inner.model_dump()
    return InnerRule(**(settings if rate is None else settings | {"rate": rate}))


def repair_rule(config: AnyConfig, rate: float) -> InnerRule:
    """The inner rule of repair. `batch` statistics exist in meta-training only: repair stores what it adapts to."""
    rule = inner_rule(config, rate)
    if rule.batch_norm != "batch":
        return rule
    return InnerRule(**(vars(rule) | {"batch_norm": "adapt"}))


def walk(
    deployed: DeployedModel,
    start: Start,
    data: RepairData,
    config: AnyConfig,
    *,
    seed: int,
    rate: float,
    episodes: int,
) -> Iterator[Step]:
    """Lines 14-21: for each episode, θ̂ after each of its S tasks."""
    net = FunctionalNet(deployed.module, repair_rule(config, rate))
    for episode in range(episodes):
        parameters, buffers = start.parameters, start.buffers
        for slot in range(config.repair.tasks):
            if config.repair.update == "separate":
                parameters, buffers = start.parameters, start.buffers
            generator = keyed_generator("repair", config.seed, seed, data.target, episode, slot)
            rows = semantic_cover(data.learn.labels_N, shots=config.task.shots, generator=generator)
            seed_of_masks = int(generator.integers(2**31))
            support = support_batch(
                deployed,
                data.learn,
                rows,
                data.clean,
                count=config.task.clean_support,
                generator=generator,
                seed=seed_of_masks,
            )
            parameters, buffers = adapt(net, parameters, buffers, support, start.factors)
            yield Step(
                episode=episode,
                slot=slot,
                parameters=parameters,
                buffers=buffers,
                images_seen=len(support) * net.rule.steps,
            )


def choose(
    deployed: DeployedModel, start: Start, data: RepairData, config: AnyConfig, *, seed: int, budget: Spending
) -> Choice:
    """Walks M episodes at every rate of `repair.rates` and keeps the end that is best on what is held out.

    Where the budget is over before, the search ends with the episode that is under way; an episode that it cuts off is
    judged as it stands.
    """
    best: Choice | None = None
    before = start_of(deployed)
    for rate in config.repair.rates:
        steps = walk(deployed, start, data, config, seed=seed, rate=rate, episodes=config.repair.episodes)
        for step in steps:
            budget.spend(images=step.images_seen, steps=config.inner.steps)
            if step.slot < config.repair.tasks - 1 and not budget.over:
                continue
            for weight in config.repair.interpolate:
                mixed = interpolated(before, step, weight)
                found = score(deployed, mixed, data, config)
                if best is None or found > best.score:
                    best = Choice(rate=rate, episode=step.episode, weight=weight, score=found, step=mixed)
            if budget.over:
                assert best is not None
                return replace(best, whole=False)
    assert best is not None  # config has at least one rate, episode and task
    return best


def start_of(deployed: DeployedModel) -> Start:
    """The deployed DNN as a start."""
    return Start(parameters=copied_parameters(deployed.module), buffers=copied_buffers(deployed.module))


def interpolated(deployed: Start, step: Step, weight: float) -> Step:
    """`weight` of the repaired parameters and statistics, the rest deployed (Wortsman et al. 2022, WiSE-FT)."""
    if weight == 1.0:
        return step

    def mix(before: State, after: State) -> State:
        return {k: before[k].lerp(v, weight) if v.is_floating_point() else v for k, v in after.items()}

    return replace(
        step,
        parameters=mix(deployed.parameters, step.parameters),
        buffers=mix(deployed.buffers, step.buffers),
    )


def score(deployed: DeployedModel, step: Step, data: RepairData, config: AnyConfig) -> float:
    """What a repair is chosen by: accuracy on held-out examples of D_collect, and of clean images by their weight."""
    weight = config.repair.clean_weight
    found = accuracy_on(deployed, step.parameters, step.buffers, data.validation)
    if weight == 0:
        return found
    if data.clean is None:
        raise ConfigError(
            f"repair.clean_weight={weight} needs clean training images, and none are given. Set it to 0."
        )
    return (1 - weight) * found + weight * accuracy_on(
        deployed, step.parameters, step.buffers, data.clean.held_out
    )


def validate_repair(deployed: DeployedModel, start: Start, data: RepairData, config: AnyConfig) -> float:
    """Accuracy on validation after one episode of repair at the inner rate of meta-training."""
    steps = list(walk(deployed, start, data, config, seed=0, rate=config.inner.rate, episodes=1))
    return accuracy_on(deployed, steps[-1].parameters, steps[-1].buffers, data.validation)


def predict(
    deployed: DeployedModel,
    parameters: State,
    buffers: State,
    given: LabelledImages,
    *,
    batch_size: int = 500,
) -> torch.Tensor:
    """Logits [N, K] on the CPU for failures or clean images, with stored statistics."""
    net = FunctionalNet(deployed.module, InnerRule(steps=1, rate=1.0, batch_norm="frozen"))
    images = given.images_NHWC_u8
    parts = [
        net.logits(parameters, buffers, deployed.normalise(images[start : start + batch_size])).float().cpu()
        for start in range(0, len(images), batch_size)
    ]
    return torch.cat(parts) if parts else torch.empty(0, deployed.num_classes)


def accuracy_on(deployed: DeployedModel, parameters: State, buffers: State, given: LabelledImages) -> float:
    """Share of the failures, or clean images, that are classified rightly."""
    predicted = predict(deployed, parameters, buffers, given).argmax(1).numpy()
    return float((predicted == given.labels_N).mean()) if len(given.labels_N) else 0.0
