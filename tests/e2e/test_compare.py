"""`metarepair compare`: what it writes, skips and refuses, and that it opens D_fail last and only once."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from metarepair.cli import main
from metarepair.compare import judge as judging
from metarepair.compare.check import check_methods, check_settings
from metarepair.compare.pair import load_pair
from metarepair.compare.results import write_results
from metarepair.compare.units import ComparedRepair, compared_units, load_candidate
from metarepair.config.load import load_config
from metarepair.evaluation.side_effects import fallen_classes
from metarepair.inspection.inspect import inspect
from metarepair.inspection.status import status_of
from metarepair.methods import METHODS, Method
from metarepair.runs.layout import Run
from metarepair.stages.compare import Comparison
from tasks.errors import ConfigError, DataError, StageError
from tasks.experiences import store
from tasks.records import Failures
from tasks.storage.manifest import file_hash

METHODS_HERE = ("none", "bn_adapt", "finetune", "metarepair")
COMPARE = ["--set", f"compare.methods=[{', '.join(METHODS_HERE)}]", "--set", "compare.seeds=[0, 1]"]
FILES = ("index.html", "table.md", "rows.csv", "rows.parquet", "bars.png", "radar.png")


def compare(folder: Path, *more: str) -> int:
    storage = ["--storage", str(folder / "runs")]
    others = ["--set", "evaluate.others=[fog, jpeg_compression]"]
    return main(["compare", "--config", str(folder / "tiny.yaml"), *storage, *others, *COMPARE, *more])


@pytest.fixture(scope="module")
def compared(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny run and its finished comparison; tests must not write to it."""
    folder = tmp_path_factory.mktemp("compared") / "run"
    shutil.copytree(finished_run, folder)
    assert compare(folder) == 0
    return folder


@pytest.fixture
def copied(compared: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(compared, tmp_path / "copied"))


def run_of(folder: Path) -> Run:
    return Run(folder / "runs" / "tiny")


def comparison_of(folder: Path, *overrides: str) -> Comparison:
    settings = [*COMPARE[1::2], "evaluate.others=[fog, jpeg_compression]", *overrides]
    config = load_config(folder / "tiny.yaml", settings, storage_path=str(folder / "runs"))
    return Comparison(config)


def units_of(folder: Path) -> list[Path]:
    return sorted(run_of(folder).compare.glob("*/*/*/manifest.json"))


def test_side_effects_are_beside_every_repair_and_a_lost_class_is_said_first(copied: Path) -> None:
    run = run_of(copied)
    for unit in units_of(copied):
        row = json.loads((unit.parent / "judged.json").read_text())
        told = json.loads((unit.parent / "side_effects.json").read_text())["repairs"]
        effects = told[f"{row['method']}/{row['seed']}"]
        clean = effects["clean"]
        assert clean["images"] == row["judging"]["clean_images"]
        assert clean["after"] == pytest.approx(row["clean"])
        assert row["fallen_classes"] == fallen_classes(effects)
        assert row["method"] != "none" or row["fallen_classes"] == []
        assert (unit.parent / "README.md").is_file() == (row["method"] != "none")
    card = json.loads((run.compared("gaussian_noise", "bn_adapt", 1) / "card.json").read_text())
    weights = run.compared("gaussian_noise", "bn_adapt", 1) / "model.safetensors"
    assert card["weights"]["blake2b_128"] == file_hash(weights)
    assert card["verdict"].endswith("No limits were set, so whether to take this one is for you to decide.")
    assert card["counts"]["collect"] > card["counts"]["validation"] > 0
    assert card["results"]["clean"]["images"] == card["judging"]["clean_images"]
    path = run.compared("gaussian_noise", "finetune", 1) / "judged.json"
    row = json.loads(path.read_text())
    fallen = {
        "where": "clean",
        "name": "cat",
        "images": 40,
        "recall_before": 0.9,
        "recall_after": 0.1,
        "lost": True,
    }
    path.write_text(json.dumps(row | {"fallen_classes": [fallen]}))
    comparison = comparison_of(copied)
    write_results(run, comparison.config, comparison.units)
    first = (run.compare / "table.md").read_text().split("## ")[1]
    assert (
        "gaussian noise, fine-tuned, seed 1: The repair loses a class: cat is found in 10.0% of 40" in first
    )


def test_a_comparison_has_a_row_for_every_method_target_and_seed(compared: Path) -> None:
    folder = run_of(compared).compare
    assert all((folder / name).is_file() for name in FILES)
    rows = pq.read_table(folder / "rows.parquet").to_pylist()
    assert {(r["method"], r["seed"]) for r in rows} == {(m, s) for m in METHODS_HERE for s in (0, 1)}
    assert {r["target"] for r in rows} == {"gaussian_noise"}
    by_method = {(r["method"], r["seed"]): r for r in rows}
    assert by_method["none", 0]["d_fail"] == 0
    assert by_method["none", 0]["clean"] == by_method["none", 0]["clean_before"]
    assert by_method["bn_adapt", 0]["d_fail"] > 0
    assert by_method["finetune", 0]["d_fail_paper"] is not None
    assert by_method["bn_adapt", 0]["d_fail_paper"] is None
    assert all(r["memory_bytes"] is None or r["memory_bytes"] > 2**20 for r in rows)
    text = (folder / "table.md").read_text(encoding="utf-8")
    for words in ("before repair", "BN-adapted", "fine-tuned", "MetaRepair", "73.51", "its own settings"):
        assert words in text


def test_status_and_inspect_agree_with_a_finished_comparison(compared: Path) -> None:
    root = str(run_of(compared).root)
    status = status_of(root)
    assert (status.state, status.damaged) == ("finished", ())
    (target,) = next(stage for stage in status.stages if stage.name == "compare").members
    assert (target.name, target.done, target.total, target.judged) == ("gaussian_noise", 8, 8, 8)
    found = inspect(root)
    assert found.damaged == ()
    shown: list[Any] = [stage.details for stage in found.stages if stage.kind == "compared"]
    rows = pq.read_table(run_of(compared).compare / "rows.parquet").to_pylist()
    keys = ("target", "method", "seed", "d_fail", "corrupted", "clean")
    assert sorted(tuple(getattr(facts.methods[0], key) for key in keys) for facts in shown) == sorted(
        tuple(row[key] for key in keys) for row in rows
    )


def test_the_remedy_from_inspect_restores_damaged_weights(copied: Path) -> None:
    run = run_of(copied)
    path = run.compared("gaussian_noise", "finetune", 1) / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    (damage,) = inspect(str(run.root)).damaged
    assert damage.remedy.startswith(f"Delete {damage.path} and ")
    for name in re.findall(r"compare/\S+(?<!,)", damage.remedy.partition("run `")[0]):
        (run.root / name).unlink()
    assert status_of(str(run.root)).state == "unfinished"
    comparison_of(copied).compare()
    assert path.read_bytes() == whole
    assert inspect(str(run.root)).damaged == ()


def test_d_fail_is_opened_once_after_all_repairs_of_its_target(compared: Path, finished_run: Path) -> None:
    lines = [json.loads(line) for line in run_of(compared).d_fail_log.read_text().splitlines()]
    before = run_of(finished_run).d_fail_log.read_text().splitlines()
    assert len(lines) == len(before) + 1
    assert sorted(lines[-1]["judged"]) == sorted(f"{m}/{s}" for m in METHODS_HERE for s in (0, 1))


def test_no_repair_reads_d_fail(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = store.read_failures

    def guarded(path: Path) -> Failures:
        assert not (path.name == "fail.arrow" and "targets" in path.parts), "D_fail was opened"
        return read(path)

    monkeypatch.setattr(store, "read_failures", guarded)
    shutil.rmtree(run_of(copied).compare)
    with pytest.raises(AssertionError, match="D_fail was opened"):  # only by the evaluator, which runs last
        comparison_of(copied).compare()
    assert len(units_of(copied)) == 8


def test_finished_repairs_and_evaluations_are_not_repeated(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = run_of(copied).d_fail_log.read_text()
    assert compare(copied) == 0
    assert "all 8 repairs are already complete" in capsys.readouterr().out
    assert run_of(copied).d_fail_log.read_text() == log


def test_only_an_added_method_is_evaluated(copied: Path) -> None:
    assert compare(copied, "--set", "compare.methods=[none, bn_adapt, finetune, metarepair, tent]") == 0
    last = json.loads(run_of(copied).d_fail_log.read_text().splitlines()[-1])
    assert sorted(last["judged"]) == ["tent/0", "tent/1"]


def test_an_interrupted_comparison_ends_like_an_uninterrupted_one(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = [p.parent.joinpath("model.safetensors").read_bytes() for p in units_of(copied)]
    shutil.rmtree(run_of(copied).compare)
    finetune = METHODS["finetune"]
    with monkeypatch.context() as patch:
        patch.setattr(type(finetune), "repair", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            comparison_of(copied).compare()
    assert 0 < len(units_of(copied)) < 8
    comparison_of(copied).compare()
    assert [p.parent.joinpath("model.safetensors").read_bytes() for p in units_of(copied)] == undisturbed


def test_another_budget_is_refused_with_the_difference_and_accepted_with_restart(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare(copied, "--budget", "2steps") == 2
    assert "budget: None -> 2steps" in capsys.readouterr().err
    assert compare(copied, "--budget", "2steps", "--restart") == 0
    rows = pq.read_table(run_of(copied).compare / "rows.parquet").to_pylist()
    assert {r["gradient_steps"] for r in rows} <= {0, 1, 2}


def test_a_pair_is_not_drawn_from_images_outside_the_evaluation(
    compared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pair = ("--pair", "none", "bn_adapt")
    for change in ("seed=9", "data.max_test_images=20"):
        assert compare(compared, *pair, "--set", change) != 0
        assert "with other settings" in capsys.readouterr().err
    for option in (("--restart",), ("--address", "1.2.3.4:6379")):
        assert compare(compared, *pair, *option) != 0
        assert "--pair only draws the results of a finished comparison" in capsys.readouterr().err
    assert not (run_of(compared).compare / "pairs" / "gaussian_noise_none_bn_adapt_0.png").exists()
    assert len(units_of(compared)) == 8


def test_a_refusal_of_an_earlier_stage_keeps_the_repairs_and_names_the_remedy(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in units_of(copied)}
    assert compare(copied, "--set", "experiences.rule=uniform", "--restart") == 2
    assert "metarepair score --config FILE --restart" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in units_of(copied)} == before


@pytest.mark.slow
def test_adding_and_removing_a_target_remakes_nothing_else(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of(copied)
    kept = [*units_of(copied), run.meta("gaussian_noise") / "start.safetensors"]
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in kept}
    assert compare(copied, "--set", "targets=[gaussian_noise, fog]") == 0
    said = capsys.readouterr().out
    assert "score: made again, because its targets were gaussian_noise" in said
    assert "train gaussian_noise: already complete" in said
    assert (run.meta("fog") / "start.safetensors").is_file()
    rows = pq.read_table(run.compare / "rows.parquet").to_pylist()
    assert {row["target"] for row in rows} == {"gaussian_noise", "fog"}
    assert compare(copied) == 0
    assert "repairs are already complete" in capsys.readouterr().out
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in kept} == before


def test_a_compared_repair_is_exported_without_a_configuration(compared: Path, tmp_path: Path) -> None:
    weights = run_of(compared).compared("gaussian_noise", "finetune", 1) / "model.safetensors"
    out = tmp_path / "mine.safetensors"
    assert main(["export", str(weights), "--format", "original", "--out", str(out)]) == 0
    found, wanted = load_file(out), load_file(weights)
    assert all(torch.equal(found[key], value) for key, value in wanted.items())


def test_a_changed_bit_of_repaired_weights_is_refused(copied: Path) -> None:
    run, unit = run_of(copied), ComparedRepair(target="gaussian_noise", method="finetune", seed=1)
    path = run.compared(unit.target, unit.method, unit.seed) / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(bytes(content))
    comparison = comparison_of(copied)
    with pytest.raises(DataError, match="checksum"):
        load_candidate(run, comparison.config, unit, comparison.pipeline.here)


def test_a_damaged_evaluation_is_repeated(copied: Path) -> None:
    run, unit = run_of(copied), ComparedRepair(target="gaussian_noise", method="none", seed=0)
    path = run.compared(unit.target, unit.method, unit.seed) / judging.ROW
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b'"d_fail": 0.0', b'"d_fail": 0.9'))
    comparison_of(copied).compare()
    assert json.loads(path.read_bytes())["d_fail"] == 0.0


def test_a_loaded_candidate_predicts_like_the_saved_one(compared: Path) -> None:
    comparison = comparison_of(compared)
    here = comparison.pipeline.here
    unit = ComparedRepair(target="gaussian_noise", method="bn_adapt", seed=0)
    candidate = load_candidate(run_of(compared), comparison.config, unit, here)
    samples = pq.read_table(run_of(compared).compared(unit.target, unit.method, 0) / judging.SAMPLES)
    clean = samples.filter(np.array(samples["part"].to_pylist()) == "clean").slice(0, 20)
    images = here.split("test").images(clean["image_id"].to_numpy())
    module = candidate.model.fill(here.deployed.module)
    with torch.inference_mode():
        ours = module(here.deployed.normalise(images)).argmax(1).numpy()
    assert clean["after"].to_pylist() == ours.tolist()


def test_a_pair_shows_where_two_methods_differ(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare(copied, "--pair", "finetune", "bn_adapt") == 0
    assert "BN-adapted repairs, fine-tuned does not" in capsys.readouterr().out
    pair = load_pair(run_of(copied), "gaussian_noise", ("finetune", "bn_adapt"), 0)
    fail = [kind for kind in pair.kinds if kind.words.startswith("D_fail")]
    rows = np.concatenate([kind.rows_N for kind in fail])
    parts = np.array(pair.table["part"].to_pylist())
    assert sorted(rows.tolist()) == np.flatnonzero(parts == "fail").tolist()
    label = pair.table["label"].to_numpy()
    a, b = (pair.table[f"after_{m}"].to_numpy() == label for m in ("finetune", "bn_adapt"))
    assert all(a[fail[0].rows_N] & ~b[fail[0].rows_N])
    assert all(b[fail[1].rows_N] & ~a[fail[1].rows_N])
    assert len(list((run_of(copied).compare / "pairs").glob("*.png"))) == 1


def test_repairs_are_ordered_by_seed_so_that_a_partial_comparison_has_complete_seeds(compared: Path) -> None:
    seeds = [unit.seed for unit in compared_units(comparison_of(compared).config)]
    assert seeds == sorted(seeds)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("compare.methods=[fintune]", "did you mean 'finetune'"),
        ("compare.methods=[]", "compare.methods"),
        ("compare.methods=[none, none]", "twice"),
        ("compare.seeds=[-1]", "compare.seeds"),
        ("compare.seeds=[]", "compare.seeds"),
        ("compare.budget=60", "compare.budget"),
        ("compare.budget=60d", "not a budget"),
        ("compare.budget=0s", "not a budget|above 0"),
        ("compare.budget=1.5steps", "whole"),
        ("compare.budget=-3s", "not a budget"),
        ("compare.budgets={tent: 3s}", "compare.budgets.*'tent'"),
        ("compare.budgets={finetune: soon}", "not a budget"),
        ("methods={tennt: {rate: 0.1}}", "did you mean 'tent'"),
        ("methods={tent: {raet: 0.1}}", "methods.tent.rate"),
        ("methods={tent: {rate: -1.0}}", "methods.tent.rate"),
        ("methods={tent: 3}", "methods.tent"),
    ],
)
def test_bad_settings_are_refused_in_one_paragraph(
    copied: Path, capsys: pytest.CaptureFixture[str], setting: str, said: str
) -> None:
    assert compare(copied, "--set", setting) == 2
    error = capsys.readouterr().err
    assert error.startswith("metarepair: ")
    assert error.count("\n") == 1
    assert re.search(said, error), error


@pytest.mark.parametrize("pair", [("finetune", "tennt"), ("finetune", "finetune"), ("finetune", "tent")])
def test_a_bad_pair_is_refused(copied: Path, pair: tuple[str, str]) -> None:
    assert compare(copied, "--pair", *pair) == 2


def test_a_pair_of_a_missing_run_creates_no_files(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare(copied, "--set", "name=absent", "--pair", "finetune", "bn_adapt") == 2
    assert "holds no comparison" in capsys.readouterr().err
    assert not (copied / "runs" / "absent").exists()


def test_a_pair_without_evaluation_names_the_remedy(compared: Path) -> None:
    with pytest.raises(StageError, match="metarepair compare"):
        load_pair(run_of(compared), "gaussian_noise", ("finetune", "tent"), 0)


def test_a_method_that_does_not_fit_the_dnn_is_refused_before_any_work(
    compared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    comparison = comparison_of(compared)

    def lacking(self: Method, module: torch.nn.Module, settings: object) -> None:
        raise ConfigError("this DNN has no such layer")

    monkeypatch.setattr(type(METHODS["bn_adapt"]), "check", lacking)
    with pytest.raises(ConfigError, match="no such layer"):
        check_methods(comparison.config, comparison.pipeline.here)
    check_settings(comparison.config)
