"""Report the progress of one stage of one environment or target, from its file listing and small JSON files.

A unit counts only if it would be kept if its writer died now.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from metarepair.inspection.facts import Member
from metarepair.inspection.stored import (
    StoredStage,
    episodes_of,
    json_or_none,
    newest,
    real,
    reals,
    rows_of,
    sealed_parts,
    section,
    whole,
)
from metarepair.runs.checkpoint import STATE
from tasks.storage.paths import read_json


def member_of(stage: StoredStage) -> Member:
    """Return the progress of a started stage. A total that only other stages can give is left None."""
    member = Member(
        path=stage.path,
        name=stage.name,
        role=stage.role,
        state="begun" if stage.manifest is None else "done",
        written=moment(max(file.written_s for file in stage.files.values())),
        metrics={},
    )
    member = _unfinished(member, stage) if stage.manifest is None else _finished(member, stage)
    return replace(member, unit=stage.stage.unit if member.done is not None else None)


def moment(seconds: float) -> str:
    """Return a time, in seconds since 1970, as ISO 8601."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _finished(member: Member, stage: StoredStage) -> Member:
    if stage.kind == "meta":
        return replace(member, done=whole(stage.facts.get("episodes")), total=episodes_of(stage.config))
    return replace(member, metrics=reals(stage.facts, ["clean_test_accuracy"]))


def _unfinished(member: Member, stage: StoredStage) -> Member:
    if stage.stage.parts is not None:
        return replace(member, done=len(sealed_parts(stage)), total=whole(stage.begun_with.get("parts")))
    match stage.kind:
        case "meta":
            return _training(member, stage)
        case "repaired":
            return replace(member, done=len(stage.matching("*/*/model.safetensors")))
        case "deployed":
            return _pretraining(member, stage, section(stage.config, "pretrain").get("epochs"))
        case "joint":
            return _pretraining(member, stage, section(stage.config, "joint").get("rounds"))
        case _:
            return member


def _training(member: Member, stage: StoredStage) -> Member:
    """Return the progress at the newest checkpoint whose tensor files exist. Tensors are not read."""
    member = replace(member, done=0, total=episodes_of(stage.config))
    for name in sorted(stage.matching(f"*/{STATE}"), reverse=True):
        checkpoint = name.removesuffix(f"/{STATE}")
        try:
            state = read_json(stage.folder / name)
            tensors = [f"{checkpoint}/{tensor}" for tensor in state["files"]]
            if whole(state["episode"]) is not None and all(tensor in stage.files for tensor in tensors):
                return _trained(replace(member, written=moment(stage.files[name].written_s)), state)
        except FileNotFoundError:
            continue  # an older checkpoint, which its writer has just deleted
        except (OSError, ValueError, KeyError, TypeError):
            pass
        member = replace(member, passed_over=(*member.passed_over, checkpoint))
    return member


def _trained(member: Member, state: Mapping[str, Any]) -> Member:
    """Add the progress and metrics recorded in a checkpoint's state."""
    done, seconds = state["episode"], real(state.get("seconds"))
    total = episodes_of(state.get("config")) or member.total
    known = done and seconds is not None and total is not None
    left = seconds / done * max(total - done, 0) if known else None
    return replace(member, done=done, total=total, metrics=_training_metrics(state), seconds_left=left)


def _training_metrics(state: Mapping[str, Any]) -> dict[str, float]:
    """Return the newest metrics in a checkpoint's history."""
    rows, skipped = rows_of(state.get("history")), whole(state.get("skipped"))
    keys = ("query_loss", "query_accuracy", "validation_accuracy")
    found = {key: value for key in keys if (value := newest(rows, key)) is not None}
    return found | ({"skipped_episodes": float(skipped)} if skipped else {})


def _pretraining(member: Member, stage: StoredStage, epochs: object) -> Member:
    rows = json_or_none(stage.folder / "epochs.json")
    try:
        last, seconds = dict(rows[-1]), [float(row["seconds"]) for row in rows]
    except (ValueError, KeyError, TypeError, IndexError):
        last, seconds = {}, []
    total = whole(epochs)
    left = None
    if seconds and total is not None:
        left = sum(seconds) / len(seconds) * max(total - len(seconds), 0)
    metrics = reals(last, ["loss", "validation_accuracy"])
    return replace(member, done=len(seconds), total=total, metrics=metrics, seconds_left=left)
