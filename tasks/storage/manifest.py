"""A finished stage's files in, `manifest.json` out, last: a folder without one is unfinished, whatever it holds.

A manifest keeps the settings the stage ran with, its inputs' hashes, row counts, file sizes and checksums, and
the package versions. A stage whose manifest matches is skipped; one whose settings differ is refused with the
difference. A key that an older manifest lacks counts as its default.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from tasks.errors import DataError, StageError, unreadable
from tasks.storage.paths import Place, local, remove, remove_tree, size_of, write_text
from tasks.storage.remote import RemotePath, forget_copies
from tasks.storage.settings import changes, difference, plain
from tasks.storage.stages import BEGUN, COMPARED, PREPARED, STAGES

logger = logging.getLogger(__name__)
MANIFEST = "manifest.json"
CHECKSUM = "checksum"
PARTS = "parts"
DAMAGED = (
    "Run the stage that made it again: `mine`, `score` and `hypothesis` make what is damaged again, and nothing else; "
    "other stages take --restart."
)
_PACKAGES = (
    "metarepair",
    "numpy",
    "opencv-python-headless",
    "pillow",
    "pyarrow",
    "ray",
    "scipy",
    "timm",
    "torch",
)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a finished stage promises. `files` maps names to [size in bytes, blake2b digest]."""

    stage: str
    config: dict[str, Any]
    inputs: dict[str, str]
    rows: dict[str, int]
    facts: dict[str, Any]
    files: dict[str, tuple[int, str]]
    versions: dict[str, str]

    @property
    def digest(self) -> str:
        """Identifies the stage's result for the stages that build on it; versions do not count."""
        content = [self.stage, self.config, self.inputs, self.rows, sorted(self.files.items())]
        return content_hash(content)


def content_hash(content: Any) -> str:
    """A digest of plain JSON content."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


def file_hash(path: Place) -> str:
    """A digest of a file's bytes."""
    digest = hashlib.blake2b(digest_size=16)
    with local(path).open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Installed versions of the packages that results depend on."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def write_manifest(
    folder: Place,
    *,
    stage: str,
    config: Mapping[str, Any],
    inputs: Mapping[str, str],
    files: Iterable[str],
    rows: Mapping[str, int] | None = None,
    facts: Mapping[str, Any] | None = None,
) -> Manifest:
    """Checksums `files` of `folder` and writes the manifest by one rename: the stage is done now."""
    manifest = Manifest(
        stage=stage,
        config=plain(config),
        inputs=dict(inputs),
        rows=dict(rows or {}),
        facts=plain(facts or {}),
        files={name: _size_and_hash(folder / name) for name in sorted(files)},
        versions=versions(),
    )
    content = asdict(manifest) | {CHECKSUM: content_hash(plain(asdict(manifest)))}
    write_text(folder / MANIFEST, json.dumps(content, indent=1, sort_keys=True) + "\n")
    return manifest


def _size_and_hash(path: Place) -> tuple[int, str]:
    here = local(path)
    return here.stat().st_size, file_hash(here)


def read_manifest(folder: Place) -> Manifest | None:
    """The manifest of `folder`, None when the stage is unfinished. Raises DataError when it is damaged."""
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.pop(CHECKSUM) != content_hash(content):
            raise ValueError("it is not as it was written")
        content["files"] = {name: (int(size), digest) for name, (size, digest) in content["files"].items()}
        return Manifest(**content)
    except FileNotFoundError:
        return None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is damaged (it is no JSON text). {DAMAGED}") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is damaged (it lacks what a manifest has). {DAMAGED}") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{unreadable(path, error)}. {DAMAGED}") from error


def require_manifest(folder: Place, remedy: str) -> Manifest:
    """The manifest of a stage that must be done. Raises StageError with the remedy when it is not."""
    manifest = read_manifest(folder)
    if manifest is None:
        raise StageError(f"{folder} is not finished (it has no {MANIFEST}). {remedy}")
    return manifest


def check_done(
    folder: Place,
    *,
    stage: str,
    config: Mapping[str, Any],
    inputs: Mapping[str, str],
) -> Manifest | None:
    """The manifest when this very stage is done, None when it is to be done (or gone on with).

    Raises StageError with the difference when the folder holds the stage with other settings or inputs, DataError when
    a file has another size than promised.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        return None
    _refuse_others(folder, manifest, stage, config, inputs)
    verify_sizes(folder, manifest)
    return manifest


def check_whole(
    folder: Place,
    *,
    stage: str,
    config: Mapping[str, Any],
    inputs: Mapping[str, str],
) -> Manifest | None:
    """As `check_done`, for a stage that mends itself: every file is read, and one that is not as promised is named.

    It is deleted, and the manifest with it (or the manifest alone, where that is damaged), so None says that the stage
    is to be gone on with. Raises StageError as `check_done` does.
    """
    try:
        manifest = read_manifest(folder)
    except DataError as error:
        damaged, manifest = [MANIFEST], None
        logger.warning(f"{str(error).removesuffix(DAMAGED)}What it stands for is made again now.")
    else:
        if manifest is None:
            return None
        _refuse_others(folder, manifest, stage, config, inputs)
        damaged = damaged_files(folder, manifest)
        for name in damaged:
            logger.warning(f"{folder / name} is damaged. What it holds is made again now.")
    if damaged:
        for name in (MANIFEST, *damaged):
            remove(folder / name)
        return None
    return manifest


def _refuse_others(
    folder: Place, manifest: Manifest, stage: str, config: Mapping[str, Any], inputs: Mapping[str, str]
) -> None:
    if manifest.stage != stage:
        raise StageError(
            f"{folder} holds {manifest.stage!r}, where {stage!r} belongs. Put it back where it came from, or delete "
            "the folder and run again."
        )
    lines = changes(manifest.config, config)
    lines += difference({"inputs": manifest.inputs}, {"inputs": dict(inputs)})
    if lines:
        shown = "; ".join(lines[:6])
        more = f"; and {len(lines) - 6} more" if len(lines) > 6 else ""
        raise StageError(
            f"{folder} holds the stage {stage!r} with other settings: {shown}{more}. Give this run another name, "
            "set the settings back, or begin anew with --restart (which deletes the stage and those after it)."
        )


def begin(
    folder: Place,
    *,
    config: Mapping[str, Any],
    inputs: Mapping[str, str],
    sealed: bool = False,
    parts: int | None = None,
) -> None:
    """Marks an unfinished stage with what it depends on, so that a killed one goes on with the same alone.

    parts: how many it will have, for those who look on.

    Raises StageError with the difference when `folder` was begun with other settings or inputs, DataError when the mark
    is damaged. With `sealed` parts, which tell themselves what they are of, a damaged mark is written anew.
    """
    path = folder / BEGUN
    content = plain({"config": config, "inputs": inputs})
    try:
        before = _read_mark(path) if path.exists() else content
    except (OSError, ValueError, TypeError) as error:
        if not sealed:
            raise DataError(f"{unreadable(path, error)}. Run the stage again with --restart.") from error
        remove(path)
        before = content
    lines = changes(before["config"], config)
    lines += difference(before | {"config": None}, content | {"config": None})
    if lines:
        shown = "; ".join(lines)
        raise StageError(
            f"{folder} is unfinished, and was begun with other settings: {shown}. Set them back to go on, give this "
            "run another name, or begin anew with --restart."
        )
    write_text(path, json.dumps(before | ({} if parts is None else {PARTS: parts})))


def _read_mark(path: Place) -> dict[str, Any]:
    mark = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(mark, dict) or not isinstance(mark.get("config"), dict):
        raise ValueError("it names no settings")
    return {key: value for key, value in mark.items() if key != PARTS}


def as_recorded(folder: Place, config: dict[str, Any]) -> dict[str, Any]:
    """`config` in the form in which `folder` records the same settings; as it is where it records none, or others.

    What an older version finished or began lacks the keys that came later. Seals and later stages know it by a digest
    of that form, so whoever makes a part of it anew records the same.
    """
    try:
        manifest = read_manifest(folder)
        recorded = _read_mark(folder / BEGUN)["config"] if manifest is None else manifest.config
    except (DataError, OSError, ValueError):
        return config
    return config if changes(recorded, config) else recorded


def verify_sizes(folder: Place, manifest: Manifest) -> None:
    """Raises DataError naming the first file that is missing or of another size than promised."""
    for name, (size, _) in manifest.files.items():
        found = size_of(folder / name)
        if found != size:
            state = "is missing" if found is None else f"has {found} bytes"
            raise DataError(
                f"{folder / name} {state}; its manifest promises {size} bytes. {_remedy(manifest)}"
            )


def verify_checksums(folder: Place, manifest: Manifest) -> None:
    """Reads every file. Raises DataError naming the first whose bytes are not the promised ones."""
    verify_sizes(folder, manifest)
    for name, (_, digest) in manifest.files.items():
        if not has_digest(folder / name, digest):
            raise DataError(f"{folder / name} differs from its checksum. {_remedy(manifest)}")


def _remedy(manifest: Manifest) -> str:
    name = manifest.stage.partition(" ")[0]
    stage = next((stage for stage in STAGES if stage.name == name), None)
    if stage in (COMPARED, PREPARED):
        return "Delete its folder, and run `metarepair compare` again: it makes that anew, and nothing else."
    if stage is None or not stage.mends:
        return "Run the stage again with --restart."
    return f"Run `metarepair {stage.verb}` again: it makes what is damaged again, and nothing else."


def has_digest(path: Place, digest: str) -> bool:
    """Whether a file has these bytes. A remote one whose copy on this node has others is fetched once more."""
    try:
        if file_hash(path) == digest:
            return True
        if not isinstance(path, RemotePath):
            return False
        forget_copies(path)
        return file_hash(path) == digest
    except (FileNotFoundError, IsADirectoryError):
        return False


def damaged_files(folder: Place, manifest: Manifest) -> list[str]:
    """Names of the files that are missing, or whose bytes are not the promised ones. Reads every file."""
    promised = manifest.files.items()
    return [n for n, (size, d) in promised if size_of(folder / n) != size or not has_digest(folder / n, d)]


def discard(folder: Place) -> None:
    """Deletes a stage: its manifest first, so that a half-deleted stage is unfinished."""
    (folder / MANIFEST).unlink(missing_ok=True)
    remove_tree(folder)
