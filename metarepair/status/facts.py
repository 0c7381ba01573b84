"""What a status tells, as records: `metarepair status --json` is their plain form."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from metarepair.inspection.facts import Damage

SCHEMA_VERSION = 1
State = Literal["done", "begun", "not begun"]
RunState = Literal["finished", "under way", "unfinished", "not begun"]


@dataclass(frozen=True, kw_only=True)
class HolderFacts:
    """Who writes in the run, or died there without an end; all but `alive` is None for one that has only begun.

    last_sign_s: seconds since its last sign of life.
    """

    host: str | None = None
    pid: int | None = None
    verb: str | None = None
    since: str | None = None
    last_sign_s: float | None = None
    alive: bool


@dataclass(frozen=True, kw_only=True)
class Member:
    """A stage of one environment or target, or a stage that is one. `done` of `total` are its units.

    judged: of the repairs of a comparison.
    """

    path: str
    name: str | None
    role: str | None
    state: State
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
    """All members of a stage; `seconds_left` at the pace of those who work on it now."""

    name: str
    members: tuple[Member, ...]
    seconds_left: float | None = None

    @property
    def done(self) -> int:
        return sum(member.state == "done" for member in self.members)

    @property
    def state(self) -> State:
        if all(member.state == "not begun" for member in self.members):
            return "not begun"  # also where the members are not known yet
        return "done" if self.done == len(self.members) else "begun"


@dataclass(frozen=True, kw_only=True)
class RunningTrial:
    """A trial that is not over: `rounds` of `of` are done. `objective`: after these."""

    name: str
    rounds: int | None
    of: int | None
    objective: float | None
    written: str | None


@dataclass(frozen=True, kw_only=True)
class BestTrial:
    """The best of the trials so far."""

    name: str
    state: str
    objective: float


@dataclass(frozen=True, kw_only=True)
class SearchStatus:
    """A search: how many trials are in each state, out of how many."""

    state: State
    trials: dict[str, int]
    total: int | None
    best: BestTrial | None
    running: tuple[RunningTrial, ...]


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """Everything that is told of a run."""

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
