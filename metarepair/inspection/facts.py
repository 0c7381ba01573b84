"""Define the records that `inspect` and `status` print as text or JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from metarepair.runs.layout import SEEDS
from tasks.storage.stages import Kind, Role

SCHEMA_VERSION = 1
FileState = Literal["ok", "differs", "missing", "unreadable", "unchecked"]
StageState = Literal["done", "begun", "not begun"]
RunState = Literal["finished", "under way", "unfinished", "not begun"]
BAD: tuple[FileState, ...] = ("differs", "missing", "unreadable")


@dataclass(frozen=True, kw_only=True)
class FileFacts:
    """A file of a stage. `promised_bytes`: size in the manifest. `size_bytes`: actual size."""

    name: str
    size_bytes: int | None
    promised_bytes: int | None
    state: FileState


@dataclass(frozen=True, kw_only=True)
class SeverityFacts:
    """One severity of an environment. `failures`: all failures. `collected`: those in D_collect."""

    examined: int | None
    correct: int | None
    accuracy: float | None
    failures: int | None
    collected: int | None


@dataclass(frozen=True, kw_only=True)
class EnvironmentFacts:
    """Failures of one environment, by severity, and D_collect by class. `parts`: intact shards, if unfinished."""

    pixels: str | None
    parts: int | None
    severities: dict[str, SeverityFacts]
    collected_per_class: dict[str, int]
    classes_named: bool


@dataclass(frozen=True, kw_only=True)
class FeatureFacts:
    """Features of one environment."""

    extractor: str | None
    dim: int | None


@dataclass(frozen=True, kw_only=True)
class ScoreFacts:
    """Each target's confidence in its experiences."""

    confidence: dict[str, dict[str, float]]
    effective_number: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class CheckpointFacts:
    """A checkpoint of meta-training. A checkpoint that is not whole is ignored when training resumes."""

    path: str
    episode: int | None
    whole: bool


@dataclass(frozen=True, kw_only=True)
class TrainingFacts:
    """Meta-training for one target."""

    episodes: int | None
    episodes_wanted: int | None
    skipped_episodes: int | None
    seconds: float | None
    validation_accuracy: float | None
    checkpoints: tuple[CheckpointFacts, ...]


@dataclass(frozen=True, kw_only=True)
class MethodFacts:
    """A method's row in result.json or judged.json. Accuracies are fractions."""

    method: str
    target: str | None
    seed: int | None
    d_fail: float | None
    corrupted: float | None
    clean: float | None


@dataclass(frozen=True, kw_only=True)
class RepairFacts:
    """Repairs of one target, or one repair of a comparison."""

    methods: tuple[MethodFacts, ...]
    weights: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class DeployedFacts:
    """A pretrained DNN."""

    clean_test_accuracy: float | None
    epochs: int | None


@dataclass(frozen=True, kw_only=True)
class KitFacts:
    """The pack of a repair kit. deployed: the digest of its DNN's weights. learned: images that it learned from."""

    deployed: str | None
    experiences: tuple[str, ...]
    clean_images: int
    failures: bool
    learned: int | None


Details = (
    EnvironmentFacts | FeatureFacts | ScoreFacts | TrainingFacts | RepairFacts | DeployedFacts | KitFacts
)


@dataclass(frozen=True, kw_only=True)
class StageFacts:
    """A stage's folder. `path`: relative to the inspected path. `result`: digest that later stages depend on."""

    path: str
    kind: Kind
    role: Role | None
    name: str | None
    finished: bool
    manifest: Literal["ok", "missing", "damaged"]
    written: str | None
    size_bytes: int
    settings: str | None
    result: str | None
    config: dict[str, Any]
    inputs: dict[str, Any]
    rows: dict[str, Any]
    versions: dict[str, Any]
    files: tuple[FileFacts, ...]
    details: Details | None

    @property
    def seed_run(self) -> str | None:
        """The folder `seeds/SEED` of the seed's run that the stage belongs to, None for the inspected run's own."""
        group, _, rest = self.path.partition("/")
        return f"{group}/{rest.partition('/')[0]}" if group == SEEDS and "/" in rest else None


@dataclass(frozen=True, kw_only=True)
class LoneFile:
    """A file that was inspected by its own path."""

    name: str
    format: Literal["failures", "parquet", "safetensors"]
    size_bytes: int
    promised_bytes: int | None
    state: FileState
    promised_by: str | None
    header: dict[str, Any]
    collected_per_severity: dict[str, int]
    collected_per_class: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class Damage:
    """A damaged file and its remedy."""

    path: str
    state: str
    remedy: str


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """Everything that `inspect` shows of `path`."""

    path: str
    kind: Literal["run", "folder", "file"] | Kind
    size_bytes: int
    damaged: tuple[Damage, ...]
    stages: tuple[StageFacts, ...]
    d_fail_reads: int | None = None
    file: LoneFile | None = None

    @property
    def finished(self) -> bool | None:
        """Whether every stage has its manifest; None for a file."""
        return all(stage.finished for stage in self.stages) if self.stages else None

    def plain(self) -> dict[str, Any]:
        """As JSON."""
        return {"schema_version": SCHEMA_VERSION, **asdict(self), "finished": self.finished}


@dataclass(frozen=True, kw_only=True)
class HolderFacts:
    """The process that writes to the run, or that died without releasing it.

    All fields but `alive` are None if the process has only just started. last_sign_s: seconds since its last
    sign of life.
    """

    host: str | None = None
    pid: int | None = None
    verb: str | None = None
    since: str | None = None
    last_sign_s: float | None = None
    alive: bool


@dataclass(frozen=True, kw_only=True)
class Member:
    """A stage of one environment or target, or a stage without such parts. `done` and `total` count its units.

    judged: number of judged repairs, for a comparison.
    """

    path: str
    name: str | None
    role: str | None
    state: StageState
    done: int | None = None
    total: int | None = None
    unit: str | None = None
    judged: int | None = None
    written: str | None = None
    metrics: dict[str, float]
    seconds_left: float | None = None
    passed_over: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class StageStatus:
    """All members of a stage. `seconds_left` assumes the current pace of work."""

    name: str
    members: tuple[Member, ...]
    seconds_left: float | None = None

    @property
    def done(self) -> int:
        return sum(member.state == "done" for member in self.members)

    @property
    def state(self) -> StageState:
        if all(member.state == "not begun" for member in self.members):
            return "not begun"  # also if the members are not known yet
        return "done" if self.done == len(self.members) else "begun"


@dataclass(frozen=True, kw_only=True)
class RunningTrial:
    """A trial that has not ended: `rounds` of `of` are done. `objective`: its value after these rounds."""

    name: str
    rounds: int | None
    of: int | None
    objective: float | None
    written: str | None


@dataclass(frozen=True, kw_only=True)
class BestTrial:
    """The best trial so far."""

    name: str
    state: str
    objective: float


@dataclass(frozen=True, kw_only=True)
class SearchStatus:
    """A search: the number of trials in each state, and in total."""

    state: StageState
    trials: dict[str, int]
    total: int | None
    best: BestTrial | None
    running: tuple[RunningTrial, ...]


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """Everything that `status` shows of a run."""

    path: str
    holder: HolderFacts | None
    d_fail_reads: int | None
    damaged: tuple[Damage, ...]
    stages: tuple[StageStatus, ...]
    search: SearchStatus | None
    unused: tuple[str, ...] = ()

    @property
    def state(self) -> RunState:
        parts = [stage.state for stage in self.stages] + ([self.search.state] if self.search else [])
        if self.holder is not None and self.holder.alive:
            return "under way"
        if all(part == "not begun" for part in parts):
            return "not begun"
        return "finished" if all(part == "done" for part in parts) else "unfinished"

    def plain(self) -> dict[str, Any]:
        """As JSON."""
        head = {"schema_version": SCHEMA_VERSION, "path": self.path, "state": self.state}
        values: dict[str, Any] = head | asdict(self)
        for stage, plain in zip(self.stages, values["stages"], strict=True):
            plain |= {"state": stage.state, "done": stage.done, "total": len(stage.members)}
        return values
