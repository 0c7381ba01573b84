"""DeepRepair: train on clean images that are given the style of the collected failures.

It clusters the failures of each class, and takes one failure of each cluster as a style image. A style transfer gives
clean images the look of these failures, while their content and labels stay. The DNN is then trained by AugMix on
clean images, with the styled image as a tenth operation.
Failures give styles only and are never training examples. Their labels are used to cluster by class, and the validation
part selects the state that is kept, as for every method.
Source: Yu et al. 2021 (DeepRepair: Style-Guided Repairing for DNNs in the Real-World Operational Environment, IEEE
Transactions on Reliability; arXiv 2011.09884). The numbers and the random draws follow its code: a chain that draws
style starts with it, and has it once. Here training ends after `patience` of its 20 evaluations on validation without
improvement; theirs ends after 5 of 100 epochs. With few epochs, an evaluation here may come every tenth of an epoch.
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
    """Settings of DeepRepair.

    Published: 5 clusters per class, WCT²; SGD 0.1, batch 64, 100 epochs, patience 5 epochs.
    """

    batch_size: Positive = Field(64, description="Examples per step.")
    collected_share: None = Field(None, description="Must stay empty: failures are never in a batch.")
    clusters: Positive = Field(
        5, description="Clusters of the failures of a class; each gives one style image."
    )
    style: Literal["wavelet_statistics", "wct2"] = Field(
        "wavelet_statistics",
        description="Style transfer. wavelet_statistics needs no network; wct2 is the published network and needs "
        "`weights`.",
    )
    weights: str | None = Field(
        None, description="Folder with wave_encoder_cat5_l4 and wave_decoder_cat5_l4, .pth or .safetensors."
    )
    patience: Positive | None = Field(
        5,
        description="Of a training's 20 evaluations on validation, the number without improvement after which it ends. "
        "null: it never ends early; use this for a short budget, which improves only once the rate has fallen.",
    )

    @model_validator(mode="after")
    def _weights_of_wct2(self) -> DeepRepairSettings:
        if self.style == "wct2" and self.weights is None:
            raise ValueError(
                "style: wct2 needs the WCT² network's weights: set weights to the folder with "
                "wave_encoder_cat5_l4.pth and wave_decoder_cat5_l4.pth (github.com/clovaai/WCT2, model_checkpoints), "
                "or set style: wavelet_statistics, which needs no weights"
            )
        if self.style != "wct2" and self.weights is not None:
            raise ValueError(
                f"weights={self.weights!r} is not used by style: {self.style}; set style: wct2, or leave weights out"
            )
        return self


@register
class DeepRepair(Method):
    """Trains by AugMix on clean images; some chains start from the image in the style of a failure."""

    name = "deeprepair"
    words = "DeepRepair"
    uses = ("failures", "clean")
    changes = ("weights", "statistics")
    cost = "a style transfer of each clean image, epochs × clean / batch_size steps with three passes per example"
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
        styled = StyledImages(clean.images_NHWC, transfer, styles=len(rows), seed=context.seed)
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
            notes.append(
                f"training ended early: no improvement in {settings.patience} evaluations on validation"
            )
        return repaired_from(self.name, module, context.budget, notes=tuple(notes))


def _transfer(
    data: RepairData, rows: list[int], deployed: DeployedModel, settings: DeepRepairSettings
) -> Transfer:
    styles_SHWC_u8 = data.learn.images_NHWC[rows]
    if settings.weights is None:
        return WaveletStatistics(styles_SHWC_u8, deployed.device)
    return WhiteningColouring(load_wct2(Path(settings.weights)), styles_SHWC_u8, deployed.device)
