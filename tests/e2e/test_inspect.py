"""`metarepair inspect` reports what each stage of a run did, and its remedies work."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from metarepair.cli import main
from tasks.storage.manifest import read_manifest, require_manifest
from tasks.storage.stages import stage_of_title


def inspect(path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any]]:
    capsys.readouterr()
    code = main(["inspect", str(path), "--json"])
    return code, json.loads(capsys.readouterr().out)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_finished_run_is_reported_stage_by_stage(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = finished_run / "runs" / "tiny"
    code, found = inspect(root, capsys)
    assert (code, found["kind"], found["finished"], found["damaged"]) == (0, "run", True, [])
    stages = {stage["path"]: stage for stage in found["stages"]}
    names = ("experience-impulse_noise", "experience-shot_noise", "target-gaussian_noise")
    assert list(stages) == [
        "experiences/impulse_noise",
        "experiences/shot_noise",
        "targets/gaussian_noise",
        *(f"features/{name}" for name in names),
        "score",
        "meta/gaussian_noise",
        "repaired/gaussian_noise",
    ]
    assert {f["state"] for stage in found["stages"] for f in stage["files"]} == {"ok"}
    for path, stage in stages.items():
        assert stage["result"] == require_manifest(root / path, "").digest
    assert stages["targets/gaussian_noise"]["details"]["severities"]["5"]["examined"] == 200
    assert {stages[f"features/{name}"]["rows"]["features"] for name in names} == {20}
    confidence = stages["score"]["details"]["confidence"]["gaussian_noise"]
    assert sum(confidence.values()) == pytest.approx(1)
    result = json.loads((root / "repaired/gaussian_noise/result.json").read_text(encoding="utf-8"))
    rows = stages["repaired/gaussian_noise"]["details"]["methods"]
    assert [(r["method"], r["clean"]) for r in rows] == [(r["method"], r["clean"]) for r in result["methods"]]
    assert stages["meta/gaussian_noise"]["details"]["episodes"] == 2
    assert main(["inspect", str(root), "--sheet", str(tmp_path / "sheet.png")]) == 0
    text = capsys.readouterr().out
    assert all(path in text for path in stages)
    assert (tmp_path / "sheet.png").is_file()


@pytest.mark.parametrize(
    ("path", "verb"),
    [
        ("targets/gaussian_noise/fail.arrow", "mine"),
        ("features/target-gaussian_noise/moments.npy", "score"),
        ("meta/gaussian_noise/start.safetensors", "train"),
        ("repaired/gaussian_noise/samples.parquet", "repair"),
    ],
)
def test_the_remedy_for_a_damaged_file_mends_the_run(
    tiny_run: Path, path: str, verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tiny_run / "runs" / "tiny"
    before = {stage["path"]: stage["result"] for stage in inspect(root, capsys)[1]["stages"]}
    flip(root / path)
    code, found = inspect(root, capsys)
    assert code == 2
    assert [(d["path"], d["state"]) for d in found["damaged"]] == [(path, "differs")]
    remedy = found["damaged"][0]["remedy"]
    assert f"`metarepair {verb} --config FILE`" in remedy
    if remedy.startswith("Delete "):
        for name in remedy.removeprefix("Delete ").split(",")[0].split(" and "):
            (root / name).unlink()
    arguments = ["--config", str(tiny_run / "tiny.yaml"), "--storage", str(tiny_run / "runs")]
    assert main([verb, *arguments]) == 0
    code, found = inspect(root, capsys)
    assert (code, found["damaged"]) == (0, [])
    after = {stage["path"]: stage["result"] for stage in found["stages"]}
    changed = {stage for stage in before if after[stage] != before[stage]}
    assert changed <= {"repaired/gaussian_noise"}, (
        "its seconds are measured anew, all else comes out the same"
    )


def test_a_run_without_its_last_stages_is_unfinished_at_the_last_started_stage(
    tiny_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tiny_run / "runs" / "tiny"
    (root / "meta" / "gaussian_noise" / "manifest.json").unlink()
    shutil.rmtree(root / "repaired")
    code, found = inspect(root, capsys)
    assert (code, found["finished"], found["damaged"]) == (0, False, [])
    assert found["stages"][-1]["path"] == "meta/gaussian_noise"
    details = found["stages"][-1]["details"]
    assert (details["episodes"], details["episodes_wanted"]) == (2, 2)
    assert main(["inspect", str(root)]) == 0
    assert "meta/gaussian_noise: unfinished" in capsys.readouterr().out


def test_every_manifest_records_only_settings_listed_for_its_stage(finished_run: Path) -> None:
    manifests = [
        read_manifest(path.parent) for path in sorted((finished_run / "runs").rglob("manifest.json"))
    ]
    found = [stage_of_title(manifest.stage) for manifest in manifests if manifest is not None]
    assert {stage.kind for stage, _ in filter(None, found)} == {
        "environment",
        "features",
        "score",
        "meta",
        "repaired",
    }
    for manifest, entry in zip(manifests, found, strict=True):
        assert manifest is not None
        assert entry is not None
        assert set(manifest.config) <= set(entry[0].settings), manifest.stage
