"""Test `run_stage`: finished stages are skipped, other settings refused, and unfinished stages resumed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from metarepair.runs.run_stage import StageOutput, run_stage
from tasks.errors import DataError, StageError
from tasks.storage.manifest import MANIFEST, Manifest, read_manifest
from tasks.storage.stages import BEGUN, HYPOTHESIS, META, REPAIRED, SCORE, Stage

INPUTS = {"target": "0123"}


class Worker:
    """Makes a stage of one file, and counts its calls."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.made = folder, 0

    def make(self) -> StageOutput:
        self.made += 1
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "model.safetensors").write_text(f"weights {self.made}")
        return StageOutput(files=["model.safetensors"], rows={"weights": 1}, facts={"seconds": 2.5})

    def run(self, stage: Stage = META, *, seed: int = 0, names: tuple[str, ...] = ("fog",)) -> Manifest:
        return run_stage(stage, self.folder, self.make, names=names, config={"seed": seed}, inputs=INPUTS)


@pytest.fixture
def worker(tmp_path: Path) -> Worker:
    return Worker(tmp_path / "meta" / "fog")


def test_a_finished_stage_has_a_manifest_with_all_of_its_inputs(
    worker: Worker, caplog: pytest.LogCaptureFixture
) -> None:
    manifest = worker.run()
    assert manifest == read_manifest(worker.folder)
    assert (manifest.stage, manifest.config, manifest.inputs) == ("train fog", {"seed": 0}, INPUTS)
    assert (manifest.rows, manifest.facts) == ({"weights": 1}, {"seconds": 2.5})
    assert list(manifest.files) == ["model.safetensors"]
    assert caplog.messages == []


def test_a_finished_stage_is_skipped_with_a_log_line(
    worker: Worker, caplog: pytest.LogCaptureFixture
) -> None:
    first = worker.run()
    assert worker.run() == first
    assert worker.made == 1
    assert caplog.messages == [f"train fog: already complete, see {worker.folder}"]


def test_other_settings_are_refused_for_finished_and_started_stages(worker: Worker) -> None:
    worker.run()
    with pytest.raises(StageError, match=r"with other settings: seed: 0 -> 1"):
        worker.run(seed=1)
    (worker.folder / MANIFEST).unlink()
    with pytest.raises(StageError, match=r"started with other settings: seed: 0 -> 1"):
        worker.run(seed=1)
    assert worker.made == 1


def test_a_failed_stage_is_marked_as_started_and_has_no_manifest(worker: Worker) -> None:
    def fail() -> StageOutput:
        raise DataError("no room")

    with pytest.raises(DataError, match="no room"):
        run_stage(META, worker.folder, fail, names=["fog"], config={}, inputs=INPUTS)
    assert [path.name for path in worker.folder.iterdir()] == [BEGUN]


@pytest.mark.parametrize("stage", [REPAIRED, SCORE, HYPOTHESIS], ids=lambda stage: stage.name)
def test_stages_that_the_table_does_not_mark_leave_no_marker(stage: Stage, worker: Worker) -> None:
    worker.run(stage, names=("fog",) if stage.depth else ())
    assert sorted(path.name for path in worker.folder.iterdir()) == [MANIFEST, "model.safetensors"]


def test_damage_is_repaired_by_the_stages_that_mend_and_refused_by_others(
    worker: Worker, caplog: pytest.LogCaptureFixture
) -> None:
    worker.run(SCORE, names=())
    (worker.folder / "model.safetensors").write_text("weights x")
    worker.run(SCORE, names=())
    assert (worker.folder / "model.safetensors").read_text() == "weights 2"
    assert caplog.messages == [f"{worker.folder / 'model.safetensors'} is damaged. Regenerating it now."]
    (worker.folder / MANIFEST).unlink()
    worker.run(replace(SCORE, mends=False), names=())
    (worker.folder / "model.safetensors").write_text("longer than before")
    with pytest.raises(DataError, match="its manifest promises 9 bytes"):
        worker.run(replace(SCORE, mends=False), names=())


def test_a_setting_that_the_table_does_not_list_is_an_assertion_error(worker: Worker) -> None:
    with pytest.raises(AssertionError, match="weather"):
        run_stage(META, worker.folder, worker.make, config={"weather": 1}, inputs={})
