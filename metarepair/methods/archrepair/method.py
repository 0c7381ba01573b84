"""Failures and clean images in, the DNN with its most vulnerable block changed in architecture and weights out.

Source: Qi et al. 2023 (ArchRepair: Block-Level Architecture-Oriented Repairing, arXiv 2111.13330), of which neither
code nor exact formulas are to be had: this is our reconstruction, and is called so. Localisation is in
archrepair_localise.py, what counts as a block in archrepair_find.py, the relaxed block in archrepair_block.py and its
search, by DARTS' numbers, in archrepair_search.py. The operation of the largest α is kept and the block fine-tuned; the
rest of the DNN, its statistics included, stays as it is deployed.
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
from metarepair.methods.archrepair.localise import GradientScore, Localised, localise
from metarepair.methods.archrepair.search import (
    BudgetPart,
    Search,
    SearchSettings,
    block_loss,
    halves,
    names_in,
)
from metarepair.methods.base import Method, MethodContext
from metarepair.methods.examples import Examples, clean_beside_failures
from metarepair.methods.registry import register
from metarepair.methods.repaired import RepairedModel, repaired_from
from metarepair.methods.training import Training, TrainingSettings
from metarepair.models.build import DeployedModel, read_tensors, save_weights
from metarepair.models.wrappers import copied
from tasks.errors import ConfigError
from tasks.keys import keyed_generator
from tasks.storage.paths import write_text

LOCALISED, SEARCHED = "localised.json", "searched.safetensors"  # of a repair that may be interrupted
PROBED = 2  # images that tell a block's shape


class TuningSettings(TrainingSettings):
    """Ours: the fine-tuning goes on at the rate that the search began with."""

    epochs: Positive = Field(50, description="Passes over all examples; the budget may end it before.")
    batch_size: Positive = Field(64, description="Examples of a step.")
    rate: Rate = Field(0.025, description="Learning rate, the largest of the schedule.")
    weight_decay: Annotated[float, Field(ge=0)] = Field(3e-4, description="L2 decay, as in torch.optim.")
    collected_share: Fraction | None = Field(
        0.5, description="Share of failures in a batch; null: that of the union with clean images."
    )


class ArchRepairSettings(Section):
    """Of our reconstruction; the search has DARTS' numbers.

    These are of 50 epochs. For a budget of half a minute on one core: search.alpha_rate 0.01, as α takes a hundred
    steps rather than ten thousand; search_share 0.3; localise_share 0.05; correct 300; collected_share 0.25 of both.
    """

    blocks: tuple[str, ...] = Field(
        (), description="Names or patterns of the modules to choose from; empty: found by a rule for any DNN."
    )
    correct: Positive = Field(
        1000, description="Clean images, classified rightly, that localisation compares with."
    )
    epsilon: Fraction = Field(2 / 255, description="Strength of FGSM, of pixels in [0, 1].")
    top_share: Annotated[float, Field(gt=0, le=1)] = Field(
        0.1, description="Share of a block's channels whose mean suspiciousness counts: the largest."
    )
    gradient: GradientScore = Field(
        "weighted",
        description="weighted: the sum of |w * dL/dw| over a block's weights; mean: the mean of |dL/dw|.",
    )
    keep_zero: bool = Field(
        True,
        description="Whether `zero`, the deployed architecture, may be kept; DARTS keeps the largest of the others.",
    )
    localise_share: Fraction = Field(0.1, description="Largest share of the budget that localisation takes.")
    search_share: Fraction = Field(
        0.5, description="Share of the rest that the search takes; fine-tuning has the others."
    )
    search: SearchSettings = Field(
        default_factory=SearchSettings, description="Search of operation and weights."
    )
    tuning: TuningSettings = Field(default_factory=TuningSettings, description="Fine-tuning of the block.")


@register
class ArchRepair(Method):
    """Localise a block, search an operation beside it, fine-tune the two."""

    name = "archrepair"
    words = "ArchRepair (our reconstruction)"
    uses = ("failures", "clean")
    changes = ("weights", "statistics", "architecture")
    cost = "three passes to localise, search.epochs of weights and α in turns, tuning.epochs on one block"
    Settings = ArchRepairSettings

    def check(self, module: nn.Module, settings: Any) -> None:
        assert isinstance(settings, ArchRepairSettings)
        find_blocks(module, settings.blocks)
        if settings.search.least_rate > settings.search.rate:
            raise ConfigError(
                f"methods.archrepair.search.least_rate={settings.search.least_rate:g} is above search.rate="
                f"{settings.search.rate:g}, which falls to it. Give a least_rate of at most the rate."
            )

    def repair(self, deployed: DeployedModel, data: RepairData, context: MethodContext) -> RepairedModel:
        settings = context.settings
        assert isinstance(settings, ArchRepairSettings)
        self.check(deployed.module, settings)
        clean_beside_failures(self.name, data)
        # By what they are, not by name: a block that is extended has other names.
        frozen = {id(p) for p in deployed.module.parameters() if not p.requires_grad}
        found = _localised(deployed, data, context)
        seed = int(keyed_generator("archrepair-operations", context.seed).integers(2**63))
        relaxed = relax(deployed.module, found.block, found.shape, seed=seed)
        _search(relaxed, deployed, data, context, frozen)
        shares = relaxed.shares()
        operation, block = keep(deployed.module, found.block, zero=settings.keep_zero)
        context.say(f"{self.name}: beside {found.block} stays {operation} (softmax {shares[operation]:.3f})")
        _tune(block, deployed, data, context, frozen)
        for parameter in deployed.module.parameters():
            parameter.requires_grad_(id(parameter) not in frozen)
        repaired = repaired_from(
            self.name,
            deployed.module,
            context.budget,
            notes=(f"block {found.block} (one of {len(found.scores)}), operation {operation}",),
        )
        if operation == "zero":  # the deployed architecture
            return repaired
        architecture = as_json(found.block, operation, found.shape)
        return replace(repaired, module=deployed.module, architecture=architecture)

    def rebuild(self, module: nn.Module, architecture: Mapping[str, Any]) -> nn.Module:
        changed = copied(module)
        from_json(changed, architecture)
        return changed


def _localised(deployed: DeployedModel, data: RepairData, context: MethodContext) -> Localised:
    """The block of a repair that was interrupted, or the one that is found now."""
    path = None if context.folder is None else context.folder / LOCALISED
    if path is not None and path.is_file():
        return _read_localised(json.loads(path.read_text(encoding="utf-8")), context)
    settings = context.settings
    assert isinstance(settings, ArchRepairSettings)
    images = data.learn.images_NHWC_u8[:PROBED]
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


def _read_localised(content: dict[str, Any], context: MethodContext) -> Localised:
    shape = content["shape"] | {"stride": tuple(content["shape"]["stride"])}
    context.budget.go_on(**content["spent"])
    return Localised(block=content["block"], shape=BlockShape(**shape), scores=content["scores"])


def _search(
    relaxed: RelaxedBlock,
    deployed: DeployedModel,
    data: RepairData,
    context: MethodContext,
    frozen: Collection[int],
) -> None:
    """Searches in place; takes the end of a search that was done before."""
    settings, folder = context.settings, context.folder
    assert isinstance(settings, ArchRepairSettings)
    assert data.clean is not None  # checked
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
    """Trains the block in place; what is best on the held-out collected examples stays."""
    settings = context.settings
    assert isinstance(settings, ArchRepairSettings)
    assert data.clean is not None  # checked
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
