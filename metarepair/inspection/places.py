"""A folder in, the stages under it out: by their place in the layout of a run, else by their manifests."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from stat import S_ISREG
from typing import Literal

from tasks.errors import DataError
from tasks.storage.manifest import MANIFEST, read_manifest
from tasks.storage.paths import Place, inside
from tasks.storage.stages import COMPARED, FEATURES, LISTED, Kind, Role, Stage, stage_of_group, stage_of_title

GROUPS = tuple(stage.group for stage in LISTED)
ALLOWED = (
    "Name a run's folder (STORAGE/NAME), a folder in it (experiences/CORRUPTION, targets/CORRUPTION, "
    "features/ENVIRONMENT, score, meta/TARGET, repaired/TARGET, prepared/METHOD, compare/TARGET/METHOD/SEED), "
    "or an .arrow, .parquet or .safetensors file in one"
)
Listing = Mapping[str, int]  # every file under a folder, by its relative path, with its bytes


@dataclass(frozen=True)
class FileStat:
    """Bytes of a file, and when it was written: seconds since 1970, by the clock of its storage."""

    size_bytes: int
    written_s: float


@dataclass(frozen=True, kw_only=True)
class StagePlace:
    """The folder of one stage. `path` is relative to what is inspected; role and name are None where it has none."""

    folder: Place
    path: str
    stage: Stage
    role: Role | None
    name: str | None
    files: Listing

    @property
    def kind(self) -> Kind:
        return self.stage.kind

    def matching(self, *patterns: str) -> list[str]:
        """Its files that fit one of the patterns; half-written ones never do."""
        return [f for f in self.files if ".tmp" not in f and any(fnmatchcase(f, p) for p in patterns)]

    @property
    def begun(self) -> bool:
        """Anything there that such a stage writes."""
        return MANIFEST in self.files or bool(self.matching(*self.stage.traces))


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a folder is, its stages, and all its files."""

    kind: Literal["run", "folder", "stage"]
    stages: tuple[StagePlace, ...]
    files: Listing


def find_stages(root: Place) -> Found:
    """The stages under `root`. Raises DataError, saying what is allowed, when it has none."""
    entries = folders_in(root)
    by_place = _by_place(root)
    if by_place is None and root.name not in GROUPS and not {path.name for path in entries} & set(GROUPS):
        raise DataError(_refusal(root, entries))  # before anything is walked through: it may be a whole disk
    files = list_files(root)
    if by_place is not None:
        place = _placed(*by_place, folder=root, path=".", files=files)
        if place.begun:
            return Found(kind="stage", stages=(place,), files=files)
    group = stage_of_group(root.name)
    if group is not None and group.depth:
        members = _members(root, group, "", files)
        if members:
            return Found(kind="folder", stages=tuple(members), files=files)
    stages = stages_of_run(root, files)
    if not stages:
        raise DataError(_refusal(root, entries))
    return Found(kind="run", stages=stages, files=files)


def stages_of_run(root: Place, files: Listing) -> tuple[StagePlace, ...]:
    """The stages that were begun in a run's folder, in their order."""
    return tuple(place for stage in LISTED for place in _stages_of(root, stage, files))


def folders_in(folder: Place) -> list[Place]:
    """Its folders by name, without hidden ones. Raises DataError when it cannot be read."""
    try:
        found = [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
    except OSError as error:
        raise DataError(_unreadable(folder, error)) from error
    return sorted(found, key=str)


def list_files(folder: Place) -> dict[str, int]:
    """Every file under `folder` with its bytes."""
    return {name: stat.size_bytes for name, stat in stat_files(folder).items()}


def stat_files(folder: Place) -> dict[str, FileStat]:
    """Every file under `folder`, by its relative path; links are followed, each folder is visited once."""
    if not isinstance(folder, Path):
        stats = {
            inside(path, folder): FileStat(int(info.size), info.mtime_ns / 1e9)
            for path, info in folder.objects()
        }
        return dict(sorted(stats.items()))
    found, seen = {}, {os.path.realpath(folder)}

    def refuse(error: OSError) -> None:
        raise DataError(_unreadable(error.filename, error)) from error

    for parent, folders, names in os.walk(folder, followlinks=True, onerror=refuse):
        real = {name: os.path.realpath(Path(parent) / name) for name in folders}
        folders[:] = sorted(name for name in folders if real[name] not in seen)
        seen.update(real.values())
        for name in names:
            path = Path(parent) / name
            with suppress(FileNotFoundError):  # a writer is at work, or a link leads nowhere
                if S_ISREG((stat := path.stat()).st_mode):
                    found[inside(path, folder)] = FileStat(stat.st_size, stat.st_mtime)
    return dict(sorted(found.items()))


def _by_place(folder: Place) -> tuple[Stage, str | None] | None:
    """The kind and name of a stage by where it stands; of one that was copied elsewhere, by its manifest."""
    for stage in sorted(LISTED, key=lambda stage: not stage.depth):  # a method may be called `score`
        names: list[str] = []
        above = folder
        for _ in range(stage.depth):
            above, names = above.parent, [above.name, *names]
        if above.name == stage.group and (stage is not COMPARED or folder.name.isdecimal()):
            return stage, "/".join(names) or None
    try:
        manifest = read_manifest(folder)
    except (DataError, RecursionError):
        return None
    if manifest is None or not isinstance(manifest.stage, str):
        return None
    found = stage_of_title(manifest.stage)
    return None if found is None else (found[0], "/".join(found[1]) or None)


def _placed(stage: Stage, name: str | None, *, folder: Place, path: str, files: Listing) -> StagePlace:
    """The place of a stage; features have the role in their folder's name."""
    role, (first, _, rest) = stage.role, (name or "").partition("-")
    if stage is FEATURES and first in ("experience", "target") and rest:
        role, name = "experience" if first == "experience" else "target", rest
    return StagePlace(folder=folder, path=path, stage=stage, role=role, name=name, files=files)


def _stages_of(root: Place, stage: Stage, files: Listing) -> list[StagePlace]:
    if stage.depth:
        return _members(root / stage.group, stage, f"{stage.group}/", files)
    own = _under(files, f"{stage.group}/")
    place = _placed(stage, None, folder=root / stage.group, path=stage.group, files=own)
    return [place] if place.begun else []


def _members(folder: Place, stage: Stage, prefix: str, files: Listing) -> list[StagePlace]:
    """The stages of a kind that lie in `folder`, whose files begin with `prefix`."""
    members: dict[str, dict[str, int]] = {}
    for path, size in _under(files, prefix).items():
        parts = path.split("/", stage.depth)
        if len(parts) > stage.depth:
            members.setdefault("/".join(parts[: stage.depth]), {})[parts[stage.depth]] = size
    found = [
        _placed(stage, member, folder=folder / member, path=f"{prefix}{member}", files=own)
        for member, own in sorted(members.items())
    ]
    return [place for place in found if place.begun]


def _under(files: Listing, prefix: str) -> Listing:
    return {f.removeprefix(prefix): size for f, size in files.items() if f.startswith(prefix)}


def _unreadable(folder: Place | str, error: OSError) -> str:
    return f"{folder} cannot be read ({error.strerror}). Permit it, or name another."


def _refusal(root: Place, entries: list[Place]) -> str:
    runs = [path for path in entries if any((path / name).is_dir() for name in GROUPS)]
    if runs:
        shown = ", ".join(path.name for path in runs[:10]) + (", …" if len(runs) > 10 else "")
        return f"{root} is a folder of runs ({shown}). Name one of them: metarepair inspect {runs[0]}"
    if root.name == "report" and (root / "index.html").exists():
        return (
            f"{root} is a report. Open {root / 'index.html'} in a browser, or inspect the run: {root.parent}"
        )
    if next(iter(root.iterdir()), None) is None:
        return f"{root} is empty: nothing was written there yet. {ALLOWED}."
    return f"{root} is no run, and no folder of one. {ALLOWED}."
