"""Only the evaluator opens a target's D_fail, after every repair of that target is finished and saved."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import pytest

from metarepair.adaptation.repair_data import RepairData
from metarepair.cli import main
from metarepair.config.load import load_config
from metarepair.evaluation import evaluate
from metarepair.repairs import stage as repair_stage
from metarepair.reports import examples
from metarepair.runs.layout import Run
from metarepair.stages.pipeline import Pipeline
from tasks.experiences import store
from tasks.records import Failures


class OpenedTooEarlyError(Exception):
    """D_fail of a target was read before the evaluation."""


@pytest.fixture
def locked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every read of a target's fail.arrow raise."""
    read = store.read_failures

    def guarded(path: Path) -> Failures:
        if path.name == "fail.arrow" and "targets" in path.parts:
            raise OpenedTooEarlyError(path)
        return read(path)

    monkeypatch.setattr(store, "read_failures", guarded)


@pytest.fixture
def fresh(finished_run: Path, tmp_path: Path) -> Pipeline:
    return Pipeline(load_config(finished_run / "tiny.yaml", [], storage_path=str(tmp_path)))


def test_nothing_before_the_evaluation_reads_d_fail(
    fresh: Pipeline, locked: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached = []
    judge = evaluate.evaluate

    def watched(*arguments: object, **named: object) -> object:
        reached.append(sorted(fresh.run.repaired("gaussian_noise").rglob("model.safetensors")))
        return judge(*arguments, **named)  # type: ignore[arg-type]  # passed through

    monkeypatch.setattr(repair_stage, "evaluate", watched)
    fresh.mine()
    fresh.score()
    fresh.train()
    with pytest.raises(OpenedTooEarlyError):  # shows that the guard sees the evaluator's read
        fresh.repair()
    assert [len(weights) for weights in reached] == [2]  # both methods' weights were already saved


def test_each_opening_of_d_fail_is_logged(finished_run: Path) -> None:
    log = Run(finished_run / "runs" / "tiny").d_fail_log
    assert [json.loads(line)["target"] for line in log.read_text().splitlines()] == ["gaussian_noise"]


def test_a_methods_inputs_give_no_access_to_d_fail(finished_run: Path) -> None:
    assert {f.name for f in fields(RepairData)} == {"target", "learn", "validation", "clean"}
    run = Run(finished_run / "runs" / "tiny")
    collect = store.read_failures(run.target("gaussian_noise") / "collect.arrow")
    fail = store.read_failures(run.target("gaussian_noise") / "fail.arrow")
    assert not set(collect.image_ids_N) & set(fail.image_ids_N)


def test_a_torn_line_in_the_log_of_d_fail_is_said_in_the_report(tiny_run: Path) -> None:
    run = tiny_run / "runs" / "tiny"
    with (run / "d_fail_reads.jsonl").open("a", encoding="utf-8") as log:
        log.write('{"target": "gauss')
    arguments = ["report", "--config", str(tiny_run / "tiny.yaml"), "--storage", str(tiny_run / "runs")]
    assert main(arguments) == 0
    page = (run / "report" / "index.html").read_text(encoding="utf-8")
    assert "opened D_fail once. 1 of its lines cannot be read, so there may be more." in page


def test_the_report_opens_d_fail_again_and_does_not_log_it(
    tiny_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, opened = Run(tiny_run / "runs" / "tiny").d_fail_log, []
    before, read = log.read_bytes(), store.read_failures

    def watched(path: Path) -> Failures:
        opened.append(path.name)
        return read(path)

    monkeypatch.setattr(examples, "read_failures", watched)
    assert main(["report", "--config", str(tiny_run / "tiny.yaml"), "--storage", str(tiny_run / "runs")]) == 0
    assert "fail.arrow" in opened
    assert log.read_bytes() == before
