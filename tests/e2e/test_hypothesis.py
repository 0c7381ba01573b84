"""The hypothesis study on a few images is complete, resumes after a kill, and is refused with other settings."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from metarepair.adaptation.accuracy import accuracy_on
from metarepair.adaptation.repair_data import RepairData, split_collected
from metarepair.cli import main
from metarepair.config.load import load_config
from metarepair.methods import MethodContext, RepairedModel, get_method
from metarepair.methods.finetune import Finetune
from metarepair.models.build import DeployedModel
from metarepair.stages.pipeline import Pipeline
from tasks.experiences import store
from tasks.experiences.store import open_side
from tasks.records import Failures
from tasks.storage.manifest import require_manifest

NAMES = ("shot_noise", "speckle_noise", "fog", "contrast")
TINY = """\
name: tiny
workers: 0
device: cpu
targets: [shot_noise, speckle_noise, fog, contrast]
data: {name: cifar10_sample, max_train_images: 200, max_test_images: 200}
mining: {experiences: [contrast, fog, shot_noise, speckle_noise], severities: [5], collect: 20, shard_images: 100}
features: {extractor: deployed}
task: {shots: 1}
inner: {steps: 1}
repair: {episodes: 1, tasks: 1, rates: [0.03, 0.1], seeds: [0, 1]}
"""
RESULTS = ("pairs.parquet", "pairs.csv", "summary.json", "scatter.png", "manifest.json")
REPAIR = Finetune.repair


class KilledError(Exception):
    """Stands in for the death of the process."""


class OpenedError(Exception):
    """D_fail was read."""


def run(folder: Path, *arguments: str) -> int:
    config, storage = str(folder / "tiny.yaml"), str(folder / "runs")
    return main(["hypothesis", "--config", config, "--storage", storage, *arguments])


def study_of(folder: Path) -> Path:
    return folder / "runs" / "tiny" / "hypothesis"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def pipeline_of(folder: Path) -> Pipeline:
    config = load_config(folder / "tiny.yaml", [], storage_path=str(folder / "runs"))
    return Pipeline(config)


def opened(pipeline: Pipeline, environment: str, side: store.Side) -> Failures:
    """Return one side of `experiences/NAME` or `targets/NAME`."""
    folder = pipeline.run.root / environment
    split = pipeline.here.split("train" if environment.startswith("experiences") else "test")
    return open_side(folder, side, require_manifest(folder, ""), split)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `tiny.yaml` and the finished study `runs/tiny/hypothesis`; tests must not write to it."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "tiny.yaml").write_text(TINY, encoding="utf-8")
    assert run(folder) == 0
    return folder


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """A copy of `finished` that the test may change."""
    return Path(shutil.copytree(finished, tmp_path / "copied"))


@pytest.fixture
def repairs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """A list that gains the experience and seed of each fine-tune from here on."""
    made: list[tuple[str, int]] = []

    def counted(
        self: Finetune, deployed: DeployedModel, data: RepairData, context: MethodContext
    ) -> RepairedModel:
        made.append((data.target, context.seed))
        return REPAIR(self, deployed, data, context)

    monkeypatch.setattr(Finetune, "repair", counted)
    return made


def test_a_study_has_every_ordered_pair_and_reports_their_number(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = study_of(finished)
    assert all((folder / name).is_file() for name in RESULTS)
    rows = pq.read_table(folder / "pairs.parquet").to_pylist()
    assert {(r["experience"], r["target"]) for r in rows} == {(a, b) for a in NAMES for b in NAMES if a != b}
    assert len(rows) == 12
    scored = pq.read_table(finished / "runs/tiny/score/fid.parquet").to_pylist()
    distance = {(r["experience"], r["target"]): r["distance"] for r in scored}
    assert all(r["distance"] == distance[r["experience"], r["target"]] for r in rows)
    gains = {(r["experience"], r["target"]): r["gain"] for r in rows}
    assert len(set(gains.values())) > 3
    for name in NAMES:
        found = [json.loads((folder / f"gains/{name}-{s}.json").read_text())["accuracies"] for s in (0, 1)]
        for target in set(NAMES) - {name}:
            assert gains[name, target] == pytest.approx(np.mean([f[target] for f in found]))
    assert run(finished) == 0
    shown = capsys.readouterr().out
    assert "hypothesis: already complete" in shown
    assert "12 pairs of 4 corruptions" in shown


def test_a_gain_is_the_accuracy_of_the_fine_tuned_dnn_on_the_targets_collected_failures(
    finished: Path,
) -> None:
    pipeline = pipeline_of(finished)
    config, here = pipeline.config, pipeline.here
    learnt = split_collected(opened(pipeline, "experiences/fog", "collect"), config, 1)
    context = MethodContext(config=config, seed=1)
    model = get_method("finetune").repair(here.deployed, learnt, context)
    result = json.loads((study_of(finished) / "gains" / "fog-1.json").read_text())
    name = max(result["accuracies"], key=result["accuracies"].__getitem__)
    target = opened(pipeline, f"targets/{name}", "collect")
    before = here.deployed.logits(target.images_NHWC).argmax(1).numpy()
    assert not (before == target.labels_N).any()
    here.deployed.module.load_state_dict(model.state())
    with torch.inference_mode():
        after = here.deployed.logits(target.images_NHWC).argmax(1).numpy()
    assert result["accuracies"][name] == (after == target.labels_N).mean() > 0
    validation = accuracy_on(here.deployed, model.parameters, model.buffers, learnt.validation)
    assert result["validation"] == validation


def test_d_fail_is_not_opened(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = store.read_failures

    def guarded(path: Path) -> Failures:
        if path.name == "fail.arrow":
            raise OpenedError(path)
        return read(path)

    monkeypatch.setattr(store, "read_failures", guarded)
    assert run(copied, "--restart", "--set", "inner.steps=2") == 0  # no fine-tune is kept
    assert not list(copied.rglob("d_fail_reads.jsonl"))
    with pytest.raises(OpenedError):  # shows that the guard sees a read
        opened(pipeline_of(copied), "targets/fog", "fail")


def test_a_killed_study_resumes_and_ends_like_an_uninterrupted_one(
    copied: Path, repairs: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = contents(study_of(copied))
    shutil.rmtree(study_of(copied))
    counted = Finetune.repair

    def killed(
        self: Finetune, deployed: DeployedModel, data: RepairData, context: MethodContext
    ) -> RepairedModel:
        if len(repairs) == 3:
            raise KilledError
        return counted(self, deployed, data, context)

    with monkeypatch.context() as patch:
        patch.setattr(Finetune, "repair", killed)
        with pytest.raises(KilledError):
            run(copied)
    assert not (study_of(copied) / "manifest.json").exists()
    assert len(list((study_of(copied) / "gains").glob("*-*.json"))) == 3
    assert run(copied) == 0
    assert len(repairs) == len(set(repairs)) == 8  # nothing was done twice
    assert contents(study_of(copied)) == undisturbed


def test_a_study_killed_before_its_manifest_remakes_its_tables_but_no_fine_tune(
    copied: Path, repairs: list[tuple[str, int]]
) -> None:
    undisturbed = contents(study_of(copied))
    (study_of(copied) / "manifest.json").unlink()
    (study_of(copied) / "summary.json").write_text("{", encoding="utf-8")
    assert run(copied) == 0
    assert repairs == []
    assert contents(study_of(copied)) == undisturbed


@pytest.mark.parametrize("complete", [True, False], ids=["finished", "half done"])
def test_other_settings_are_refused(
    copied: Path, complete: bool, repairs: list[tuple[str, int]], capsys: pytest.CaptureFixture[str]
) -> None:
    if not complete:
        (study_of(copied) / "manifest.json").unlink()
        (study_of(copied) / "gains" / "fog-1.json").unlink()
    before = contents(copied / "runs")
    assert run(copied, "--set", "inner.steps=2") == 2
    assert "inner.steps: 1 -> 2" in capsys.readouterr().err
    assert contents(copied / "runs") == before
    assert repairs == []


def test_a_restart_with_other_settings_repeats_only_the_study(
    copied: Path, repairs: list[tuple[str, int]]
) -> None:
    before = contents(copied / "runs")
    assert run(copied, "--restart", "--set", "inner.steps=2") == 0
    assert len(repairs) == 8
    after = contents(copied / "runs")
    changed = {name for name in before if after[name] != before[name]}
    assert after.keys() == before.keys()
    assert changed
    assert all(name.startswith("tiny/hypothesis/") for name in changed)


def test_a_restart_with_the_same_settings_keeps_the_fine_tunes(
    copied: Path, repairs: list[tuple[str, int]]
) -> None:
    before = contents(study_of(copied))
    assert run(copied, "--restart") == 0
    assert repairs == []
    assert contents(study_of(copied)) == before


@pytest.mark.parametrize("done", [True, False])
@pytest.mark.parametrize("damage", ["cut", "another value", "another fine-tune"])
def test_a_damaged_result_is_named_and_only_its_fine_tune_is_repeated(
    copied: Path,
    repairs: list[tuple[str, int]],
    capsys: pytest.CaptureFixture[str],
    damage: str,
    done: bool,
) -> None:
    undisturbed = contents(study_of(copied))
    damaged = study_of(copied) / "gains" / "fog-1.json"
    text = damaged.read_text(encoding="utf-8")
    other = (damaged.parent / "contrast-0.json").read_text(encoding="utf-8")
    changed = {"cut": text[:20], "another value": text.replace("0.", "0.9", 1), "another fine-tune": other}
    damaged.write_text(changed[damage], encoding="utf-8")
    if not done:
        (study_of(copied) / "manifest.json").unlink()
    assert run(copied) == 0
    assert f"{damaged} is damaged" in capsys.readouterr().out
    assert repairs == [("fog", 1)]
    assert contents(study_of(copied)) == undisturbed


@pytest.mark.parametrize("name", ["pairs.csv", "summary.json", "scatter.png", "manifest.json"])
def test_damaged_tables_are_remade_from_the_existing_fine_tunes(
    copied: Path, repairs: list[tuple[str, int]], name: str
) -> None:
    undisturbed = contents(study_of(copied))
    (study_of(copied) / name).write_bytes(b"{")
    assert run(copied) == 0
    assert repairs == []
    assert contents(study_of(copied)) == undisturbed


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("targets=[fog, contrast, shot_noise, snow]", "mining.experiences lacks snow"),
        ("targets=[fog]", "targets lacks contrast, targets lacks shot_noise, targets lacks speckle_noise"),
        ("mining.experiences=[fog, contrast, shot_noise]", "mining.experiences lacks speckle_noise"),
    ],
)
def test_missing_pairs_are_reported_before_any_work(
    tmp_path: Path, setting: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY, encoding="utf-8")
    assert run(tmp_path, "--set", setting) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_three_corruptions_are_too_few(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY, encoding="utf-8")
    three = "[fog, contrast, shot_noise]"
    assert run(tmp_path, "--set", f"targets={three}", "--set", f"mining.experiences={three}") == 2
    assert "targets names 3 corruptions, too few" in (said := capsys.readouterr().err)
    assert "Name at least 4 corruptions in both targets and mining.experiences." in said
