"""D_collect's styles and clean images in, the DNN trained by AugMix with style as a tenth operation out.

Source: Yu et al. 2021 (DeepRepair: Style-Guided Repairing for DNNs in the Real-World Operational Environment, IEEE
Transactions on Reliability; arXiv 2011.09884), and its code for the numbers and for what is drawn: a chain that draws
style begins with it, once. Failures give style only, and are never examples; beyond that their labels part them into
classes for the clusters, and the validation part selects the state that is kept, as for every method.
Training ends after `patience` of its 20 checks without gain, where theirs ends after 5 of 100 epochs: a check here may
be the tenth part of an epoch.
This is not the project of the same name that repairs confused classes (Tian et al.).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator
from torch import nn

from metarepair.adaptation.repair_data import RepairData
from metarepair.config.section import Positive
from metarepair.methods.augmix.method import VIEWS, AugMixLoss, AugMixSettings
from metarepair.methods.base import Method, MethodContext
from metarepair.methods.deeprepair.style import StyledImages, Transfer, WaveletStatistics, style_rows
from metarepair.methods.deeprepair.wct2 import WhiteningColouring, load_wct2
from metarepair.methods.examples import Examples, clean_beside_failures
from metarepair.methods.registry import register
from metarepair.methods.repaired import RepairedModel, repaired_from
from metarepair.methods.training import Training
from metarepair.models.build import DeployedModel

NOTES = {
    "wavelet_statistics": "style by statistics of Haar bands, without a pretrained network (not WCT²)",
    "wct2": "style by WCT²",
}


class DeepRepairSettings(AugMixSettings):
    """Published: 5 clusters a class, WCT²; SGD 0.1, batch 64, 100 epochs, patience 5 epochs."""

    batch_size: Positive = Field(64, description="Examples of a step.")
    collected_share: None = Field(None, description="Has no value here: failures are never in a batch.")
    clusters: Positive = Field(5, description="Clusters of a class's failures; each gives one style image.")
    style: Literal["wavelet_statistics", "wct2"] = Field(
        "wavelet_statistics", description="wct2: the published network, whose `weights` are needed."
    )
    weights: str | None = Field(
        None, description="Folder with wave_encoder_cat5_l4 and wave_decoder_cat5_l4, .pth or .safetensors."
    )
    patience: Positive | None = Field(
        5,
        description="Checks without gain, of the 20 of a training, after which it ends; null: it goes on, which a "
        "short budget needs, whose gain comes when the rate has fallen.",
    )

    @model_validator(mode="after")
    def _weights_of_wct2(self) -> DeepRepairSettings:
        if self.style == "wct2" and self.weights is None:
            raise ValueError(
                "style: wct2 needs the WCT² network's weights: set weights to the folder with "
                "wave_encoder_cat5_l4.pth and wave_decoder_cat5_l4.pth (github.com/clovaai/WCT2, model_checkpoints), "
                "or take style: wavelet_statistics, which needs none"
            )
        if self.style != "wct2" and self.weights is not None:
            raise ValueError(
                f"weights={self.weights!r} is of no use to style: {self.style}; set style: wct2, or leave it out"
            )
        return self


@register
class DeepRepair(Method):
    """AugMix on clean images, some of whose chains begin with the image in the style of a failure."""

    name = "deeprepair"
    words = "DeepRepair"
    uses = ("failures", "clean")
    changes = ("weights", "statistics")
    cost = (
        "a style transfer of each clean image, epochs × clean / batch_size steps of three passes an example"
    )
    Settings = DeepRepairSettings

    def check(self, module: nn.Module, settings: Any) -> None:
        if settings.weights is not None:
            load_wct2(Path(settings.weights))

    def repair(self, deployed: DeployedModel, data: RepairData, context: MethodContext) -> RepairedModel:
        settings = context.settings
        assert isinstance(settings, DeepRepairSettings)
        clean = clean_beside_failures(self.name, data)
        rows = style_rows(data.learn, clusters=settings.clusters, seed=context.seed)
        transfer = _transfer(data, rows.tolist(), deployed, settings)
        styled = StyledImages(clean.images_NHWC_u8, transfer, styles=len(rows), seed=context.seed)
        training = Training(
            deployed.module,
            deployed,
            Examples(clean),
            data,
            context,
            settings,
            AugMixLoss(deployed=deployed, settings=settings, stylise=styled),
            method=self.name,
            images_per_example=VIEWS,
            patience=settings.patience,
        )
        module = training.run()
        notes = [f"{NOTES[settings.style]}; {len(rows)} style images"]
        if training.ended_early:
            notes.append(f"ended early: no gain in {settings.patience} checks")
        return repaired_from(self.name, module, context.budget, notes=tuple(notes))


def _transfer(
    data: RepairData, rows: list[int], deployed: DeployedModel, settings: DeepRepairSettings
) -> Transfer:
    styles_SHWC_u8 = data.learn.images_NHWC_u8[rows]
    if settings.weights is None:
        return WaveletStatistics(styles_SHWC_u8, deployed.device)
    return WhiteningColouring(load_wct2(Path(settings.weights)), styles_SHWC_u8, deployed.device)
