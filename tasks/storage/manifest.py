"""Write, read and check `manifest.json`, which marks a stage as finished.

The manifest is the last file that a stage writes: a folder without one is unfinished, whatever else it holds. It
records the stage's settings, the hashes of its inputs, row counts, file sizes, checksums and package versions. A
stage whose manifest matches is skipped; a stage with other settings is refused, and the error shows the difference.
A key that an older manifest lacks counts as its default.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from tasks.errors import DataError, StageError, unreadable
from tasks.storage.names import plain_name, remove_listed
from tasks.storage.paths import Place, local, read_json, remove_tree, size_of, write_text
from tasks.storage.remote import RemotePath, forget_copies
from tasks.storage.settings import changes, difference, plain
from tasks.storage.stages import BEGUN, COMPARED, PREPARED, STAGES

logger = logging.getLogger(__name__)
MANIFEST = "manifest.json"
CHECKSUM = "checksum"
PARTS = "parts"
DAMAGED = (
    "Run its stage again: `mine`, `score` and `hypothesis` regenerate only what is damaged; other stages need "
    "--restart."
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
    """The record of a finished stage. `files` maps each name to (size in bytes, BLAKE2b digest)."""

    stage: str
    config: dict[str, Any]
    inputs: dict[str, str]
    rows: dict[str, int]
    facts: dict[str, Any]
    files: dict[str, tuple[int, str]]
    versions: dict[str, str]

    @property
    def digest(self) -> str:
        """Identifies the stage's result for the stages that build on it; package versions are not part of it."""
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
    """What the bits of a result depend on besides its settings: versions of packages, and `cpu`.

    `cpu` is the instruction set that PyTorch's kernels use here, such as AVX2; it is left out if PyTorch is not loaded.
    """
    torch = sys.modules.get("torch")
    installed = {} if torch is None else {"cpu": str(torch.backends.cpu.get_cpu_capability())}
    for package in _PACKAGES:
        try:
            installed[package] = version(package)
        except PackageNotFoundError:
            continue
    return installed


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
    """Checksum `files` in `folder`, then write the manifest atomically. This marks the stage as finished."""
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
    """The manifest of `folder`, `None` if the stage is unfinished. Raises DataError if it is damaged."""
    path = folder / MANIFEST
    try:
        content = read_json(path)
        if content.pop(CHECKSUM) != content_hash(content):
            raise ValueError("it does not match its checksum")
        files = content["files"].items()
        content["files"] = {plain_name(name): (size, digest) for name, (size, digest) in files}
        _check_kinds(manifest := Manifest(**content))
        return manifest
    except FileNotFoundError:
        return None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is damaged (it is not valid JSON). {DAMAGED}") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is damaged (its fields are not those of a manifest). {DAMAGED}") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{unreadable(path, error)}. {DAMAGED}") from error


def _check_kinds(manifest: Manifest) -> None:
    """Raise TypeError if a field holds something else than the class says: somebody else may have written it."""
    groups = (manifest.config, manifest.inputs, manifest.rows, manifest.facts, manifest.versions)
    sizes = [*manifest.rows.values(), *(size for size, _ in manifest.files.values())]
    texts = [
        manifest.stage,
        *manifest.inputs.values(),
        *manifest.versions.values(),
        *(digest for _, digest in manifest.files.values()),
    ]
    if not all(isinstance(group, dict) for group in groups):
        raise TypeError("a group is not a map")
    if not all(isinstance(text, str) for text in texts):
        raise TypeError("a name or digest is not text")
    if not all(type(size) is int and size >= 0 for size in sizes):
        raise TypeError("a size or count is not a whole number")


def require_manifest(folder: Place, remedy: str) -> Manifest:
    """The manifest of a stage that must be finished. Raises StageError with `remedy` if it is not."""
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
    """The manifest if exactly this stage is finished, `None` if it has to be run or resumed.

    Raises StageError with the difference if the folder holds the stage with other settings or inputs, and DataError
    if a file is missing or its size differs from the manifest.
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
    """As `check_done`, for a stage that repairs its own files: reads every file and logs those that are damaged.

    Damaged files are deleted together with the manifest (only the manifest, if that is what is damaged), and the
    result is `None`: the stage has to be resumed. Raises StageError as `check_done` does.
    """
    try:
        manifest = read_manifest(folder)
    except DataError as error:
        damaged, manifest = [MANIFEST], None
        logger.warning(f"{str(error).removesuffix(DAMAGED)}Regenerating it now.")
    else:
        if manifest is None:
            return None
        _refuse_others(folder, manifest, stage, config, inputs)
        damaged = damaged_files(folder, manifest)
        for name in damaged:
            logger.warning(f"{folder / name} is damaged. Regenerating it now.")
    if damaged:
        for name in (MANIFEST, *damaged):
            remove_listed(folder, name)
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
            "set the settings back, or start over with --restart (which deletes the stage and those after it)."
        )


def begin(
    folder: Place,
    *,
    config: Mapping[str, Any],
    inputs: Mapping[str, str],
    sealed: bool = False,
    parts: int | None = None,
) -> None:
    """Record what an unfinished stage depends on, so that it resumes only with the same settings and inputs.

    sealed: whether the stage's parts carry seals that identify them; a damaged record is then rewritten.
    parts: the number of parts that the stage will have, for progress displays.

    Raises StageError with the difference if `folder` was started with other settings or inputs, and DataError if the
    record is damaged.
    """
    path = folder / BEGUN
    content = plain({"config": config, "inputs": inputs})
    try:
        before = _read_mark(path) if path.exists() else content
    except (OSError, ValueError, TypeError) as error:
        if not sealed:
            raise DataError(f"{unreadable(path, error)}. Run the stage again with --restart.") from error
        remove_listed(folder, BEGUN)
        before = content
    lines = changes(before["config"], config)
    lines += difference(before | {"config": None}, content | {"config": None})
    if lines:
        shown = "; ".join(lines)
        raise StageError(
            f"{folder} is unfinished and was started with other settings: {shown}. Set them back to resume, give this "
            "run another name, or start over with --restart."
        )
    write_text(path, json.dumps(before | ({} if parts is None else {PARTS: parts})))


def _read_mark(path: Place) -> dict[str, Any]:
    mark = read_json(path)
    if not isinstance(mark, dict) or not isinstance(mark.get("config"), dict):
        raise ValueError("it records no settings")
    return {key: value for key, value in mark.items() if key != PARTS}


def as_recorded(folder: Place, config: dict[str, Any]) -> dict[str, Any]:
    """The settings of `config` as `folder` recorded them; `config` itself if it recorded none, or different ones.

    A stage that an older version started or finished lacks the keys that were added later. Seals and later stages
    identify it by a digest of that older form, so regenerated parts have to record the same form.
    """
    try:
        manifest = read_manifest(folder)
        recorded = _read_mark(folder / BEGUN)["config"] if manifest is None else manifest.config
    except (DataError, OSError, ValueError):
        return config
    return config if changes(recorded, config) else recorded


def verify_sizes(folder: Place, manifest: Manifest) -> None:
    """Raise DataError naming the first file that is missing or whose size differs from the manifest."""
    for name, (size, _) in manifest.files.items():
        actual = size_of(folder / name)
        if actual != size:
            problem = "is missing" if actual is None else f"has {actual} bytes"
            raise DataError(
                f"{folder / name} {problem}; its manifest promises {size} bytes. {_remedy(manifest)}"
            )


def verify_checksums(folder: Place, manifest: Manifest) -> None:
    """Read every file. Raises DataError naming the first that differs from its checksum in the manifest."""
    verify_sizes(folder, manifest)
    for name, (_, digest) in manifest.files.items():
        if not has_digest(folder / name, digest):
            raise DataError(f"{folder / name} differs from its checksum. {_remedy(manifest)}")


def _remedy(manifest: Manifest) -> str:
    name = manifest.stage.partition(" ")[0]
    stage = next((stage for stage in STAGES if stage.name == name), None)
    if stage in (COMPARED, PREPARED):
        return "Delete its folder and run `metarepair compare` again; it regenerates only that folder."
    if stage is None or not stage.mends:
        return "Run the stage again with --restart."
    return f"Run `metarepair {stage.verb}` again; it regenerates only what is damaged."


def has_digest(path: Place, digest: str) -> bool:
    """Whether a file has this digest. A remote file whose copy on this node differs is fetched once more."""
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
    """Names of the files that are missing or differ from their checksums in the manifest. Reads every file."""
    promised = manifest.files.items()
    return [n for n, (size, d) in promised if size_of(folder / n) != size or not has_digest(folder / n, d)]


def discard(folder: Place) -> None:
    """Delete a stage, its manifest first, so that a half-deleted stage counts as unfinished."""
    (folder / MANIFEST).unlink(missing_ok=True)
    remove_tree(folder)
