"""Apricot: repair by copying from smaller trainings of the same DNN that classify the failures correctly.

Before any target is known, it trains reduced models: DNNs of the same architecture, each on a part of the clean images.
A failure is then misclassified by some of them and classified correctly by others. For a batch of failures, the
weights of the DNN move a little toward the mean of the models that are right and away from the mean of those that are
wrong. Such an adjustment is kept only if accuracy on held-out failures improves. A short training on failures and
clean images follows.
Source: Zhang & Chan 2019 (Apricot: A Weight-Adaptation Approach to Fixing Deep Learning Models, ASE). Its numbers are
the defaults, except the epochs of the last training, for which it says "a few". Where the paper uses a validation set,
this uses the validation part of D_collect.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from metarepair.adaptation.repair_data import RepairData
from metarepair.config.section import Positive, Rate
from metarepair.engine.vectors import copied_buffers, copied_parameters, put_state
from metarepair.methods.apricot.models import ReducedSettings, load_models, prepare_models
from metarepair.methods.apricot.walk import Strategy, Walk
from metarepair.methods.base import Method, MethodContext
from metarepair.methods.examples import Examples, clean_beside_failures
from metarepair.methods.registry import register
from metarepair.methods.repaired import RepairedModel, repaired_from
from metarepair.methods.training import MethodBatch, Training, TrainingSettings
from metarepair.models.build import DeployedModel
from tasks.errors import ConfigError


class ApricotSettings(TrainingSettings):
    """Settings of Apricot: the reduced models, the adjustment, and the training after it."""

    reduced: ReducedSettings = ReducedSettings()
    strategy: Strategy = Field(
        "both",
        description="both: toward models that are right and away from those that are wrong; correct: only toward; "
        "incorrect: only away.",
    )
    adjust_rate: Rate = Field(
        1e-3,
        description="Share of the distance to the models by which a failure moves the weights; models with "
        "start=deployed are so close that it takes about 0.1.",
    )
    adjust_batch: Positive = Field(20, description="Failures per adjustment.")
    patience: Positive = Field(
        100, description="Adjustments without improvement after which the training starts."
    )
    epochs: Positive = Field(
        5, description="Passes over failures and clean images in the training that follows."
    )
    optimizer: Literal["sgd", "adam"] = Field("adam", description="sgd has Nesterov momentum 0.9.")
    rate: Rate = Field(2e-4, description="Learning rate of that training.")
    schedule: Literal["cosine", "constant"] = Field(
        "constant", description="Schedule of that rate; cosine falls to 0 at the end."
    )
    weight_decay: float = Field(0.0, ge=0, description="L2 decay of that training.")


@register
class Apricot(Method):
    """Prepares reduced models; for a target, adjusts the weights by them and then trains."""

    name = "apricot"
    words = "Apricot"
    uses = ("failures", "clean")
    changes = ("weights", "statistics")
    cost = (
        "one pass of D_collect through reduced.models DNNs, one validation per adjustment, epochs over D_collect and "
        "clean; before it, once, reduced.models × reduced.epochs over reduced.per_class images of each class"
    )
    Settings = ApricotSettings
    prepares = True
    prepared_by = ("reduced",)

    def prepare(self, deployed: DeployedModel, data: RepairData, context: MethodContext) -> None:
        settings = context.settings
        assert isinstance(settings, ApricotSettings)
        if data.clean is None or not len(data.clean):
            raise ConfigError(
                "apricot trains its reduced models on the clean training split, and there is none. Give data with a "
                "training split, or leave apricot out."
            )
        prepare_models(deployed, data.clean, settings.reduced, context)

    def repair(self, deployed: DeployedModel, data: RepairData, context: MethodContext) -> RepairedModel:
        settings = context.settings
        assert isinstance(settings, ApricotSettings)
        clean = clean_beside_failures(self.name, data)
        module = deployed.module.eval()
        walk = Walk(
            deployed,
            load_models(context.prepared, deployed, settings.reduced),
            data,
            context,
            batch_size=settings.adjust_batch,
            rate=settings.adjust_rate,
            strategy=settings.strategy,
            patience=settings.patience,
        )
        put_state(module, copied_parameters(module) | copied_buffers(module) | walk.run())
        context.say(f"apricot: {walk.words}")

        def loss(net: nn.Module, batch: MethodBatch) -> Tensor:
            return F.cross_entropy(net(deployed.normalise(batch.images_BHWC_u8)), batch.labels_B)

        examples = Examples(data.learn, clean)
        module = Training(module, deployed, examples, data, context, settings, loss, method=self.name).run()
        return repaired_from(self.name, module, context.budget, notes=(walk.words,))
