"""The table of all stages of a run: names, folders, the commands that make them, and their inputs.

Manifests, the pipeline, `--restart`, `inspect` and `status` read this table. To add a stage, add an entry here and
write the function that makes it (`metarepair.runs.run_stage.run_stage` does the rest).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

Kind = Literal[
    "images",
    "environment",
    "features",
    "score",
    "joint",
    "merged",
    "meta",
    "kit",
    "repaired",
    "deployed",
    "hypothesis",
    "prepared",
    "compared",
    "search",
]
Role = Literal["experience", "target"]
BEGUN = "begun.json"  # records what an unfinished stage depends on


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage, or all stages of one kind.

    kind: its name in `inspect --json`.
    name: the first word of `stage` in its manifest; the role, if any, and the names for the words in capitals in
        `folder` follow.
    verb: the command that makes it.
    folder: its folder in the run; words in capitals stand for names.
    missing: what to do first if the stage is not finished, as a phrase.
    settings: the keys that `config` in its manifest may have.
    needs: the kinds whose results it reads.
    traces: glob patterns of the files that an unfinished stage may have.
    parts: glob pattern of the parts that are sealed one by one; `None` if there are none.
    unit: the unit of its progress.
    mends: whether its command regenerates damaged files, and only those.
    """

    kind: Kind
    name: str
    verb: str
    folder: str
    missing: str
    settings: tuple[str, ...]
    needs: tuple[Kind, ...] = ()
    traces: tuple[str, ...] = ()
    parts: str | None = None
    unit: str | None = None
    role: Role | None = None
    mends: bool = False

    @property
    def group(self) -> str:
        """The top folder in a run: its own, or that of all stages of its kind."""
        return self.folder.partition("/")[0]

    @property
    def depth(self) -> int:
        """Number of folder levels below `group`; 0 if the stage is the only one of its kind."""
        return self.folder.count("/")

    @property
    def marked(self) -> bool:
        """Whether an unfinished stage records what it depends on in a file in its own folder."""
        return BEGUN in self.traces

    @property
    def remedy(self) -> str:
        """What to do if the stage is not finished, with the command."""
        return f"{self.missing}: metarepair {self.verb} --config …"

    def title(self, *names: str) -> str:
        """The `stage` of its manifest: `mine experience fog`, `train fog`, `score`."""
        return " ".join([self.name, *([self.role] if self.role else []), *names])


DEPLOYED = Stage(
    kind="deployed",
    name="pretrain",
    verb="pretrain",
    folder="deployed",
    missing="Pretrain first",
    settings=("seed", "pretrain", "model", "data", "preparation"),
    traces=(BEGUN, "epochs.json", "model.safetensors"),
    unit="epochs",
)
IMAGES = Stage(
    kind="images",
    name="images",
    verb="mine",
    folder="environments/ENVIRONMENT",
    missing="Mine first",
    settings=("image_size", "classes"),
    traces=(BEGUN, "images.bin", "index.parquet"),
    mends=True,
)
EXPERIENCE = Stage(
    kind="environment",
    role="experience",
    name="mine",
    verb="mine",
    folder="experiences/ENVIRONMENT",
    missing="Mine it first",
    settings=("seed", "model", "data", "mining", "corruption_draws", "corruption_plugins", "environment"),
    needs=("images",),
    traces=(f"parts/{BEGUN}", "parts/*.arrow", "collect.arrow", "fail.arrow"),
    parts="parts/*.arrow",
    unit="shards",
    mends=True,
)
TARGET = replace(EXPERIENCE, role="target", folder="targets/ENVIRONMENT")
FEATURES = Stage(
    kind="features",
    name="features",
    verb="score",
    folder="features/ENVIRONMENT",
    missing="Score first",
    settings=("extractor", "shard_images", "weights_digest"),
    needs=("environment",),
    traces=(BEGUN, "part-*.parquet", "moments.npy"),
    parts="part-*.parquet",
    unit="shards",
    mends=True,
)
SCORE = Stage(
    kind="score",
    name="score",
    verb="score",
    folder="score",
    missing="Score first",
    settings=("seed", "targets", "experiences", "mined", "features"),
    needs=("features",),
    traces=("fid.parquet", "matrix.parquet", "confidence.parquet"),
    mends=True,
)
JOINT = Stage(
    kind="joint",
    name="joint",
    verb="train",
    folder="joint",
    missing="Train first",
    settings=(
        "seed",
        "model",
        "joint",
        "data",
        "experiences",
        "severities",
        "judge_fraction",
        "corruption_draws",
        "corruption_plugins",
        "core_seconds",
    ),
    needs=("images", "score"),
    traces=(BEGUN, "epochs.json", "training.safetensors"),
    unit="rounds",
)
MERGED = Stage(
    kind="merged",
    name="merged",
    verb="train",
    folder="merged/EXPERIENCE",
    missing="Train first",
    settings=("seed", "model", "validation_fraction", "settings", "core_seconds"),
    needs=("environment",),
    traces=(BEGUN, "model.safetensors", "training.safetensors"),
)
META = Stage(
    kind="meta",
    name="train",
    verb="train",
    folder="meta/TARGET",
    missing="Train it first",
    settings=("seed", "model", "task", "inner", "experiences", "train", "core_seconds"),
    needs=("environment", "score", "joint"),
    traces=(
        BEGUN,
        "checkpoints/*/state.json",
        "start.safetensors",
        "model.safetensors",
    ),  # the last before 0.2
    unit="episodes",
)
KIT = Stage(
    kind="kit",
    name="kit",
    verb="kit",
    folder="pack",
    missing="Make the kit first",
    settings=("seed", "model", "data", "images", "failures"),
    needs=("environment", "features", "score", "joint", "meta"),
    traces=("kit.json", "*.safetensors", "*.npy", "*/*.npy", "*/*.parquet"),
)
REPAIRED = Stage(
    kind="repaired",
    name="repair",
    verb="repair",
    folder="repaired/TARGET",
    missing="Repair it first",
    settings=(
        "seed",
        "model",
        "task",
        "inner",
        "repair",
        "evaluate",
        "limits",
        "severities",
        "methods",
        "corruption_plugins",
    ),
    needs=("environment", "score", "meta", "joint", "merged"),
    traces=("*/*/model.safetensors", "samples.parquet", "result.json"),
    unit="repairs",
)
PREPARED = Stage(
    kind="prepared",
    name="prepare",
    verb="compare",
    folder="prepared/METHOD",
    missing="Repair first",
    settings=("seed", "model", "settings", "core_seconds"),
    traces=(BEGUN, "*.safetensors"),
    parts="*",
    unit="pieces",
)
COMPARED = Stage(
    kind="compared",
    name="compare",
    verb="compare",
    folder="compare/TARGET/METHOD/SEED",
    missing="Repair first",
    settings=(
        "seed",
        "model",
        "validation_fraction",
        "settings",
        "budget",
        "limits",
        "task",
        "inner",
        "repair",
    ),
    needs=("environment", "score", "meta", "joint", "merged", "prepared"),
    traces=(BEGUN, "model.safetensors", "training.safetensors"),
)
HYPOTHESIS = Stage(
    kind="hypothesis",
    name="hypothesis",
    verb="hypothesis",
    folder="hypothesis",
    missing="Study it first",
    settings=("seed", "model", "inner", "task", "repair"),
    needs=("environment", "score"),
    traces=(f"gains/{BEGUN}", "gains/*.json", "pairs.parquet", "summary.json"),
    parts="gains/*.json",
    unit="fine-tunes",
    mends=True,
)
SEARCH = Stage(
    kind="search",
    name="search",
    verb="tune",
    folder="search",
    missing="Search first",
    settings=(*META.settings, "search", "judged by", "repair"),
    needs=("environment", "features"),
)
STAGES = (
    DEPLOYED,
    IMAGES,
    EXPERIENCE,
    TARGET,
    FEATURES,
    SCORE,
    JOINT,
    MERGED,
    META,
    KIT,
    REPAIRED,
    PREPARED,
    COMPARED,
    HYPOTHESIS,
    SEARCH,
)
# The stages that `inspect` and `status` describe by their files. They describe a search by its trials.
LISTED = tuple(stage for stage in STAGES if stage is not SEARCH)


def stage_of_kind(kind: str) -> Stage:
    """The entry of a kind; the experiences' entry for `environment`."""
    return next(stage for stage in STAGES if stage.kind == kind)


def stage_of_group(group: str) -> Stage | None:
    """The entry whose top folder in a run is `group`, or `None`."""
    return next((stage for stage in LISTED if stage.group == group), None)


def stage_of_title(title: str) -> tuple[Stage, Sequence[str]] | None:
    """Split the `stage` of a manifest into its entry and names; `None` for any other text.

    The names of features include a role: `features experience fog`.
    """
    words = title.split()
    for stage in LISTED:
        names = words[1:]
        if words[:1] != [stage.name] or (stage.role and names[:1] != [stage.role]):
            continue
        names = names[1:] if stage.role else names
        if stage is FEATURES and len(names) == 2 and names[0] in ("experience", "target"):
            return stage, ["-".join(names)]
        if len(names) == stage.depth and stage is not FEATURES:
            return stage, names
    return None


def stages_of(verb: str) -> tuple[Stage, ...]:
    """The stages that a verb makes, in the table's order."""
    return tuple(stage for stage in STAGES if stage.verb == verb)
