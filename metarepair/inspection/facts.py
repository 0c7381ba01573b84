"""What an inspection tells, as records: `metarepair inspect --json` is their plain form."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from tasks.storage.stages import Kind, Role

SCHEMA_VERSION = 1
State = Literal["ok", "differs", "missing", "unreadable", "unchecked"]
BAD: tuple[State, ...] = ("differs", "missing", "unreadable")
JUDGED = ("judged.json", "samples.parquet")  # a comparison's judgement of a repair, each with a seal


@dataclass(frozen=True, kw_only=True)
class FileFacts:
    """A file of a stage. `promised_bytes` is the manifest's, `size_bytes` what is there."""

    name: str
    size_bytes: int | None
    promised_bytes: int | None
    state: State


@dataclass(frozen=True, kw_only=True)
class SeverityFacts:
    """One severity of an environment. `failures` are of both sides, `collected` are those in D_collect."""

    examined: int | None
    correct: int | None
    accuracy: float | None
    failures: int | None
    collected: int | None


@dataclass(frozen=True, kw_only=True)
class EnvironmentFacts:
    """Failures of one corruption: by severity, and D_collect by class. `parts` are the shards of an unfinished one."""

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
    """A checkpoint of meta-training. One that is not whole is passed over when training goes on."""

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
    """A method's row of result.json or judged.json. Accuracies are fractions."""

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


Details = EnvironmentFacts | FeatureFacts | ScoreFacts | TrainingFacts | RepairFacts | DeployedFacts


@dataclass(frozen=True, kw_only=True)
class StageFacts:
    """A stage's folder. `path` is relative to what is inspected; `result` is what later stages depend on."""

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


@dataclass(frozen=True, kw_only=True)
class LoneFile:
    """One file that was asked for by its own path."""

    name: str
    format: Literal["failures", "parquet", "safetensors"]
    size_bytes: int
    promised_bytes: int | None
    state: State
    promised_by: str | None
    header: dict[str, Any]
    collected_per_severity: dict[str, int]
    collected_per_class: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class Damage:
    """A file that is not as promised, and what to do."""

    path: str
    state: str
    remedy: str


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """Everything that was found under `path`."""

    path: str
    kind: Literal["run", "folder", "file"] | Kind
    size_bytes: int
    damaged: tuple[Damage, ...]
    stages: tuple[StageFacts, ...]
    d_fail_reads: int | None = None
    file: LoneFile | None = None

    @property
    def finished(self) -> bool | None:
        """Each stage has its manifest; None for a file."""
        return all(stage.finished for stage in self.stages) if self.stages else None

    def plain(self) -> dict[str, Any]:
        """As JSON."""
        return {"schema_version": SCHEMA_VERSION, **asdict(self), "finished": self.finished}
