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

from metarepair.inspection.facts import Kind, Role
from tasks.errors import DataError
from tasks.storage.manifest import BEGUN, MANIFEST, read_manifest
from tasks.storage.paths import Place, inside

# Folders of a run that hold one stage for each corruption or target, and those that are one, as a run makes them.
GROUPS: dict[str, tuple[Kind, Role | None]] = {
    "experiences": ("environment", "experience"),
    "targets": ("environment", "target"),
    "features": ("features", None),
    "meta": ("meta", None),
    "repaired": ("repaired", None),
    "prepared": ("prepared", None),
    "compare": ("compared", None),
}
DEPTHS = {"compare": 3}  # folders below a group to its stages: TARGET/METHOD/SEED; one where nothing is said
SINGLES: dict[str, Kind] = {
    "deployed": "deployed",
    "score": "score",
    "hypothesis": "hypothesis",
}
ORDER = (
    "deployed",
    "experiences",
    "targets",
    "features",
    "score",
    "meta",
    "repaired",
    "prepared",
    "compare",
    "hypothesis",
)
# What an unfinished stage of each kind may have, by patterns.
TRACES: dict[Kind, tuple[str, ...]] = {
    "environment": (f"parts/{BEGUN}", "parts/*.arrow", "collect.arrow", "fail.arrow"),
    "features": (BEGUN, "part-*.parquet", "moments.npy"),
    "score": ("fid.parquet", "matrix.parquet", "confidence.parquet"),
    "meta": (BEGUN, "checkpoints/*/state.json", "model.safetensors"),
    "repaired": ("*/*/model.safetensors", "samples.parquet", "result.json"),
    "deployed": (BEGUN, "epochs.json", "model.safetensors"),
    "hypothesis": (f"gains/{BEGUN}", "gains/*.json", "pairs.parquet", "summary.json"),
    "prepared": (BEGUN, "*.safetensors"),
    "compared": (BEGUN, "model.safetensors", "training.safetensors"),
}
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
    """The folder of one stage. `path` is relative to what is inspected."""

    folder: Place
    path: str
    kind: Kind
    role: Role | None
    name: str | None
    files: Listing

    def matching(self, *patterns: str) -> list[str]:
        """Its files that fit one of the patterns; half-written ones never do."""
        return [f for f in self.files if ".tmp" not in f and any(fnmatchcase(f, p) for p in patterns)]

    @property
    def begun(self) -> bool:
        """Anything there that such a stage writes."""
        return MANIFEST in self.files or bool(self.matching(*TRACES[self.kind]))


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
    if by_place is None and root.name not in GROUPS and not {path.name for path in entries} & set(ORDER):
        raise DataError(_refusal(root, entries))  # before anything is walked through: it may be a whole disk
    files = list_files(root)
    if by_place is not None:
        kind, role, name = by_place
        stage = StagePlace(folder=root, path=".", kind=kind, role=role, name=name, files=files)
        if stage.begun:
            return Found(kind="stage", stages=(stage,), files=files)
    if root.name in GROUPS:
        members = _members(root, root.name, "", files)
        if members:
            return Found(kind="folder", stages=tuple(members), files=files)
    stages = stages_of_run(root, files)
    if not stages:
        raise DataError(_refusal(root, entries))
    return Found(kind="run", stages=stages, files=files)


def stages_of_run(root: Place, files: Listing) -> tuple[StagePlace, ...]:
    """The stages that were begun in a run's folder, in their order."""
    return tuple(stage for name in ORDER for stage in _stages_of(root, name, files))


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


def _by_place(folder: Place) -> tuple[Kind, Role | None, str | None] | None:
    """Kind, role and name of a stage by where it stands; of one that was copied elsewhere, by its manifest."""
    if folder.parent.name in GROUPS and folder.parent.name not in DEPTHS:
        return _named(folder.parent.name, folder.name)
    above = (folder.parent.parent, folder.parent)
    if above[0].parent.name == "compare" and folder.name.isdecimal():
        return _named("compare", "/".join(place.name for place in (*above, folder)))
    if folder.name in SINGLES:
        return SINGLES[folder.name], None, None
    try:
        manifest = read_manifest(folder)
    except (DataError, RecursionError):
        return None
    words = manifest.stage.split() if manifest is not None and isinstance(manifest.stage, str) else []
    match words:
        case ["mine", "experience", name]:
            return "environment", "experience", name
        case ["mine", "target", name]:
            return "environment", "target", name
        case ["features", ("experience" | "target") as role, name]:
            return _named("features", f"{role}-{name}")
        case ["train", name]:
            return "meta", None, name
        case ["repair", name]:
            return "repaired", None, name
        case ["prepare", name]:
            return "prepared", None, name
        case ["compare", target, method, seed]:
            return _named("compare", f"{target}/{method}/{seed}")
        case ["pretrain"]:
            return "deployed", None, None
        case [word] if word in SINGLES:
            return SINGLES[word], None, None
    return None


def _named(group: str, name: str) -> tuple[Kind, Role | None, str]:
    """Kind, role and name of a group's member; features have the role in their folder's name."""
    kind, role = GROUPS[group]
    first, _, rest = name.partition("-")
    if kind == "features" and first in ("experience", "target") and rest:
        return kind, "experience" if first == "experience" else "target", rest
    return kind, role, name


def _stages_of(root: Place, name: str, files: Listing) -> list[StagePlace]:
    if name in GROUPS:
        return _members(root / name, name, f"{name}/", files)
    own = _under(files, f"{name}/")
    stage = StagePlace(folder=root / name, path=name, kind=SINGLES[name], role=None, name=None, files=own)
    return [stage] if stage.begun else []


def _members(folder: Place, group: str, prefix: str, files: Listing) -> list[StagePlace]:
    """The stages of a group, whose files begin with `prefix`."""
    depth = DEPTHS.get(group, 1)
    members: dict[str, dict[str, int]] = {}
    for path, size in _under(files, prefix).items():
        parts = path.split("/", depth)
        if len(parts) > depth:
            members.setdefault("/".join(parts[:depth]), {})[parts[depth]] = size
    found = []
    for member, own in sorted(members.items()):
        kind, role, name = _named(group, member)
        path = f"{prefix}{member}"
        found.append(
            StagePlace(folder=folder / member, path=path, kind=kind, role=role, name=name, files=own)
        )
    return [stage for stage in found if stage.begun]


def _under(files: Listing, prefix: str) -> Listing:
    return {f.removeprefix(prefix): size for f, size in files.items() if f.startswith(prefix)}


def _unreadable(folder: Place | str, error: OSError) -> str:
    return f"{folder} cannot be read ({error.strerror}). Permit it, or name another."


def _refusal(root: Place, entries: list[Place]) -> str:
    runs = [path for path in entries if any((path / name).is_dir() for name in ORDER)]
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
