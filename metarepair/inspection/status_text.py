"""Format a status as text that fits on one screen; long lists are cut."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from metarepair.inspection.damage import WORDS
from metarepair.inspection.facts import (
    HolderFacts,
    Member,
    RunningTrial,
    RunStatus,
    SearchStatus,
    StageStatus,
)
from metarepair.inspection.seeds import ROLE as SEED
from metarepair.inspection.tables import count, d_fail_reads, percent
from metarepair.runs.progress import duration

SHOWN = 8  # lines shown of started members, trials, damaged files
NAMED = 6  # names shown of members that are not started


def describe_status(status: RunStatus) -> str:
    """Return the whole status as text."""
    lines = [_headline(status), *_holder(status.holder), *d_fail_reads(status.d_fail_reads), ""]
    started = "under way" if status.state == "under way" else "started"
    for stage in status.stages:
        lines += _stage(stage, started)
    if status.search is not None:
        lines += _search(status.search, started)
    lines += _seeds(status)
    if status.unused:
        shown = [f"  {path}" for path in status.unused]
        lines += ["", "Not counted, because a later score or comparison does not use them:"]
        lines += _cut(shown)
    if status.damaged:
        shown = [f"  {damage.path} {WORDS[damage.state]}" for damage in status.damaged]
        lines += ["", "Damaged, judging by file sizes:", *_cut(shown)]
    return "\n".join(lines)


def _seeds(status: RunStatus) -> list[str]:
    """Return the command for the run of each seed, if they have runs of their own."""
    seeds = [m for stage in status.stages for m in stage.members if m.role == SEED]
    shown = [f"  metarepair status {status.path}/{seed.path}  ({seed.state})" for seed in seeds]
    done = sum(seed.state == "done" for seed in seeds)
    head = f"Each seed has a run of its own; {done} of {len(seeds)} are complete:"
    return ["", head, *_cut(shown)] if seeds else []


def _headline(status: RunStatus) -> str:
    known = [stage for stage in status.stages if stage.members]
    done = sum(stage.state == "done" for stage in known)
    words = {
        "finished": "finished",
        "under way": "under way",
        "unfinished": "unfinished, and no process is working on it; the command that started it resumes it",
        "not begun": "nothing is done yet",
    }
    counted = (
        f"; {done} of {len(status.stages)} stages done" if status.state in ("under way", "unfinished") else ""
    )
    return f"{status.path}: {words[status.state]}{counted}"


def _holder(holder: HolderFacts | None) -> list[str]:
    if holder is None:
        return []
    if holder.host is None or holder.since is None:
        return ["Held by a process that has just started."]
    since = _ago(holder.since)
    process = f"`metarepair {holder.verb}`, process {holder.pid} on host {holder.host}, started {since}"
    sign = f"last sign of life {duration(holder.last_sign_s or 0.0)} ago"
    if holder.alive:
        return [f"Held by {process}, {sign}."]
    return [f"{process}, ended without releasing the run; {sign}. The next command takes over."]


def _stage(stage: StageStatus, started: str) -> list[str]:
    """Return a line for the stage, and below it one for each started member."""
    left = f", about {duration(stage.seconds_left)} left" if stage.seconds_left is not None else ""
    if stage.state == "done" and len(stage.members) == 1:
        return [_titled(stage.name, f"done{_of(stage.members[0])}")]
    done = f"{stage.done} of {len(stage.members)} done"
    if stage.state == "done":
        return [_titled(stage.name, f"done: {len(stage.members)} {_kinds(stage)}")]
    if stage.state == "not begun":
        names = _names(stage.members)
        return [_titled(stage.name, f"not started{f': {names}' if names else ''}")]
    running = [member for member in stage.members if member.state == "begun"]
    waiting = [member for member in stage.members if member.state == "not begun"]
    counted = f": {done}" if len(stage.members) > 1 else ""
    lines = [_titled(stage.name, f"{started}{counted}{left}")]
    lines += _cut([f"  {_member(member)}" for member in running])
    return lines + ([f"  not started: {_names(waiting)}"] if waiting else [])


def _titled(name: str, words: str) -> str:
    return f"{name:10s} {words}"


def _of(member: Member) -> str:
    return f": {_label(member)}" if member.name else ""


def _kinds(stage: StageStatus) -> str:
    """Return what a stage's members are: `targets`, `environments`, …"""
    if stage.name == "prepare":
        return "methods"
    if stage.name == "merged":
        return "experiences"
    roles = {member.role for member in stage.members}
    if roles == {None}:
        return "targets"
    return f"{roles.pop()}s" if len(roles) == 1 else "environments"


def _names(members: Sequence[Member]) -> str:
    names = [_label(member) for member in members if member.name]
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _label(member: Member) -> str:
    return f"{member.name} ({member.role})" if member.role else f"{member.name}"


def _member(member: Member) -> str:
    """Return `snow (target): 7 of 20 shards, last file 3 s ago`, and the newest metrics of a training."""
    parts = []
    if member.unit is not None:
        total = f" of {count(member.total)}" if member.total is not None else ""
        parts.append(f"{count(member.done)}{total} {member.unit}")
    if member.judged is not None:
        parts.append(f"{count(member.judged)} judged")
    if member.written is not None:
        what = "last checkpoint" if member.unit == "episodes" and member.done else "last file"
        parts.append(f"{what} {_ago(member.written)}")
    parts += [_metric(name, value) for name, value in member.metrics.items()]
    if member.seconds_left:
        parts.append(f"about {duration(member.seconds_left)} of work left")
    parts += [f"{path} is incomplete and will be ignored" for path in member.passed_over]
    return f"{_label(member) if member.name else member.path}: {', '.join(parts) or 'started'}"


def _metric(name: str, value: float) -> str:
    if name == "skipped_episodes":
        return f"{value:.0f} episodes skipped"
    shown = percent(value) if name.endswith("accuracy") else f"{value:.3f}"
    return f"{name.replace('_', ' ')} {shown}"


def _search(search: SearchStatus, started: str) -> list[str]:
    counts = [f"{number} {state}" for state, number in search.trials.items()]
    total = f" of {search.total} trials" if search.total is not None else " (trials)"
    told = f": {', '.join(counts)}{total}" if counts else (f": 0{total}" if search.total is not None else "")
    lines = [_titled("search", f"{'done' if search.state == 'done' else started}{told}")]
    if search.best is not None:
        so_far = "" if search.state == "done" else " so far"
        lines.append(
            f"  best{so_far}: {search.best.name} ({search.best.state}), objective {search.best.objective:.4f}"
        )
    return lines + _cut([f"  {_trial(trial)}" for trial in search.running])


def _trial(trial: RunningTrial) -> str:
    if not trial.rounds:
        return f"{trial.name}: no rounds yet"
    total = f" of {count(trial.of)}" if trial.of is not None else ""
    parts = [f"{count(trial.rounds)}{total} rounds"]
    if trial.objective is not None:
        parts.append(f"objective {trial.objective:.4f}")
    if trial.written is not None:
        parts.append(f"last {_ago(trial.written)}")
    return f"{trial.name}: {', '.join(parts)}"


def _cut(lines: list[str]) -> list[str]:
    return lines if len(lines) <= SHOWN else [*lines[:SHOWN], f"  and {len(lines) - SHOWN} more"]


def _ago(moment: str) -> str:
    seconds = (datetime.now(UTC) - datetime.fromisoformat(moment)).total_seconds()
    return f"{duration(max(seconds, 0.0))} ago"
