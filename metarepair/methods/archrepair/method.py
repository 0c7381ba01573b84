"""ArchRepair: change the architecture and the weights of the block that is most to blame for the failures.

First it finds the most vulnerable block of the DNN, from its failures and clean images. It then adds candidate
operations (convolutions, pooling, skip) in parallel to this block, and searches how much weight α each should have
while it trains the block. The operation with the largest α is kept, and the block is fine-tuned with it. The rest of
the DNN, including its batch-norm statistics, does not change.
Source: Qi et al. 2023 (ArchRepair: Block-Level Architecture-Oriented Repairing, arXiv 2111.13330). The authors publish
neither code nor exact formulas; this is our reconstruction, and its name in tables says so. Localisation is in
localise.py, the definition of a block in find.py, the relaxed block in block.py, and the search, with the numbers of
DARTS, in search.py.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, replace
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import nn

from metarepair.adaptation.repair_data import RepairData
from metarepair.config.section import Fraction, Positive, Rate, Section
from metarepair.engine.vectors import State
from metarepair.methods.archrepair.block import (
    BlockShape,
    RelaxedBlock,
    as_json,
    from_json,
    keep,
    relax,
)
from metarepair.methods.archrepair.find import find_blocks, usable_blocks
from metarepair.methods.archrepair.localise import GradientScore, Localisation, localise
from metarepair.methods.archrepair.search import (
    Search,
    SearchSettings,
    block_loss,
    halves,
    names_in,
)
from metarepair.methods.base import Method, MethodContext
from metarepair.methods.budget import BudgetPart
from metarepair.methods.examples import Examples, clean_beside_failures
from metarepair.methods.registry import register
from metarepair.methods.repaired import RepairedModel, repaired_from
from metarepair.methods.training import Training, TrainingSettings
from metarepair.models.build import DeployedModel, read_tensors, save_weights
from metarepair.models.wrappers import copied
from tasks.errors import ConfigError
from tasks.keys import keyed_generator
from tasks.storage.paths import read_json, write_text

LOCALISED, SEARCHED = (
    "localised.json",
    "searched.safetensors",
)  # for a repair that resumes after an interruption
PROBED = 2  # images that are run to find the shapes of blocks


class TuningSettings(TrainingSettings):
    """Settings of the fine-tuning, ours: its rate starts where the rate of the search started."""

    epochs: Positive = Field(50, description="Passes over all examples; the budget may end it earlier.")
    batch_size: Positive = Field(64, description="Examples per step.")
    rate: Rate = Field(0.025, description="Learning rate, the largest of the schedule.")
    weight_decay: Annotated[float, Field(ge=0)] = Field(3e-4, description="L2 decay, as in torch.optim.")
    collected_share: Fraction | None = Field(
        0.5, description="Share of failures in a batch; null: their share in the union with the clean images."
    )


class ArchRepairSettings(Section):
    """Settings of our reconstruction; the search has the numbers of DARTS.

    The defaults are for 50 epochs. For a budget of half a minute on one core, use search.alpha_rate 0.01 (because α
    takes a hundred steps, not ten thousand), search_share 0.3, localise_share 0.05, correct 300, and collected_share
    0.25 in both search and tuning.
    """

    blocks: tuple[str, ...] = Field(
        (),
        description="Names or patterns of the modules to choose from; empty: blocks are found by a general rule.",
    )
    correct: Positive = Field(
        1000, description="Number of correctly classified clean images for localisation."
    )
    epsilon: Fraction = Field(2 / 255, description="Strength of FGSM, for pixels in [0, 1].")
    top_share: Annotated[float, Field(gt=0, le=1)] = Field(
        0.1, description="Share of a block's channels, the most suspicious ones, whose mean counts."
    )
    gradient: GradientScore = Field(
        "weighted",
        description="weighted: the sum of |w * dL/dw| over a block's weights; mean: the mean of |dL/dw|.",
    )
    keep_zero: bool = Field(
        True,
        description="Whether `zero` (the deployed architecture) may be chosen; DARTS chooses among the others only.",
    )
    localise_share: Fraction = Field(0.1, description="Largest share of the budget for localisation.")
    search_share: Fraction = Field(
        0.5, description="Share of the remaining budget for the search; fine-tuning has the rest."
    )
    search: SearchSettings = Field(
        default_factory=SearchSettings, description="Search of operation and weights."
    )
    tuning: TuningSettings = Field(default_factory=TuningSettings, description="Fine-tuning of the block.")


@register
class ArchRepair(Method):
    """Localises a block, searches an operation to add to it, and fine-tunes both."""

    name = "archrepair"
    words = "ArchRepair (our reconstruction)"
    uses = ("failures", "clean")
    changes = ("weights", "statistics", "architecture")
    cost = "three passes to localise, search.epochs of steps of weights and α in turn, tuning.epochs on one block"
    Settings = ArchRepairSettings

    def check(self, module: nn.Module, settings: Any) -> None:
        assert isinstance(settings, ArchRepairSettings)
        find_blocks(module, settings.blocks)
        if settings.search.least_rate > settings.search.rate:
            raise ConfigError(
                f"methods.archrepair.search.least_rate={settings.search.least_rate:g} is above search.rate="
                f"{settings.search.rate:g}, the rate that falls to it. Set least_rate to at most rate."
            )

    def repair(self, deployed: DeployedModel, data: RepairData, context: MethodContext) -> RepairedModel:
        settings = context.settings
        assert isinstance(settings, ArchRepairSettings)
        self.check(deployed.module, settings)
        clean_beside_failures(self.name, data)
        # By identity, not by name: parameters have other names in an extended block.
        frozen = {id(p) for p in deployed.module.parameters() if not p.requires_grad}
        localised = _localised(deployed, data, context)
        seed = int(keyed_generator("archrepair-operations", context.seed).integers(2**63))
        relaxed = relax(deployed.module, localised.block, localised.shape, seed=seed)
        _search(relaxed, deployed, data, context, frozen)
        shares = relaxed.shares()
        operation, block = keep(deployed.module, localised.block, zero=settings.keep_zero)
        context.say(
            f"{self.name}: kept the operation {operation} beside {localised.block} (softmax {shares[operation]:.3f})"
        )
        _tune(block, deployed, data, context, frozen)
        for parameter in deployed.module.parameters():
            parameter.requires_grad_(id(parameter) not in frozen)
        repaired = repaired_from(
            self.name,
            deployed.module,
            context.budget,
            notes=(f"block {localised.block} (one of {len(localised.scores)}), operation {operation}",),
        )
        if operation == "zero":  # the deployed architecture
            return repaired
        architecture = as_json(localised.block, operation, localised.shape)
        return replace(repaired, module=deployed.module, architecture=architecture)

    def rebuild(self, module: nn.Module, architecture: Mapping[str, Any]) -> nn.Module:
        changed = copied(module)
        from_json(changed, architecture)
        return changed


def _localised(deployed: DeployedModel, data: RepairData, context: MethodContext) -> Localisation:
    """Return the most vulnerable block: from the file of an interrupted repair, or found now."""
    path = None if context.folder is None else context.folder / LOCALISED
    if path is not None and path.is_file():
        return _read_localised(read_json(path), context)
    settings = context.settings
    assert isinstance(settings, ArchRepairSettings)
    images = data.learn.images_NHWC[:PROBED]
    shapes = usable_blocks(deployed.module.eval(), settings.blocks, deployed.normalise(images))
    found = localise(
        deployed,
        shapes,
        data,
        BudgetPart(context.budget, end=settings.localise_share),
        correct=settings.correct,
        epsilon=settings.epsilon,
        top_share=settings.top_share,
        gradient=settings.gradient,
        seed=context.seed,
    )
    context.say(f"archrepair: the most vulnerable of {len(found.scores)} blocks is {found.block}")
    if path is not None:
        write_text(path, json.dumps(asdict(found) | {"spent": context.budget.spent}, indent=1) + "\n")
    return found


def _read_localised(content: dict[str, Any], context: MethodContext) -> Localisation:
    shape = content["shape"] | {"stride": tuple(content["shape"]["stride"])}
    context.budget.go_on(**content["spent"])
    return Localisation(block=content["block"], shape=BlockShape(**shape), scores=content["scores"])


def _search(
    relaxed: RelaxedBlock,
    deployed: DeployedModel,
    data: RepairData,
    context: MethodContext,
    frozen: Collection[int],
) -> None:
    """Search in place, or load the end of a search that is already finished."""
    settings, folder = context.settings, context.folder
    assert isinstance(settings, ArchRepairSettings)
    assert data.clean is not None  # checked in `repair`
    if folder is not None and (folder / SEARCHED).is_file():
        tensors = read_tensors(folder / SEARCHED)
        deployed.module.load_state_dict(_under(tensors, "model"))
        context.budget.go_on(**{name: float(value) for name, value in _under(tensors, "spent").items()})
        return
    part = BudgetPart(context.budget, end=settings.search_share)
    within = replace(context, budget=part, folder=None if folder is None else folder / "search")
    given = halves(data.learn, data.clean, context.seed)
    search = settings.search
    Search(relaxed, deployed, given, data, within, search, method="archrepair.search", frozen=frozen).run()
    if folder is not None:
        spent = context.budget.spent.items()
        counts = {f"spent.{k}": torch.tensor(v, dtype=torch.float64) for k, v in spent}
        state = {f"model.{k}": v for k, v in deployed.module.state_dict().items()}
        save_weights(folder / SEARCHED, state | counts, {})


def _under(tensors: State, group: str) -> State:
    return {k.removeprefix(f"{group}."): v for k, v in tensors.items() if k.startswith(f"{group}.")}


def _tune(
    block: nn.Module,
    deployed: DeployedModel,
    data: RepairData,
    context: MethodContext,
    frozen: Collection[int],
) -> None:
    """Train the block in place, and keep the state that is best on validation."""
    settings = context.settings
    assert isinstance(settings, ArchRepairSettings)
    assert data.clean is not None  # checked in `repair`
    Training(
        deployed.module,
        deployed,
        Examples(data.learn, data.clean),
        data,
        replace(context, budget=BudgetPart(context.budget)),
        settings.tuning,
        block_loss(deployed, block),
        method="archrepair.tuning",
        trainable=names_in(deployed.module, block, without=frozen),
    ).run()
