"""Check that names listed in a stored file stay inside its folder: nothing outside is read or deleted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from metarepair.compare.plan import PLAN, read_plan
from metarepair.reports import SCHEMA_VERSION, load_results
from metarepair.runs.checkpoint import STATE, newest_checkpoint
from metarepair.runs.layout import Run
from tasks.errors import DataError
from tasks.storage.manifest import (
    CHECKSUM,
    MANIFEST,
    check_whole,
    content_hash,
    file_hash,
    read_manifest,
    write_manifest,
)
from tasks.storage.names import plain_name, remove_listed

HOSTILE = [
    "../victim/id",
    "../../victim/id",
    "a/../../victim/id",
    "/etc/hostname",
    "//etc/hostname",
    "..",
    ".",
    "",
    "a//b",
    "a/",
    "./a",
    "a/./b",
    "..\\victim",
    "a\x00b",
    "a\nb",
    "\x1b[2J",
    "x" * 2000,
]
TERMS: dict[str, Any] = {"stage": "s", "config": {}, "inputs": {}}


@pytest.mark.parametrize(
    "name", ["a.bin", "metarepair/0/model.safetensors", "part-00001.parquet", "näme.png", "..."]
)
def test_ordinary_names_are_accepted_unchanged(name: str) -> None:
    assert plain_name(name) == name


@pytest.mark.parametrize("name", [*HOSTILE, 3, None, ["a"]])
def test_hostile_names_are_refused(name: object) -> None:
    with pytest.raises(ValueError, match="is not"):
        plain_name(name)


@given(
    st.lists(st.sampled_from(["..", ".", "", "a", "b.bin", "\\", "\x00", "~", "é"]), min_size=1, max_size=6)
)
@example(["..", "..", "victim"])
def test_an_accepted_name_never_leaves_its_folder(parts: list[str]) -> None:
    name, folder = "/".join(parts), Path("/run/stage")
    try:
        plain_name(name)
    except ValueError:
        return
    path = folder / name
    assert path.is_relative_to(folder)
    assert ".." not in path.parts
    assert path != folder


def with_files(folder: Path, files: dict[str, Any]) -> None:
    """Write a manifest that lists `files` and has the correct checksum."""
    with_fields(folder, files=files)


def with_fields(folder: Path, **fields: Any) -> None:
    """Write a manifest with these fields and the correct checksum."""
    write_manifest(folder, **TERMS, files=[])
    content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    content |= fields
    del content[CHECKSUM]
    content[CHECKSUM] = content_hash(content)
    (folder / MANIFEST).write_text(json.dumps(content), encoding="utf-8")


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A folder beside that of the stage, with one file."""
    folder = tmp_path / "victim"
    folder.mkdir()
    (folder / "id").write_text("a key", encoding="utf-8")
    return folder


@pytest.mark.parametrize("name", ["../victim", "../victim/id", "{victim}", "{victim}/id", *HOSTILE])
def test_a_received_manifest_deletes_nothing_outside_its_stage(
    name: str, tmp_path: Path, victim: Path
) -> None:
    stage = tmp_path / "stage"
    stage.mkdir()
    (stage / "own.bin").write_bytes(b"own")
    with_files(stage, {name.format(victim=victim): [1, "0" * 32]})
    with pytest.raises(DataError, match=r"manifest\.json is damaged"):
        read_manifest(stage)
    assert check_whole(stage, **TERMS) is None
    assert (victim / "id").read_text(encoding="utf-8") == "a key"
    assert [path.name for path in stage.iterdir()] == ["own.bin"]


@pytest.mark.parametrize(
    "fields",
    [
        {"stage": ["s"]},
        {"config": "x"},
        {"config": [1]},
        {"inputs": [1]},
        {"inputs": {"a": 1}},
        {"rows": {"collect": "many"}},
        {"rows": {"collect": 1.5}},
        {"rows": {"collect": -1}},
        {"facts": None},
        {"versions": ["x"]},
        {"versions": {"torch": {}}},
        {"files": [["a", [1, "x"]]]},
        {"files": {"a": [float("inf"), "x"]}},
        {"files": {"a": [True, "x"]}},
        {"files": {"a": ["1", "x"]}},
        {"files": {"a": [1, 3]}},
        {"files": {"a": [1]}},
        {"later": 1},
    ],
    ids=str,
)
def test_a_received_manifest_with_fields_of_other_kinds_is_damaged(
    fields: dict[str, Any], tmp_path: Path
) -> None:
    with_fields(tmp_path, **fields)
    with pytest.raises(DataError, match=r"manifest\.json is damaged"):
        read_manifest(tmp_path)


def test_a_link_that_leads_out_of_the_stage_is_not_followed(tmp_path: Path, victim: Path) -> None:
    stage = tmp_path / "stage"
    stage.mkdir()
    (stage / "link").symlink_to(victim)
    with_files(stage, {"link/id": [1, "0" * 32]})
    with pytest.raises(DataError, match="a link leads there"):
        check_whole(stage, **TERMS)
    assert (victim / "id").is_file()


def test_a_link_in_place_of_a_file_is_deleted_and_its_target_is_not(tmp_path: Path, victim: Path) -> None:
    (tmp_path / "a.bin").symlink_to(victim / "id")
    remove_listed(tmp_path, "a.bin")
    assert not (tmp_path / "a.bin").is_symlink()
    assert (victim / "id").is_file()


@pytest.mark.parametrize("name", HOSTILE)
def test_a_checkpoint_that_lists_hostile_names_is_damaged(
    name: str, tmp_path: Path, victim: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "checkpoint-000001"
    folder.mkdir()
    files = {name: file_hash(victim / "id")}
    (folder / STATE).write_text(json.dumps({"episode": 1, "files": files}), encoding="utf-8")
    assert newest_checkpoint(tmp_path) is None
    assert "checkpoint-000001 is damaged" in caplog.messages[0]


def test_a_pipe_in_place_of_a_checkpoint_file_is_not_opened(tmp_path: Path) -> None:
    import os

    folder = tmp_path / "checkpoint-000001"
    folder.mkdir()
    os.mkfifo(folder / "model.safetensors")
    content = {"episode": 1, "files": {"model.safetensors": "0" * 32}}
    (folder / STATE).write_text(json.dumps(content), encoding="utf-8")
    assert newest_checkpoint(tmp_path) is None


def results(run: Run, name: str) -> None:
    content = {"schema_version": SCHEMA_VERSION, "methods": [{"method": "none", "weights": name}]}
    folder = Path(str(run.repaired("fog")))
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps(content), encoding="utf-8")


def plan(run: Run, name: str) -> None:
    content = {"targets": [name], "methods": ["none"], "seeds": [0], "config": {}}
    folder = Path(str(run.compare))
    folder.mkdir(parents=True)
    (folder / PLAN).write_text(json.dumps(content), encoding="utf-8")


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize(
    ("write", "read"),
    [(results, lambda run: load_results(run, ["fog"])), (plan, lambda run: read_plan(run.compare))],
    ids=["result.json", "plan.json"],
)
def test_results_and_plans_with_hostile_names_are_refused(
    name: str, write: Callable[[Run, str], None], read: Callable[[Run], object], tmp_path: Path
) -> None:
    run = Run(tmp_path / "run")
    write(run, name)
    with pytest.raises(DataError, match=r"is not (the name of a file|a path inside its folder)"):
        read(run)
