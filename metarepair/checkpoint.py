"""A folder of training checkpoints in, the newest complete one out.

A checkpoint is model.safetensors, optimizer.safetensors and state.json, which is written last and holds the
digests of the other two: a half-copied one is passed over, whoever copied it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tasks.manifest import file_hash, write_text

STATE = "state.json"


def seal(folder: Path, state: dict[str, Any]) -> None:
    """Writes state.json with the digests of the safetensors files beside it."""
    files = {path.name: file_hash(path) for path in sorted(folder.glob("*.safetensors"))}
    write_text(folder / STATE, json.dumps(state | {"files": files}, allow_nan=False))


def read_state(folder: Path) -> dict[str, Any] | None:
    """The state of a complete checkpoint, None when anything of it is missing or damaged."""
    try:
        state: dict[str, Any] = json.loads((folder / STATE).read_text(encoding="utf-8"))
        whole = all(file_hash(folder / name) == digest for name, digest in state["files"].items())
    except (OSError, ValueError, KeyError):
        return None
    return state if whole else None


def newest_checkpoint(folder: Path) -> Path | None:
    """The complete checkpoint under `folder` with the most episodes, None when there is none."""
    newest, most = None, -1
    for path in sorted(folder.rglob(STATE)):
        state = None if path.parent.suffix == ".tmp" else read_state(path.parent)
        if state is not None and state["episode"] > most:
            newest, most = path.parent, state["episode"]
    return newest
