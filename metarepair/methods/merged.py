"""Merged repairs: the average of the repairs of past environments, alone and followed by fine-tuning.

Before any target, the deployed DNN is repaired for each experience by the steps of `sgd` (metarepair.stages.merged).
All these repairs start from the same weights, so their weights can be averaged. `merged` returns the average for a
target, in which each experience weighs as much as its confidence for that target, and sees nothing else of the target.
`merged_sgd` then takes the steps of `sgd`. MetaRepair uses the same experiences and the same confidence.
Source: Wortsman et al. 2022, "Model soups", who average with equal weights; the weights are the p of paper Eq. 8.
"""

from __future__ import annotations

from metarepair.adaptation.repair_data import RepairData
from metarepair.methods.base import Method, MethodContext
from metarepair.methods.joint import as_it_is
from metarepair.methods.registry import register
from metarepair.methods.repaired import RepairedModel
from metarepair.methods.sgd import SgdSettings, tuned, tuned_from
from metarepair.models.build import DeployedModel

REPAIRED = "before it, once for all targets, a repair by `sgd` for each experience (methods.merged)"


class MergedSettings(SgdSettings):
    """Settings of the repairs of experiences, which are made before any target is known."""


@register
class Merged(Method):
    """Returns the average of the repairs of past environments."""

    name = "merged"
    words = "merged repairs"
    uses = ("merged",)
    changes = ("weights", "statistics")
    cost = f"one average of weights; {REPAIRED}"
    Settings = MergedSettings

    def repair(self, deployed: DeployedModel, data: RepairData, context: MethodContext) -> RepairedModel:
        return as_it_is(self.name, context.load_merged())


@register
class MergedSgd(Method):
    """Fine-tunes the average of the repairs of past environments."""

    name = "merged_sgd"
    words = "merged repairs, fine-tuned by SGD"
    uses = ("failures", "clean", "merged")
    changes = ("weights", "statistics")
    cost = f"the same as sgd; {REPAIRED}"
    Settings = SgdSettings

    def repair(self, deployed: DeployedModel, data: RepairData, context: MethodContext) -> RepairedModel:
        return tuned_from(self.name, context.load_merged(), deployed, data, context)


class ExperienceRepair(Method):
    """Repairs the deployed DNN for one experience: one term of the average. It is no method of its own."""

    name = Merged.name
    words = "a repair for an experience"
    uses = ("failures", "clean")
    changes = ("weights", "statistics")
    cost = "the same as sgd"
    Settings = MergedSettings

    def repair(self, deployed: DeployedModel, data: RepairData, context: MethodContext) -> RepairedModel:
        return tuned(self.name, deployed, data, context)
