"""Find the stages under a folder, by their position in a run's layout or else by their manifests."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from stat import S_ISREG
from typing import Literal

from metarepair.inspection.paths import GROUPS, folders_in, not_a_part, unreadable_folder
from metarepair.runs.layout import SEEDS
from tasks.errors import DataError
from tasks.storage.manifest import MANIFEST, read_manifest
from tasks.storage.paths import Place, inside
from tasks.storage.stages import (
    BEGUN,
    COMPARED,
    FEATURES,
    LISTED,
    Kind,
    Role,
    Stage,
    stage_of_group,
    stage_of_title,
)


@dataclass(frozen=True)
class FileStat:
    """A file's size and modification time, in seconds since 1970 by the clock of its storage."""

    size_bytes: int
    written_s: float


Listing = Mapping[str, FileStat]  # every file under a folder, by its relative path


@dataclass(frozen=True, kw_only=True)
class StageFolder:
    """The folder of one stage. `path`: relative to the inspected path. Role and name are None if it has none."""

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
        """Return the files that match one of the patterns, without half-written files."""
        return [f for f in self.files if ".tmp" not in f and any(fnmatchcase(f, p) for p in patterns)]

    def path_of(self, file: str) -> str:
        """Return a file's path, relative to the inspected path."""
        return file if self.path == "." else f"{self.path}/{file}"

    @property
    def mark(self) -> str | None:
        """The file that marks the stage as started, None if there is none."""
        return next(iter(self.matching(*(p for p in self.stage.traces if p.endswith(BEGUN)))), None)

    @property
    def begun(self) -> bool:
        """Whether any file exists that such a stage writes."""
        return MANIFEST in self.files or bool(self.matching(*self.stage.traces))


@dataclass(frozen=True, kw_only=True)
class Found:
    """The kind of the inspected folder, its stages, and all its files."""

    kind: Literal["run", "folder", "stage"]
    stages: tuple[StageFolder, ...]
    files: Listing


def find_stages(root: Place) -> Found:
    """Return the stages under `root`. Raises DataError, which says what is allowed, if there are none."""
    folders = folders_in(root)
    by_place = _by_place(root)
    if by_place is None and root.name not in GROUPS and not {path.name for path in folders} & set(GROUPS):
        raise not_a_part(root, folders)  # before the walk: `root` may be a whole disk
    files = stat_files(root)
    if by_place is not None:
        own = stage_folder(*by_place, folder=root, path=".", files=files)
        if own.begun:
            return Found(kind="stage", stages=(own,), files=files)
    group = stage_of_group(root.name)
    if group is not None and group.depth:
        members = _stages_in(root, group, "", files)
        if members:
            return Found(kind="folder", stages=members, files=files)
    stages = [
        one for prefix in ("", *prefixes_of_seeds(files)) for one in stages_of_run(root, files, prefix=prefix)
    ]
    if not stages:
        raise not_a_part(root, folders)
    return Found(kind="run", stages=tuple(stages), files=files)


def stages_of_run(root: Place, files: Listing, *, prefix: str = "") -> tuple[StageFolder, ...]:
    """Return the stages that were started in a run's folder, in the order of the run.

    prefix: the folder of the run under `root`, whose files are `files`, with a slash at its end.
    """
    run = root / prefix if prefix else root
    return tuple(
        one
        for stage in LISTED
        for one in _stages_in(run / stage.group, stage, f"{prefix}{stage.group}/", files)
    )


def prefixes_of_seeds(files: Listing) -> list[str]:
    """Return the folders of the runs of a comparison's seeds, as `stages_of_run` takes them."""
    seeds = {path.split("/")[1] for path in files if path.startswith(f"{SEEDS}/")}
    return [f"{SEEDS}/{seed}/" for seed in sorted(filter(str.isdecimal, seeds), key=int)]


def stat_files(folder: Place) -> dict[str, FileStat]:
    """Return every file under `folder`, by relative path. Links are followed; each folder is visited once."""
    if not isinstance(folder, Path):
        stats = {
            inside(path, folder): FileStat(int(info.size), info.mtime_ns / 1e9)
            for path, info in folder.objects()
        }
        return dict(sorted(stats.items()))
    found, seen = {}, {os.path.realpath(folder)}

    def refuse(error: OSError) -> None:
        raise unreadable_folder(error.filename, error) from error

    for parent, folders, names in os.walk(folder, followlinks=True, onerror=refuse):
        real = {name: os.path.realpath(Path(parent) / name) for name in folders}
        folders[:] = sorted(name for name in folders if real[name] not in seen)
        seen.update(real.values())
        for name in names:
            path = Path(parent) / name
            with suppress(FileNotFoundError):  # a writer just deleted it, or a link is broken
                if S_ISREG((stat := path.stat()).st_mode):
                    found[inside(path, folder)] = FileStat(stat.st_size, stat.st_mtime)
    return dict(sorted(found.items()))


def _by_place(folder: Place) -> tuple[Stage, str | None] | None:
    """Return a stage's kind and name from its position, or from its manifest if it was copied elsewhere."""
    for stage in sorted(LISTED, key=lambda stage: not stage.depth):  # a method may be called `score`
        names: list[str] = []
        above = folder
        for _ in range(stage.depth):
            above, names = above.parent, [above.name, *names]
        if above.name == stage.group and (stage is not COMPARED or folder.name.isdecimal()):
            return stage, "/".join(names) or None
    try:
        manifest = read_manifest(folder)
    except DataError:
        return None
    if manifest is None or not isinstance(manifest.stage, str):
        return None
    found = stage_of_title(manifest.stage)
    return None if found is None else (found[0], "/".join(found[1]) or None)


def stage_folder(stage: Stage, name: str | None, *, folder: Place, path: str, files: Listing) -> StageFolder:
    """Return the folder of a stage. Folders of features have the role in their name."""
    role, (first, _, rest) = stage.role, (name or "").partition("-")
    if stage is FEATURES and first in ("experience", "target") and rest:
        role, name = "experience" if first == "experience" else "target", rest
    return StageFolder(folder=folder, path=path, stage=stage, role=role, name=name, files=files)


def _stages_in(folder: Place, stage: Stage, prefix: str, files: Listing) -> tuple[StageFolder, ...]:
    """Return the stages of one kind in `folder`, whose files start with `prefix`; at depth 0, the folder itself."""
    members: dict[str, dict[str, FileStat]] = {}
    for path, stat in under(files, prefix).items():
        parts = path.split("/", stage.depth)
        if len(parts) > stage.depth:
            members.setdefault("/".join(parts[: stage.depth]), {})[parts[stage.depth]] = stat
    found = (
        stage_folder(
            stage,
            member or None,
            folder=folder / member if member else folder,
            path=f"{prefix}{member}".removesuffix("/"),
            files=own,
        )
        for member, own in sorted(members.items())
    )
    return tuple(one for one in found if one.begun)


def under(files: Listing, prefix: str) -> Listing:
    """Return the files whose paths start with `prefix`, by the rest of their paths."""
    return {f.removeprefix(prefix): stat for f, stat in files.items() if f.startswith(prefix)}
