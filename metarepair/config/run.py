"""The settings of a run: frozen, strict, every field described with its unit and range.

`metarepair.config.load` reads them from a YAML file.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ModelWrapValidatorHandler, field_validator, model_validator

from metarepair.config.comparison import CompareConfig
from metarepair.config.data import Colour, DataConfig
from metarepair.config.environments import EnvironmentConfig, check_environment_name, naming, resolve_names
from metarepair.config.joint import JointConfig
from metarepair.config.limits import LimitsConfig
from metarepair.config.pretraining import PretrainConfig
from metarepair.config.ray import RayConfig
from metarepair.config.search import SearchConfig
from metarepair.config.section import Count, Fraction, Positive, Rate, Section, each_once
from metarepair.config.training import InnerConfig, TrainConfig
from tasks.datasets.normalisation import check_mean, check_std
from tasks.distances.intervals import FEWEST_ROWS, LEVEL, fewest_resamples

TrackerName = Literal["tensorboard", "mlflow", "wandb"]
EnvironmentName = str  # the name of a corruption, or a key of `environments`
MethodSettings = dict[str, dict[str, Any]]

SHARED = "shared"  # the name of the meta-training for all targets


class ModelConfig(Section):
    """The deployed DNN."""

    name: str = Field(
        "resnet8_cifar",
        min_length=1,
        description="The DNN: `NAME` or `timm:NAME` for a model of timm; `hf-hub:ORG/NAME` (a model of timm) or "
        "`hf:ORG/NAME` (a classifier of transformers) for one of the Hugging Face Hub, with `@REVISION` if wanted; "
        "`torchvision:NAME`; or `module:FACTORY`, the import path of a function or class that returns an `nn.Module`.",
    )
    weights: str = Field(
        "shipped:resnet8_cifar10",
        description="Weights file, safetensors or torch.save; `shipped:NAME` for one that the project ships; "
        "`hf-hub:…`, `hf:…` or `torchvision:WEIGHTS.ENTRY` for one of a hub. If not set, those of the hub of "
        "`name`.",
    )
    entry: str | None = Field(
        None,
        min_length=1,
        description="Entry of a torch.save file that holds the weights; with a dot at its end, the prefix of the "
        "tensor names to take, of any file. If not set, both are found automatically.",
    )
    stem: Literal["imagenet", "cifar"] = Field(
        "imagenet",
        description="`imagenet`: the stem as timm builds it; `cifar`: a 3 × 3 convolution at stride 1 without pooling, "
        "for small images.",
    )
    input_size: Annotated[int, Field(ge=8, le=1024)] | None = Field(
        None,
        description="Side in pixels, 8 to 1024, that images are resized to for the DNN. If not set, the size that the "
        "model's hub states; of other models, and if null, they keep their size.",
    )
    normalisation: Literal["dataset", "checkpoint"] = Field(
        "dataset",
        description="Mean and standard deviation of the pixels: the data set's (`dataset`), or those that timm states "
        "for the model (`checkpoint`).",
    )

    mean: Colour | None = Field(
        None,
        description="Mean of the pixels as [red, green, blue], 0 to 1 each; replaces that of `normalisation`. If not "
        "set, and neither is `normalisation`, the mean that the model's hub states.",
    )
    std: Colour | None = Field(
        None,
        description="Standard deviation of the pixels, in the form of `mean`, 1/255 to 1 each; replaces that of "
        "`normalisation`.",
    )

    @model_validator(mode="after")
    def _of_pixels_in_0_to_1(self) -> ModelConfig:
        check_mean("model.mean", self.mean or ())
        check_std("model.std", self.std or ())
        return self


class MiningConfig(Section):
    """Mining: corrupt images, classify them, keep the failures (paper Sec. 5.1.3)."""

    experiences: tuple[EnvironmentName, ...] = Field(
        description="Corruptions and environments to mine experiences from; at least one, each once. Left out with "
        "`kit`, which has experiences of its own.",
    )
    images: Positive | None = Field(
        None,
        description="Number of training images, drawn at random, from which the experience of a corruption is mined; "
        "at least 1. If not set, all.",
    )
    severities: tuple[Annotated[int, Field(ge=1, le=5)], ...] = Field(
        (1, 2, 3, 4, 5),
        min_length=1,
        description="Severities of a corruption, pooled into one environment; 1 to 5, at least one, each once.",
    )
    collect: Positive = Field(
        1000, description="Failures in D_collect of each experience and target; at least 1."
    )
    at_most: bool = Field(
        False,
        description="Whether an environment with fewer failures than `collect` is used all the same, with half of "
        "them in D_collect; if not, that stops the run. Your own images always are.",
    )
    collect_rule: Literal["random", "stratified"] = Field(
        "random",
        description="How failures are drawn into D_collect: at random, as in the paper, or equally many of each class "
        "(`stratified`).",
    )
    judge_fraction: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        0.5,
        description="Share of the test images, above 0 and below 1, that are set aside before mining and only judge: "
        "D_fail and every accuracy come from them, D_collect from the others. If not set (null), as in the paper: "
        "D_fail is every failure that was not collected.",
    )
    split_by: Literal["image", "example"] = Field(
        "image",
        description="`image`: D_collect and D_fail share no image; `example`: they share no example, as the paper "
        "says literally.",
    )
    pixels: Literal["stored", "recomputed"] = Field(
        "stored",
        description="`stored`: failures are written with their pixels; `recomputed`: with digests of the pixels, which "
        "are computed again when needed.",
    )
    batch_size: Positive = Field(500, description="Images per forward pass; at least 1.")
    shard_images: Positive = Field(
        2500, description="Clean images per work item of a mining actor; at least 1."
    )

    @field_validator("severities")
    @classmethod
    def _once(cls, severities: tuple[int, ...]) -> tuple[int, ...]:
        return each_once(severities)

    @field_validator("experiences")
    @classmethod
    def _names(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return resolve_names(names)


class FeatureConfig(Section):
    """Features for the distance between environments (paper Eq. 7)."""

    extractor: str = Field(
        "deployed",
        description="Network that computes the features: `deployed` (the DNN itself), `inception`, "
        "`efficientnet_lite0`, or `timm:NAME` with `weights`.",
    )
    weights: str | None = Field(None, description="Weights file of the extractor, if it needs one.")
    batch_size: Positive = Field(100, description="Images per forward pass; at least 1.")
    shard_images: Positive = Field(
        250, description="Collected examples per work item of a feature actor; at least 1."
    )
    bootstrap: Count = Field(
        0,
        description="Bootstrap resamples for the 95 % interval of each experience's distance to a target, 40 or more; "
        "0: no interval.",
    )
    extrapolate: bool = Field(
        False,
        description="Whether to compute FID∞ too, the distance extrapolated to infinitely many examples; needs "
        "`mining.collect` of at least 20.",
    )

    @field_validator("extractor", mode="before")
    @classmethod
    def _one_word(cls, extractor: object) -> object:
        if isinstance(extractor, dict):  # YAML reads `timm: resnet18` and `timm:` as a mapping
            raise ValueError(
                "give one word, such as inception or timm:resnet18, with the name after timm: and no space"
            )
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
    """The experiences that a target learns from, and the confidence in each (paper Eq. 8)."""

    choice: Literal["all", "top_k", "category", "list"] = Field(
        "all",
        description="Experiences that a target learns from: `all`, the nearest (`top_k`), those of the target's "
        "`category`, or a `list`.",
    )
    top_k: Positive | None = Field(
        None, description="Number of nearest experiences, with `choice: top_k`; at least 1."
    )
    names: tuple[EnvironmentName, ...] = Field(
        (), description="The experiences, with `choice: list`; each once."
    )
    rule: Literal["softmax", "hinge", "cutoff", "uniform"] = Field(
        "hinge",
        description="Confidence from the distance q: `softmax` (Eq. 8 as printed), `hinge` (alike up to β, then "
        "decaying), `cutoff` (decaying, 0 beyond β) or `uniform`.",
    )
    alpha: Annotated[float, Field(ge=0)] | None = Field(
        None,
        description="Decay α of the confidence per unit of distance; 0 or more. If not set, the α that makes the "
        "effective number of experiences 3.",
    )
    beta: Annotated[float, Field(ge=0)] | None = Field(
        None,
        description="Threshold β of the distance; 0 or more. If not set, the smallest distance; with `cutoff`, the "
        "median.",
    )

    @field_validator("names")
    @classmethod
    def _names(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return resolve_names(names)

    @model_validator(mode="after")
    def _complete(self) -> ExperienceConfig:
        if self.choice == "top_k" and self.top_k is None:
            raise ValueError("choice: top_k needs top_k, the number of experiences")
        if self.choice == "list" and not self.names:
            raise ValueError("choice: list needs names, the experiences")
        return self


class TaskConfig(Section):
    """Semantic-cover tasks (paper Sec. 4.2)."""

    shots: Positive = Field(10, description="Support examples per class; at least 1.")
    clean_support: Count = Field(
        0,
        description="Clean training images added to the failures of each support; 0 (as in the paper) or more.",
    )
    query_size: Positive = Field(100, description="Query examples of a task; at least 1.")


class RepairSettings(Section):
    """The repair, which is the meta-test (Algorithm 1, lines 13-23)."""

    episodes: Positive = Field(10, description="Episodes M; at least 1.")
    tasks: Positive = Field(4, description="Tasks S of an episode; at least 1.")
    rates: tuple[Rate, ...] = Field(
        (0.03,),
        min_length=1,
        description="Inner learning rates to try, the same for every method, from which validation chooses; at least "
        "one, each above 0, at most 10.",
    )
    update: Literal["accumulated", "separate"] = Field(
        "accumulated",
        description="`accumulated`: the updates of an episode's tasks add up (lines 17-21); `separate`: each task "
        "starts anew (the paper's ablation).",
    )
    interpolate: tuple[Fraction, ...] = Field(
        (1.0,),
        min_length=1,
        description="Weights to try for the repaired parameters in their average with the deployed ones, from which "
        "validation chooses; at least one, each 0 to 1 (1: the repaired parameters alone).",
    )
    clean_weight: Fraction = Field(
        0.0,
        description="Weight of accuracy on held-out clean training images, beside that on D_collect's validation "
        "part, in every choice of a repair; 0 to 1.",
    )
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.2,
        description="Share of D_collect's images that are held out for validation; above 0, below 1.",
    )
    methods: tuple[str, ...] = Field(
        ("joint_sgd", "metarepair", "finetune", "bn_adapt", "none"),
        min_length=1,
        description="Repair methods to run and report; at least one, each once.",
    )
    seeds: tuple[Count, ...] = Field(
        (0,),
        min_length=1,
        description="Seeds of the repairs, one repair per method and seed; whole numbers, 0 or more, each once.",
    )
    export: tuple[Literal["torch", "onnx"], ...] | None = Field(
        None,
        min_length=1,
        description="Programs to write beside the weights of each repaired DNN: `torch` (model.pt2) or `onnx` "
        "(model.onnx). If not set, none.",
    )

    @field_validator("methods", "seeds")
    @classmethod
    def _once(cls, values: tuple[str | int, ...]) -> tuple[str | int, ...]:
        return each_once(values)


class EvaluateConfig(Section):
    """The evaluation of repaired DNNs."""

    others: tuple[EnvironmentName, ...] | None = Field(
        None,
        description="Other corruptions and environments to evaluate on, each once; the target itself is left out. If "
        "not set, the 19 published corruptions.",
    )
    others_images: Positive = Field(
        500, description="Test images per severity of each other corruption; at least 1."
    )

    @field_validator("others")
    @classmethod
    def _names(cls, names: tuple[str, ...] | None) -> tuple[str, ...] | None:
        return None if names is None else resolve_names(names)


class Config(Section):
    """Everything that a run depends on."""

    name: str = Field(
        min_length=1,
        max_length=200,
        pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]*$",
        description="Name of the run and of its folder under `storage_path`: 1 to 200 letters, digits, `_`, `-` or "
        "`.`, with no `.` at the start.",
    )
    storage_path: str = Field(
        "runs", min_length=1, description="Folder that holds the runs: a path, `s3://…` or `gs://…`."
    )
    seed: Count = Field(0, description="Seed of every random draw; 0 or more.")
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="Device of the DNN; `auto`: `cuda` if there is a GPU, else `cpu`."
    )
    preparation_budget: Annotated[float, Field(gt=0)] | None = Field(
        None,
        description="Core-seconds, the processor time of all workers, that each method spends on its preparation for "
        "all targets together, in place of `joint.rounds`, `train.episodes` and the like; above 0. If not set, these "
        "decide.",
    )
    workers: Count = Field(
        0, description="Number of Ray workers; 0: everything runs in this process, without Ray."
    )
    trackers: tuple[TrackerName, ...] = Field(
        ("tensorboard",),
        description="Programs that show the metrics of the run, each once: `tensorboard` (files in the run), `mlflow`, "
        "`wandb` (Weights & Biases). The last two take server, project and credentials from their own environment "
        "variables.",
    )
    targets: tuple[EnvironmentName, ...] = Field(
        ("gaussian_noise",),
        description="Corruptions and environments to repair the DNN for; at least one, each once. None for "
        "`metarepair kit`.",
    )
    environments: dict[str, EnvironmentConfig] = Field(
        {}, description="Environments by name: your own images, or corruptions of published archives."
    )
    data: DataConfig = Field(DataConfig(), description="The data set of clean images.")
    model: ModelConfig = Field(ModelConfig(), description="The deployed DNN.")
    kit: str | None = Field(
        None,
        min_length=1,
        description="Folder of a repair kit, made by `metarepair kit` for this DNN: its experiences, distances, joint "
        "training and θ_meta are used, and none are made; `shipped:NAME` for one that the project ships. If not set, "
        "the run makes its own.",
    )
    refine: Count = Field(
        0,
        description="Further episodes of meta-training for each target, from the θ_meta of `kit`, which must hold its "
        "failures; 0: none.",
    )
    mining: MiningConfig = Field(description="Mining: which failures are collected.")
    features: FeatureConfig = Field(
        FeatureConfig(), description="Features for the distance between environments."
    )
    experiences: ExperienceConfig = Field(
        ExperienceConfig(), description="The experiences that a target learns from."
    )
    task: TaskConfig = Field(TaskConfig(), description="The tasks of meta-training and repair.")
    inner: InnerConfig = Field(InnerConfig(), description="The inner loop of meta-training and repair.")
    train: TrainConfig = Field(TrainConfig(), description="Meta-training.")
    joint: JointConfig = Field(
        JointConfig(), description="Joint training on clean images and experiences, for the methods `joint…`."
    )
    repair: RepairSettings = Field(RepairSettings(), description="The repair.")
    limits: LimitsConfig = Field(
        LimitsConfig(), description="Limits within which a repair is taken in place of the deployed DNN."
    )
    methods: MethodSettings = Field(
        {}, description="Settings of single repair methods, by method name, such as `methods.apricot.epochs`."
    )
    compare: CompareConfig = Field(CompareConfig(), description="The comparison of `metarepair compare`.")
    evaluate: EvaluateConfig = Field(EvaluateConfig(), description="The evaluation of repaired DNNs.")
    pretrain: PretrainConfig = Field(PretrainConfig(), description="Pretraining, `metarepair pretrain`.")
    ray: RayConfig = Field(RayConfig(), description="Ray's resources and failure handling.")
    search: SearchConfig | None = Field(
        None, description="The search of `metarepair tune`; other verbs ignore it."
    )

    @model_validator(mode="wrap")
    @classmethod
    def _knows_its_environments(cls, values: Any, check: ModelWrapValidatorHandler[Self]) -> Self:
        """Let every setting that takes a corruption take the name of an environment."""
        given = values.get("environments") if isinstance(values, dict) else None
        names = given if isinstance(given, dict) else ()
        for name in names:
            check_environment_name(name)
        if isinstance(values, dict) and values.get("kit") is not None:
            values = _without_experiences(values)
        with naming(names):
            return check(values)

    @field_validator("trackers")
    @classmethod
    def _once(cls, trackers: tuple[TrackerName, ...]) -> tuple[TrackerName, ...]:
        return each_once(trackers)

    @field_validator("targets")
    @classmethod
    def _names(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return resolve_names(names)

    @model_validator(mode="after")
    def _has_experiences(self) -> Config:
        if self.kit is None and not self.mining.experiences:
            raise ValueError("mining.experiences=[]: it must have 1 or more entries")
        if self.kit is None and self.refine:
            raise ValueError(
                "refine continues the meta-training of a kit; give the kit, or leave refine at 0"
            )
        if self.kit is not None and self.mining.experiences:
            raise ValueError(
                "mining.experiences and kit are both given; a kit has experiences of its own, so leave out one of the "
                "two"
            )
        if self.kit is not None and (self.features.bootstrap or self.features.extrapolate):
            raise ValueError(
                "features.bootstrap and features.extrapolate need the features of single examples, and a kit holds "
                "their moments; leave them out with kit"
            )
        return self

    @model_validator(mode="after")
    def _can_be_extrapolated(self) -> Config:
        if self.features.extrapolate and self.mining.collect < FEWEST_ROWS:
            raise ValueError(
                f"features.extrapolate: true needs mining.collect of at least {FEWEST_ROWS}; it is "
                f"{self.mining.collect}"
            )
        return self

    @model_validator(mode="after")
    def _experiences_can_be_learned_from(self) -> Config:
        given = [name for name in self.mining.experiences if name in self.environments]
        archived = [name for name in given if self.environments[name].kind == "archive"]
        if archived and self.mining.judge_fraction is None:
            raise ValueError(
                f"the experience {archived[0]} is an archive, of the test images that judge when mining.judge_fraction "
                "is null; give a fraction, or leave it out of mining.experiences"
            )
        return self

    @model_validator(mode="after")
    def _every_share_has_an_image(self) -> Config:
        query, size = self.train.query, self.task.query_size
        beside = {key: getattr(query, key) for key in ("clean", "environment", "right")}
        whole = sum(beside.values())
        few = [key for key, share in beside.items() if 0 < share * size < 0.5 * whole]
        if few or (size < sum(share > 0 for share in beside.values())):
            raise ValueError(
                f"train.query.{few[0] if few else 'clean'} is less than an image of the {size} of a task "
                "(task.query_size). Raise its share, set it to 0, or raise task.query_size"
            )
        return self

    @model_validator(mode="after")
    def _images_choose_inside_limits(self) -> Config:
        if self.limits.active and self.mining.judge_fraction is None:
            raise ValueError(
                "limits choose by test images that do not judge, and mining.judge_fraction: null leaves none; give "
                "a fraction, or leave out limits"
            )
        return self

    @model_validator(mode="after")
    def _fewer_at_least(self) -> Config:
        least = self.ray.min_workers
        if least is not None and least > self.workers:
            raise ValueError(f"ray.min_workers={least} is more than workers={self.workers}")
        return self

    @model_validator(mode="after")
    def _inner_and_outer_fit(self) -> Config:
        if self.inner.learned_rates and self.train.order == "reptile":
            raise ValueError(
                "inner.learned_rates needs a query gradient, and train.order: reptile has none; change one of the two"
            )
        needs = {
            "inner.learned_rates": self.inner.learned_rates,
            "train.multi_step_episodes": self.train.multi_step_episodes,
            "train.order: reptile": self.train.order == "reptile",
        }
        used = [name for name, value in needs.items() if value]
        if self.inner.steps == 0 and used:
            raise ValueError(f"{used[0]} needs inner steps, and inner.steps is 0; change one of the two")
        return self

    @property
    def one_for_all(self) -> bool:
        """Whether one θ_meta serves all targets: that of a kit, unless it is refined, or with `train.shared`."""
        return not self.refine if self.kit is not None else self.train.shared

    @property
    def trainings(self) -> tuple[str, ...]:
        """The names of the meta-trainings: one for each target, or `shared`."""
        return (SHARED,) if self.one_for_all else self.targets

    def training_for(self, target: str) -> str:
        """The name of the meta-training that serves a target."""
        return SHARED if self.one_for_all else target

    def core_seconds(self, *, parts: int = 1) -> float | None:
        """The processor time for one of `parts` equal parts of a preparation; None if it does not decide."""
        return None if self.preparation_budget is None else self.preparation_budget / parts

    def budget_settings(self, *, parts: int = 1) -> dict[str, float]:
        """The same for the record of a stage, which has no such key if it does not decide."""
        spent = self.core_seconds(parts=parts)
        return {} if spent is None else {"core_seconds": spent}

    def has_own_images(self, name: str) -> bool:
        """Whether the named environment has images of the user's own; a corruption and an archive have none."""
        given = self.environments.get(name)
        return given is not None and given.kind == "images"

    @property
    def learns_from_test_images(self) -> bool:
        """Whether clean test images are learned from in some environment: in a corruption or an archive."""
        archived = [name for name in self.mining.experiences if name in self.environments]
        return not all(self.has_own_images(name) for name in (*self.targets, *archived))

    @property
    def shared_experiences(self) -> list[str]:
        """The experiences that are no targets: what is made from them serves all targets of the run."""
        return [name for name in self.mining.experiences if name not in self.targets]

    def corruptions_of(self, names: Iterable[str]) -> list[str]:
        """Return the corruptions among the named environments, with those of archives; a user's images have none."""
        found = []
        for name in names:
            given = self.environments.get(name)
            corruption = name if given is None else given.corruption
            if corruption is not None:
                found.append(corruption)
        return found


def _without_experiences(values: dict[str, Any]) -> dict[str, Any]:
    """The settings of a run with a kit, which need not say that nothing is mined but the targets."""
    mining = values.get("mining", {})
    return values | {"mining": {"experiences": ()} | mining} if isinstance(mining, dict) else values
