"""All stages of a run in one table: what each is called, where it lies, what makes it and what it builds on.

Manifests, the pipeline, `--restart`, `inspect` and `status` read this table. To add a stage, add an entry here and the
function that makes it (`metarepair.runs.run_stage.run_stage` does the rest).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

Kind = Literal[
    "environment",
    "features",
    "score",
    "meta",
    "repaired",
    "deployed",
    "hypothesis",
    "prepared",
    "compared",
    "search",
]
Role = Literal["experience", "target"]
BEGUN = "begun.json"  # marks an unfinished stage with what it depends on


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage, or all stages of a kind.

    kind: what `inspect --json` calls it. name: the first word of its manifest's `stage`; the other words are the role,
    where it has one, and those that stand in capitals in `folder`. verb: what makes it on the command line. settings:
    the keys that its manifest's `config` may have. needs: the kinds whose results it reads. traces: patterns of the
    files that an unfinished one may have. parts: the pattern of those that are sealed one by one. unit: what its
    progress counts. mends: whether its verb makes again what is damaged, and nothing else.
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
        """The folder in a run that holds it, or all of its kind."""
        return self.folder.partition("/")[0]

    @property
    def depth(self) -> int:
        """How many folders below `group` the stages of this kind lie; 0 for the only one of its kind."""
        return self.folder.count("/")

    @property
    def marked(self) -> bool:
        """Whether a file in its own folder says what an unfinished one depends on."""
        return BEGUN in self.traces

    @property
    def remedy(self) -> str:
        """What to do where the stage is not finished."""
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
EXPERIENCE = Stage(
    kind="environment",
    role="experience",
    name="mine",
    verb="mine",
    folder="experiences/CORRUPTION",
    missing="Mine it first",
    settings=("seed", "model", "data", "mining", "corruption_draws"),
    traces=(f"parts/{BEGUN}", "parts/*.arrow", "collect.arrow", "fail.arrow"),
    parts="parts/*.arrow",
    unit="shards",
    mends=True,
)
TARGET = replace(EXPERIENCE, role="target", folder="targets/CORRUPTION")
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
META = Stage(
    kind="meta",
    name="train",
    verb="train",
    folder="meta/TARGET",
    missing="Train it first",
    settings=("seed", "model", "task", "inner", "experiences", "train"),
    needs=("environment", "score"),
    traces=(BEGUN, "checkpoints/*/state.json", "model.safetensors"),
    unit="episodes",
)
REPAIRED = Stage(
    kind="repaired",
    name="repair",
    verb="repair",
    folder="repaired/TARGET",
    missing="Repair it first",
    settings=("seed", "model", "task", "inner", "repair", "evaluate", "severities", "methods"),
    needs=("environment", "meta"),
    traces=("*/*/model.safetensors", "samples.parquet", "result.json"),
    unit="repairs",
)
PREPARED = Stage(
    kind="prepared",
    name="prepare",
    verb="compare",
    folder="prepared/METHOD",
    missing="Repair first",
    settings=("seed", "model", "settings"),
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
    settings=("seed", "model", "validation_fraction", "settings", "budget", "task", "inner", "repair"),
    needs=("environment", "meta", "prepared"),
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
    EXPERIENCE,
    TARGET,
    FEATURES,
    SCORE,
    META,
    REPAIRED,
    PREPARED,
    COMPARED,
    HYPOTHESIS,
    SEARCH,
)
# Those that `inspect` and `status` tell of by their files; a search is told of by its trials.
LISTED = tuple(stage for stage in STAGES if stage is not SEARCH)


def stage_of_kind(kind: str) -> Stage:
    """The entry of a kind; for environments, that of experiences."""
    return next(stage for stage in STAGES if stage.kind == kind)


def stage_of_group(group: str) -> Stage | None:
    """The entry whose folder in a run is called `group`, None where there is none."""
    return next((stage for stage in LISTED if stage.group == group), None)


def stage_of_title(title: str) -> tuple[Stage, Sequence[str]] | None:
    """The entry and the names that the `stage` of a manifest is made of, None for any other text.

    Features have a role among their names: `features experience fog`.
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
