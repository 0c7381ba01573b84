"""What a run depends on, as frozen, strict settings: every field says what it is, with its unit and range.

`metarepair.config.load` reads them from a YAML file.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from metarepair.config.comparison import CompareConfig
from metarepair.config.data import Colour, DataConfig
from metarepair.config.pretraining import PretrainConfig
from metarepair.config.ray import RayConfig
from metarepair.config.search import SearchConfig
from metarepair.config.section import Count, Fraction, Positive, Rate, Section, each_once
from metarepair.config.training import InnerConfig, TrainConfig
from tasks.corruptions import resolve
from tasks.datasets.normalisation import check_mean, check_std
from tasks.distances.intervals import FEWEST_ROWS, LEVEL, fewest_resamples
from tasks.errors import ConfigError

Corruption = str
MethodSettings = dict[str, dict[str, Any]]


class ModelConfig(Section):
    """The deployed DNN."""

    name: str = Field(
        "resnet8_cifar",
        min_length=1,
        description="NAME or timm:NAME of timm's, or module:FACTORY, the import path of what returns an nn.Module.",
    )
    weights: str = Field(
        "shipped:resnet8_cifar10",
        description="A .safetensors or torch.save file, or shipped:NAME for the project's own.",
    )
    entry: str | None = Field(
        None,
        min_length=1,
        description="Entry of a torch.save file that the weights are under, where it has several; with a dot at its "
        "end, the prefix of the names to take.",
    )
    stem: Literal["imagenet", "cifar"] = Field(
        "imagenet",
        description="imagenet: the model as timm builds it; cifar: 3 × 3 at stride 1, no pooling, for small images.",
    )
    input_size: Annotated[int, Field(ge=8, le=1024)] | None = Field(
        None,
        description="Images are resized to so many pixels a side for the DNN; as they are when not given.",
    )
    normalisation: Literal["dataset", "checkpoint"] = Field(
        "dataset",
        description="Mean and deviation of the pixels: the data set's, or those timm states for the model.",
    )

    mean: Colour | None = Field(
        None, description="Of pixels in [0, 1], red, green, blue: in place of the normalisation's."
    )
    std: Colour | None = Field(None, description="As mean: the deviation of pixels in [0, 1].")

    @model_validator(mode="after")
    def _of_pixels_in_0_to_1(self) -> ModelConfig:
        check_mean("model.mean", self.mean or ())
        check_std("model.std", self.std or ())
        return self


class MiningConfig(Section):
    """Corrupt, classify, keep the failures (paper Sec. 5.1.3)."""

    experiences: tuple[Corruption, ...] = Field(
        min_length=1, description="Corruptions to collect experiences of."
    )
    severities: tuple[Annotated[int, Field(ge=1, le=5)], ...] = Field(
        (1, 2, 3, 4, 5), min_length=1, description="Severities, pooled (reading: each example keeps its own)."
    )
    collect: Positive = Field(1000, description="Failures in D_collect, of experiences and targets.")
    collect_rule: Literal["random", "stratified"] = Field(
        "random", description="random: the paper's; stratified: equally many of each class."
    )
    split_by: Literal["image", "example"] = Field(
        "image", description="image: no image on both sides of collect and fail; example: the paper's letter."
    )
    pixels: Literal["stored", "recomputed"] = Field(
        "stored",
        description="stored: failures keep their pixels. recomputed: digests alone; pixels are made again when needed.",
    )
    batch_size: Positive = Field(500, description="Images per forward pass.")
    shard_images: Positive = Field(2500, description="Clean images per work item of a mining actor.")

    @field_validator("severities")
    @classmethod
    def _once(cls, severities: tuple[int, ...]) -> tuple[int, ...]:
        return each_once(severities)

    @field_validator("experiences")
    @classmethod
    def _names(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return _resolved(names)


class FeatureConfig(Section):
    """Features for the distance between environments (paper Eq. 7)."""

    extractor: str = Field(
        "inception", description="inception, deployed, efficientnet_lite0, or timm:NAME with weights."
    )
    weights: str | None = Field(None, description="The extractor's weights file, where it needs one.")
    batch_size: Positive = Field(100, description="Images per forward pass.")
    shard_images: Positive = Field(250, description="Collected examples per work item of a feature actor.")
    bootstrap: Annotated[int, Field(ge=0)] = Field(
        0,
        description="Resamples, at least 40, of the 95 % interval of each experience's distance to a target; 0: none.",
    )
    extrapolate: bool = Field(
        False,
        description="Also FID∞, the distance extrapolated to infinitely many examples; takes 20 collected.",
    )

    @field_validator("extractor", mode="before")
    @classmethod
    def _one_word(cls, extractor: object) -> object:
        if isinstance(extractor, dict):  # what YAML makes of `timm: resnet18`, and of `timm:`
            raise ValueError("give one word, as inception or timm:resnet18: a name after timm:, and no space")
        return extractor

    @field_validator("bootstrap")
    @classmethod
    def _enough_resamples(cls, resamples: int) -> int:
        if 0 < resamples < fewest_resamples():
            raise ValueError(
                f"{resamples} resamples are too few for a {LEVEL:.0%} interval; give at least "
                f"{fewest_resamples()}, or 0 for no interval"
            )
        return resamples


class ExperienceConfig(Section):
    """Which experiences a target learns from, and with which confidence (paper Eq. 8)."""

    choice: Literal["all", "top_k", "category", "list"] = Field("all", description="Which experiences count.")
    top_k: Positive | None = Field(None, description="How many of the nearest, for choice: top_k.")
    names: tuple[Corruption, ...] = Field((), description="The experiences, for choice: list.")
    rule: Literal["softmax", "hinge", "cutoff", "uniform"] = Field("hinge", description="Form of Eq. 8.")
    alpha: Annotated[float, Field(ge=0)] | None = Field(
        None, description="Decay per unit of distance; when not given, such that 3 experiences are effective."
    )
    beta: Annotated[float, Field(ge=0)] | None = Field(
        None, description="Threshold of the distance; when not given, the rule's default."
    )

    @field_validator("names")
    @classmethod
    def _names(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return _resolved(names)

    @model_validator(mode="after")
    def _complete(self) -> ExperienceConfig:
        if self.choice == "top_k" and self.top_k is None:
            raise ValueError("choice: top_k needs top_k, the number of experiences")
        if self.choice == "list" and not self.names:
            raise ValueError("choice: list needs names, the experiences")
        return self


class TaskConfig(Section):
    """Semantic-cover tasks (paper Sec. 4.2)."""

    shots: Positive = Field(10, description="Support examples per class.")
    clean_support: Count = Field(
        0, description="Clean training images in each support beside its failures (0: the paper's)."
    )
    query_size: Positive = Field(100, description="Query examples of a task.")


class RepairSettings(Section):
    """Repair, the meta-test (Algorithm 1, lines 13-23)."""

    episodes: Positive = Field(10, description="Episodes M.")
    tasks: Positive = Field(4, description="Tasks S of an episode.")
    rates: tuple[Rate, ...] = Field(
        (0.03,), min_length=1, description="Inner rates tried; validation chooses, the same for every method."
    )
    update: Literal["accumulated", "separate"] = Field(
        "accumulated", description="Lines 17-21, or the ablation."
    )
    interpolate: tuple[Fraction, ...] = Field(
        (1.0,),
        min_length=1,
        description="Weights tried of the repaired parameters in their mean with the deployed ones; 1: as repaired.",
    )
    clean_weight: Fraction = Field(
        0.0,
        description="Weight of held-out clean training images beside those of D_collect in every choice of a repair.",
    )
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.2, description="Share of D_collect's images that only select."
    )
    methods: tuple[str, ...] = Field(
        ("none", "finetune", "bn_adapt", "metarepair"), min_length=1, description="Repair methods, compared."
    )
    seeds: tuple[int, ...] = Field((0,), min_length=1, description="One repair per method and seed.")
    export: tuple[Literal["torch", "onnx"], ...] | None = Field(
        None,
        min_length=1,
        description="Programs made of each repaired DNN beside its weights: torch (model.pt2), onnx (model.onnx).",
    )

    @field_validator("methods", "seeds")
    @classmethod
    def _once(cls, values: tuple[str | int, ...]) -> tuple[str | int, ...]:
        return each_once(values)


class EvaluateConfig(Section):
    """What a repaired DNN is judged on."""

    others: tuple[Corruption, ...] | None = Field(
        None, description="The other corruptions; all that are not the target when not given."
    )
    others_images: Positive = Field(500, description="Test images per severity of another corruption.")

    @field_validator("others")
    @classmethod
    def _names(cls, names: tuple[str, ...] | None) -> tuple[str, ...] | None:
        return None if names is None else _resolved(names)


class Config(Section):
    """Everything that a run depends on."""

    name: str = Field(
        min_length=1,
        max_length=200,
        pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]*$",
        description="The run's folder under storage.",
    )
    storage_path: str = Field("runs", min_length=1, description="Folder that holds the runs.")
    seed: Annotated[int, Field(ge=0)] = Field(0, description="Key of every draw.")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: cuda where there is one.")
    workers: Annotated[int, Field(ge=0)] = Field(
        0, description="Ray workers; 0: in this process, without Ray."
    )
    targets: tuple[Corruption, ...] = Field(("gaussian_noise",), min_length=1, description="What to repair.")
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    mining: MiningConfig
    features: FeatureConfig = FeatureConfig()
    experiences: ExperienceConfig = ExperienceConfig()
    task: TaskConfig = TaskConfig()
    inner: InnerConfig = InnerConfig()
    train: TrainConfig = TrainConfig()
    repair: RepairSettings = RepairSettings()
    methods: MethodSettings = Field(
        {}, description="Settings of the repair methods themselves, by method, as methods.apricot.models."
    )
    compare: CompareConfig = CompareConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    pretrain: PretrainConfig = PretrainConfig()
    ray: RayConfig = RayConfig()
    search: SearchConfig | None = Field(
        None, description="What `metarepair tune` tries; other verbs leave it."
    )

    @field_validator("targets")
    @classmethod
    def _names(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return _resolved(names)

    @model_validator(mode="after")
    def _can_be_extrapolated(self) -> Config:
        if self.features.extrapolate and self.mining.collect < FEWEST_ROWS:
            raise ValueError(
                f"features.extrapolate: true needs mining.collect of at least {FEWEST_ROWS} examples to extrapolate "
                f"from; it is {self.mining.collect}"
            )
        return self

    @model_validator(mode="after")
    def _fewer_at_least(self) -> Config:
        least = self.ray.min_workers
        if least is not None and least > self.workers:
            raise ValueError(f"ray.min_workers={least} is more than workers={self.workers}")
        return self

    @model_validator(mode="after")
    def _rates_can_be_learned(self) -> Config:
        if self.inner.learned_rates and self.train.order == "reptile":
            raise ValueError("inner.learned_rates needs the query's gradient; train.order: reptile has none")
        return self


def _resolved(names: tuple[str, ...]) -> tuple[str, ...]:
    resolved = tuple(resolve(name) for name in names)
    if len(set(resolved)) != len(resolved):
        raise ConfigError(f"a corruption is named twice in {', '.join(names)}. Name each once.")
    return resolved
