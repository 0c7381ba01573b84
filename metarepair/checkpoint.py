"""A folder of training checkpoints in, the newest complete one out.

A checkpoint is model.safetensors, optimizer.safetensors and state.json, which is written last and holds the
digests of the other two: a half-copied one is passed over, whoever copied it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tasks.manifest import file_hash
from tasks.storage import Place, copy_file, find, remove_tree, write_text

STATE = "state.json"


def seal(folder: Place, state: dict[str, Any]) -> None:
    """Writes state.json with the digests of the safetensors files beside it."""
    files = {path.name: file_hash(path) for path in find(folder, "*.safetensors")}
    write_text(folder / STATE, json.dumps(state | {"files": files}, allow_nan=False))


def read_state(folder: Place) -> dict[str, Any] | None:
    """The state of a complete checkpoint, None when anything of it is missing or damaged."""
    try:
        state: dict[str, Any] = json.loads((folder / STATE).read_text(encoding="utf-8"))
        whole = all(file_hash(folder / name) == digest for name, digest in state["files"].items())
    except (OSError, ValueError, KeyError):
        return None
    return state if whole else None


def newest_checkpoint(folder: Place) -> Place | None:
    """The complete checkpoint under `folder` with the most episodes, None when there is none."""
    newest, most = None, -1
    for path in find(folder, STATE, deep=True):
        state = None if path.parent.suffix == ".tmp" else read_state(path.parent)
        if state is not None and state["episode"] > most:
            newest, most = path.parent, state["episode"]
    return newest


def publish(folder: Path, final: Place) -> None:
    """Puts a checkpoint that was written at `folder`, on this machine, in its place: state.json last."""
    remove_tree(final)
    for path in sorted(folder.iterdir(), key=lambda p: (p.name == STATE, p.name)):
        copy_file(path, final / path.name)
