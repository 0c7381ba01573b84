"""Runs of older versions remain valid: a setting that their manifests lack counts as its default."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from metarepair.cli import main
from metarepair.reports.card import CARD_FILES
from metarepair.stages import mining
from tasks.experiences.mining import mine
from tasks.storage.manifest import CHECKSUM, Manifest, content_hash, read_manifest
from tasks.storage.sealed_parts import seal

# Settings that were added after runs without them had been recorded.
LATER = {
    "model": ("entry", "stem", "input_size", "normalisation", "mean", "std"),
    "task": ("clean_support",),
    "train": ("query",),
    "repair": ("interpolate", "clean_weight"),
}
STAGES = ("experiences/*", "targets/*", "features/*", "score", "meta/*", "repaired/*")


def run(folder: Path, verb: str, *arguments: str) -> int:
    return main([verb, "--config", str(folder / "tiny.yaml"), "--storage", str(folder / "runs"), *arguments])


def strip(config: dict[str, Any]) -> None:
    """Delete the later settings from `config`; raise KeyError if a group lacks one."""
    for group, names in LATER.items():
        for name in names if group in config else ():
            del config[group][name]


def make_older(root: Path) -> dict[str, str]:
    """Rewrite the manifests of a finished run as an older version wrote them; return old digests by present digest."""
    digests: dict[str, str] = {}
    for pattern in STAGES:
        for path in sorted(root.glob(f"{pattern}/manifest.json")):
            now = read_manifest(path.parent)
            assert now is not None
            content = json.loads(path.read_text())
            del content[CHECKSUM]
            strip(content["config"])
            if path.match("meta/*/manifest.json"):
                (path.parent / "start.safetensors").rename(path.parent / "model.safetensors")
                content["files"]["model.safetensors"] = content["files"].pop("start.safetensors")
            content["inputs"] = {name: digests.get(value, value) for name, value in content["inputs"].items()}
            path.write_text(json.dumps(content | {CHECKSUM: content_hash(content)}))
            before = read_manifest(path.parent)
            assert before is not None
            digests[now.digest] = before.digest
    return digests


def contents(root: Path) -> dict[str, bytes]:
    """The files of all stages but the report and its model cards, which are written again each time."""
    files = [
        p
        for p in sorted(root.rglob("*"))
        if p.is_file() and p.relative_to(root).parts[0] != "report" and p.name not in CARD_FILES
    ]
    return {str(p.relative_to(root)): p.read_bytes() for p in files}


@pytest.fixture
def older_run(tiny_run: Path) -> Path:
    digests = make_older(tiny_run / "runs/tiny")
    assert len(digests) == 9
    assert any(now != before for now, before in digests.items())
    return tiny_run


def test_every_stage_of_an_older_run_counts_as_complete(
    older_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(older_run / "runs/tiny")
    assert run(older_run, "run") == 0
    assert contents(older_run / "runs/tiny") == before
    said = capsys.readouterr()
    for stage in ("score", "train gaussian_noise", "repair gaussian_noise"):
        assert f"{stage}: already complete" in said.out + said.err
    assert main(["inspect", str(older_run / "runs/tiny")]) == 0


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        (
            "model.input_size=48",
            "'mine experience shot_noise' with other settings: model.input_size: None -> 48. Give",
        ),
        (
            "task.clean_support=2",
            "'train gaussian_noise' with other settings: task.clean_support: 0 -> 2. Give this",
        ),
        (
            "repair.interpolate=[0.5, 1.0]",
            "repair.interpolate: [1.0] -> [0.5, 1.0]. Give this run another name",
        ),
        (
            "train.episodes=1",
            "'train gaussian_noise' with other settings: train.episodes: 2 -> 1. Give this run",
        ),
    ],
)
def test_an_older_run_is_refused_with_a_changed_value(
    older_run: Path, setting: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(older_run / "runs/tiny")
    assert run(older_run, "run", "--set", setting) == 2
    assert said in capsys.readouterr().err
    assert contents(older_run / "runs/tiny") == before


def test_a_damaged_file_of_an_older_run_is_mended_with_its_recorded_settings(older_run: Path) -> None:
    root = older_run / "runs/tiny"
    folder = root / "experiences/shot_noise"
    before, promised = contents(root), read_manifest(folder)
    path = folder / "collect.arrow"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    assert run(older_run, "run") == 0
    mended = read_manifest(folder)
    assert promised is not None
    assert mended is not None
    assert (mended.config, mended.digest) == (promised.config, promised.digest)
    after = contents(root)
    assert {name for name in before | after if before.get(name) != after.get(name)} <= {
        "experiences/shot_noise/manifest.json"  # which records the seconds
    }


class KilledError(Exception):
    """Stands in for the death of the process."""


def killed(*_: object, **__: object) -> Manifest:
    raise KilledError


def test_parts_that_an_older_version_mined_are_kept(tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, settings = tiny_run / "runs/tiny", ("--set", "seed=1")
    assert run(tiny_run, "mine", "--restart", *settings) == 0
    uninterrupted = {path.parent: read_manifest(path.parent) for path in root.glob("*/*/manifest.json")}
    with monkeypatch.context() as patch:
        patch.setattr(mining, "finish_environment", killed)  # after both parts of the first environment
        with pytest.raises(KilledError):
            run(tiny_run, "mine", "--restart", *settings)
    for mark in root.glob("*/*/parts/begun.json"):
        begun = json.loads(mark.read_text())
        strip(begun["config"])
        mark.write_text(json.dumps(begun))
        made_of = content_hash(
            [{k: v for k, v in begun["config"].items() if k != mining.SHARD_IMAGES}, begun["inputs"]]
        )
        stage = f"mine {mark.parts[-4].removesuffix('s')} {mark.parts[-3]}"
        for number, part in enumerate(sorted(mark.parent.glob("part-*.arrow"))):
            seal(part, {"stage": stage, "rows": [100 * number, 100 * number + 100], "made of": made_of})
    mined = []

    def count(predict: Any, environment: Any, rows: Any, **others: Any) -> Any:
        mined.append(environment.name)
        return mine(predict, environment, rows, **others)

    monkeypatch.setattr(mining, "mine", count)
    assert run(tiny_run, "mine", *settings) == 0
    assert mined == ["impulse_noise"] * 2 + ["gaussian_noise"] * 2
    for folder, full in uninterrupted.items():
        manifest = read_manifest(folder)
        assert manifest is not None
        assert full is not None
        assert "stem" in full.config["model"]
        assert "stem" not in manifest.config["model"]
        assert (manifest.rows, manifest.files) == (full.rows, full.files)


def test_a_run_of_before_judging_images_were_set_aside_goes_on_with_the_papers_protocol(
    tiny_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    papers = ("--set", "mining.judge_fraction=null")
    assert run(tiny_run, "run", "--restart", *papers) == 0
    root = tiny_run / "runs" / "tiny"
    for path in root.glob("targets/*/manifest.json"):
        content = json.loads(path.read_text())
        del content[CHECKSUM]
        assert content["config"]["mining"].pop("judge_fraction") is None
        path.write_text(json.dumps(content | {CHECKSUM: content_hash(content)}))
    assert not any("judge_fraction" in p.read_text() for p in root.glob("experiences/*/manifest.json"))
    capsys.readouterr()
    assert run(tiny_run, "mine") == 2
    assert "mining.judge_fraction: None -> 0.5" in capsys.readouterr().err
    assert run(tiny_run, "mine", *papers) == 0
