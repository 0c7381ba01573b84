"""`compare.vary: everything`: a run of its own for each seed, the joined report, resuming, restarting, status."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from metarepair.cli import main
from metarepair.compare.seeds import config_of_seed
from metarepair.config.load import parse_config
from metarepair.config.run import Config
from metarepair.config.section import LARGEST
from metarepair.inspection.inspect import inspect
from metarepair.inspection.inspect_text import describe
from metarepair.inspection.status import status_of
from metarepair.inspection.status_text import describe_status
from metarepair.methods.budget import cost_of
from metarepair.runs.layout import Run, run_of
from metarepair.stages.compare import Comparison
from metarepair.stages.compare_seeds import SeedsOfEverything, comparison_of
from tasks.errors import ConfigError, DataError, LockError, StageError
from tasks.records import MEASURED
from tasks.storage.manifest import require_manifest
from tasks.storage.run_lock import holder, locked

METHODS = ["none", "bn_adapt", "joint_finetune"]
SETTINGS: dict[str, Any] = {
    "name": "tiny",
    "device": "cpu",
    "seed": 5,
    "data": {"max_train_images": 120, "max_test_images": 120},
    "mining": {"experiences": ["shot_noise"], "severities": [3], "collect": 20, "shard_images": 100},
    "task": {"shots": 1, "query_size": 10},
    "inner": {"steps": 1},
    "joint": {"rounds": 1, "round_steps": 1, "batch_size": 8, "groups": 1, "shift": 2},
    "repair": {"episodes": 1, "tasks": 1},
    "evaluate": {"others": []},
    "compare": {"methods": METHODS, "seeds": [0, 2], "vary": "everything"},
}
MADE = (
    "targets/gaussian_noise/collect.arrow",
    "joint/model.safetensors",
    "compare/gaussian_noise/joint_finetune/{seed}/model.safetensors",
)


def config(storage: Path, **compare: Any) -> Config:
    changed = {"storage_path": str(storage), "compare": SETTINGS["compare"] | compare}
    return parse_config(SETTINGS | changed)


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A storage folder with a finished comparison of two seeds; tests must not write to it."""
    storage = tmp_path_factory.mktemp("seeds") / "runs"
    comparison_of(config(storage)).compare()
    return storage


@pytest.fixture
def copied(compared: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(compared, tmp_path / "runs"))


def run_in(storage: Path) -> Run:
    return Run(storage / "tiny")


def made(run: Run, seed: int) -> list[bytes]:
    return [(Path(str(run.root)) / name.format(seed=seed)).read_bytes() for name in MADE]


def rows(run: Run) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(run.compare / "rows.parquet").to_pylist()
    return found


def without_seconds(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k not in MEASURED} for row in found]


def command(storage: Path, tmp_path: Path, *more: str) -> int:
    file = tmp_path / "tiny.yaml"
    file.write_text(json.dumps(SETTINGS), encoding="utf-8")  # JSON is YAML
    return main(["compare", "--config", str(file), "--storage", str(storage), *more])


def test_seeds_differ_in_mining_preparation_and_repair(compared: Path) -> None:
    first, second = (made(run_in(compared).of_seed(seed), seed) for seed in (0, 2))
    assert all(one != two for one, two in zip(first, second, strict=True))
    ids = [
        json.loads(line)["images"]["gaussian_noise"]
        for seed in (0, 2)
        for line in run_in(compared).of_seed(seed).d_fail_log.read_text(encoding="utf-8").splitlines()
    ]
    assert len(ids) == 2
    assert ids[0] != ids[1]


def test_a_seeds_run_equals_an_ordinary_comparison_with_its_seed(compared: Path, tmp_path: Path) -> None:
    settings = {"storage_path": str(tmp_path), "seed": 7, "compare": {"methods": METHODS, "seeds": [2]}}
    ordinary = Comparison(parse_config(SETTINGS | settings))
    ordinary.compare()
    assert made(ordinary.run, 2) == made(run_in(compared).of_seed(2), 2)
    found = rows(run_in(compared).of_seed(2))
    assert without_seconds(rows(ordinary.run)) == without_seconds(found)


def test_the_report_joins_the_rows_of_all_seeds(compared: Path) -> None:
    run = run_in(compared)
    found = rows(run)
    assert [(row["method"], row["seed"]) for row in found] == [(m, s) for m in METHODS for s in (0, 2)]
    separate = [row for seed in (0, 2) for row in rows(run.of_seed(seed))]
    assert sorted(map(str, found)) == sorted(map(str, separate))
    text = (run.compare / "table.md").read_text(encoding="utf-8")
    for key in ("clean", "d_fail"):
        values = [100 * row[key] for row in separate if row["method"] == "bn_adapt"]
        assert values[0] != values[1]
        assert f"{np.mean(values):.1f} ± {np.std(values, ddof=1):.1f}" in text
    made = [cost_of(require_manifest(run.of_seed(seed).joint, "").facts) for seed in (0, 2)]
    costs = text.partition("## what preparation and repair took")[2]
    joint = next(line for line in costs.splitlines() if line.startswith("| joint training"))
    cells = [cell.strip() for cell in joint.split("|")]
    assert cells[4] == f"{made[0].forward_images:,}"  # as many for each seed, so their mean
    assert made[0].forward_images == made[1].forward_images > 0
    assert (run.compare / "index.html").is_file()


def test_the_legend_says_what_the_spread_is_over(compared: Path) -> None:
    outer, inner = (
        (run.compare / "table.md").read_text(encoding="utf-8")
        for run in (run_in(compared), run_in(compared).of_seed(0))
    )
    whole = "± is the standard deviation over seeds, of everything: mining split, preparation and repair."
    alone = (
        "± is the standard deviation over seeds, of the repairs alone: mining and preparation happened once."
    )
    assert (whole in outer, alone in outer) == (True, False)
    assert (whole in inner, alone in inner) == (False, True)
    assert "Each seed was judged by 60 test images (50%)" in outer
    assert "its own D_fail" in outer
    assert "apart from the other seeds of this comparison, repairs were judged" in outer
    assert "these figures are too good" not in outer


def test_a_comparison_that_is_cut_off_after_a_seed_resumes_to_the_same_report(
    compared: Path, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut = SeedsOfEverything(config(copied))
    shutil.rmtree(copied / "tiny" / "seeds" / "2")
    shutil.rmtree(copied / "tiny" / "compare")
    judge = Comparison._judge

    def first_only(self: Comparison) -> None:
        if self.config.name == "2":
            raise KeyboardInterrupt
        judge(self)

    with monkeypatch.context() as patch:
        patch.setattr(Comparison, "_judge", first_only)
        with pytest.raises(KeyboardInterrupt):
            cut.compare()
    found = status_of(str(cut.run.root))
    (stage,) = found.stages
    assert [(m.path, m.state, m.done, m.total, m.judged) for m in stage.members] == [
        ("seeds/0", "done", 3, 3, 3),
        ("seeds/2", "begun", 3, 3, 0),
    ]
    text = describe_status(found)
    assert found.state == "unfinished"
    assert "2 (seed): 3 of 3 repairs, 0 judged" in text
    assert "Each seed has a run of its own; 1 of 2 are complete:" in text
    assert f"metarepair status {cut.run.root}/seeds/2" in text
    SeedsOfEverything(config(copied)).compare()
    assert without_seconds(rows(cut.run)) == without_seconds(rows(run_in(compared)))
    assert status_of(str(cut.run.root)).state == "finished"


def test_status_and_inspect_list_the_runs_of_the_seeds(compared: Path) -> None:
    run = run_in(compared)
    status, found = status_of(str(run.root)), inspect(str(run.root))
    assert (status.state, status.unused, status.damaged) == ("finished", (), ())
    assert "compare    done: 2 seeds" in describe_status(status)
    assert (found.kind, found.finished, found.damaged) == ("run", True, ())
    own = inspect(str(run.of_seed(2).root))
    assert [s.path for s in found.stages if s.seed_run == "seeds/2"] == [
        f"seeds/2/{s.path}" for s in own.stages
    ]
    assert f"metarepair inspect {run.root}/seeds/2" in describe(found)
    inner = status_of(str(run.of_seed(2).root))
    assert (inner.state, inner.d_fail_reads) == ("finished", 1)
    with pytest.raises(DataError, match="is a folder of runs"):
        status_of(str(run.seeds))
    with pytest.raises(DataError, match="is a report"):
        inspect(str(run.compare))


def test_damage_in_a_seeds_run_is_found_with_its_remedy_and_mended(copied: Path) -> None:
    run = run_in(copied)
    path = "seeds/2/compare/gaussian_noise/joint_finetune/2/model.safetensors"
    whole = (copied / "tiny" / path).read_bytes()
    (copied / "tiny" / path).write_bytes(whole[:-1])
    for damaged in (inspect(str(run.root)).damaged, status_of(str(run.root)).damaged):
        (damage,) = damaged
        assert (damage.path, damage.state) == (path, "differs")
        assert f"Delete {path} and " in damage.remedy
    for name in (path, f"{path.rpartition('/')[0]}/manifest.json"):
        (copied / "tiny" / name).unlink()
    SeedsOfEverything(config(copied)).compare()
    assert (copied / "tiny" / path).read_bytes() == whole
    assert inspect(str(run.root)).damaged == ()


def test_a_restart_deletes_the_repairs_of_all_seeds_first(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = config(copied, budgets={"joint_finetune": "1steps"})
    own = rf"the run of seed 0: .* --storage {copied}/tiny/seeds --set 'name=\"0\"' --set seed=5"
    with pytest.raises(StageError, match=f"1steps.*{own}"):
        SeedsOfEverything(changed).compare()
    mined = made(run_in(copied).of_seed(2), 2)[0]
    with monkeypatch.context() as patch:
        patch.setattr(Comparison, "_repair", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            SeedsOfEverything(changed).compare(restart=True)
    assert list(copied.glob("tiny/seeds/*/compare/*/*/*/manifest.json")) == []
    SeedsOfEverything(changed).compare()
    assert made(run_in(copied).of_seed(2), 2)[0] == mined
    steps = {
        row["seed"]: row["gradient_steps"] for row in rows(run_in(copied)) if row["method"] == METHODS[2]
    }
    assert steps == {0: 1, 2: 1}


def test_a_second_reading_of_each_seed_is_counted(copied: Path) -> None:
    for seed in (0, 2):
        log = Path(str(run_in(copied).of_seed(seed).d_fail_log))
        log.write_text(log.read_text(encoding="utf-8") * 2, encoding="utf-8")
    SeedsOfEverything(config(copied)).compare()
    text = (run_in(copied).compare / "table.md").read_text(encoding="utf-8")
    assert "of one seed, or some of them, up to 2 times. If a repair" in text


def test_the_run_of_a_seed_is_locked_while_it_is_compared(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, held = run_in(copied), []
    monkeypatch.setattr(Comparison, "compare", lambda self: held.append(holder(self.run.root)))
    SeedsOfEverything(config(copied)).compare()
    assert [one is not None and one.alive for one in held] == [True, True]
    assert holder(run.of_seed(0).root) is None
    with locked(run.of_seed(2).root, "compare"), pytest.raises(LockError, match="is in use"):
        SeedsOfEverything(config(copied)).compare()


def test_the_command_compares_draws_a_pair_and_says_where(
    copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(copied, tmp_path) == 0
    assert f"Written to {run_in(copied).compare}" in capsys.readouterr().out
    assert command(copied, tmp_path, "--pair", "none", "bn_adapt") == 0
    pairs = run_in(copied).of_seed(0).compare / "pairs"
    assert (Path(str(pairs)) / "gaussian_noise_none_bn_adapt_0.png").is_file()
    assert command(copied, tmp_path, "--pair", "none", "bn_adapt", "--set", "compare.seeds=[1]") == 2
    assert "holds no comparison" in capsys.readouterr().err
    assert not run_in(copied).of_seed(1).root.exists()
    shutil.rmtree(copied / "tiny" / "seeds" / "2")
    (stage,) = status_of(str(run_in(copied).root)).stages
    assert [(m.state, m.done) for m in stage.members] == [("done", 3), ("not begun", 0)]


def test_a_refused_comparison_leaves_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for setting in (
        "compare.methods=[fintune]",
        f"compare.seeds=[0, {LARGEST}]",
        "methods={tent: {rate: -1.0}}",
    ):
        assert command(tmp_path / "runs", tmp_path, "--set", setting) == 2
    assert (
        command(tmp_path / "runs", tmp_path, "--set", "data.max_train_images=1", "--set", "model.weights=x")
        == 2
    )
    assert not (tmp_path / "runs").exists()
    assert "the largest seed" in capsys.readouterr().err


def test_the_settings_of_a_seeds_run() -> None:
    given = config(Path("/runs"))
    own = config_of_seed(given, 2)
    assert str(run_of(own).root) == "/runs/tiny/seeds/2"
    assert (own.seed, own.compare.seeds, own.compare.vary) == (7, (2,), "repair")
    assert (
        own.model_copy(
            update={key: getattr(given, key) for key in ("name", "storage_path", "seed", "compare")}
        )
        == given
    )
    with pytest.raises(ConfigError, match="largest seed"):
        config_of_seed(given, LARGEST - 4)
    assert config_of_seed(given, LARGEST - 5).seed == LARGEST
