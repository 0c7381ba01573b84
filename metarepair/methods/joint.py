"""Joint training, alone and followed by fine-tuning: the plainest use of past experiences.

The deployed DNN goes on training on clean images and the images of all experiences, once for all targets
(metarepair.pretraining.joint). `joint` stops there, and sees nothing of the target. `joint_finetune` then takes the
repair steps of `finetune`. MetaRepair uses the same experiences, so the difference is what meta-training is worth.
Source: joint training on corruptions as data augmentation (Rusak et al. 2020), from the deployed weights.
"""

from __future__ import annotations

from collections.abc import Iterator

from metarepair.adaptation.meta_test import Start, Step
from metarepair.adaptation.repair_data import RepairData
from metarepair.methods.base import Method, MethodContext
from metarepair.methods.metarepair import repair_from, walk_again
from metarepair.methods.registry import register
from metarepair.methods.repaired import RepairedModel
from metarepair.models.build import DeployedModel

PREPARED = (
    "before it, once for all targets, joint training: joint.rounds × joint.round_steps steps, or the budget"
)


@register
class Joint(Method):
    """Returns the jointly trained DNN."""

    name = "joint"
    words = "joint training"
    uses = ("joint",)
    changes = ("weights", "statistics")
    cost = f"nothing; {PREPARED}"

    def repair(self, deployed: DeployedModel, data: RepairData, context: MethodContext) -> RepairedModel:
        return as_it_is(self.name, context.load_joint())


@register
class JointFinetune(Method):
    """Repairs by paper Algorithm 1, lines 13-23, from the jointly trained weights."""

    name = "joint_finetune"
    words = "joint training, fine-tuned"
    uses = ("failures", "joint")
    changes = ("weights", "statistics")
    cost = f"the same as finetune; {PREPARED}"
    walks = True

    def repair(self, deployed: DeployedModel, data: RepairData, context: MethodContext) -> RepairedModel:
        return repair_from(self.name, context.load_joint(), deployed, data, context)

    def steps(
        self, deployed: DeployedModel, data: RepairData, context: MethodContext, *, rate: float
    ) -> Iterator[Step]:
        return walk_again(context.load_joint(), deployed, data, context, rate=rate)


def as_it_is(method: str, start: Start) -> RepairedModel:
    """The result of a method that repairs nothing: the weights that were made before any target."""
    return RepairedModel(
        method=method,
        parameters=start.parameters,
        buffers=start.buffers,
        images_seen=0,
        gradient_steps=0,
    )
