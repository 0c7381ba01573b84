"""Test that `status` and `inspect` report a comparison as stored: unfinished, judged, damaged or being written."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from safetensors.numpy import save

from metarepair.cli import main
from metarepair.compare.judge import judging_identity
from metarepair.compare.plan import Plan, read_plan, write_plan
from metarepair.compare.units import ComparedRepair
from metarepair.config.load import load_config
from metarepair.data.workspace import load_surroundings
from metarepair.inspection import inspect as inspecting
from metarepair.inspection import status, walk
from metarepair.inspection.facts import Inspection, Member, RunStatus
from metarepair.inspection.inspect import inspect
from metarepair.inspection.inspect_text import describe
from metarepair.inspection.status import status_of
from metarepair.inspection.status_text import describe_status
from metarepair.inspection.stored import JUDGED
from metarepair.runs.layout import Run
from tasks.errors import DataError
from tasks.storage.manifest import begin, read_manifest, write_manifest
from tasks.storage.paths import Place, write_table, write_text
from tasks.storage.run_lock import locked
from tasks.storage.sealed_parts import seal, seal_of

ROW = {"method": "none", "seed": 0, "d_fail": 0.25, "corrupted": 0.5, "clean": 0.75}


def finish(folder: Place, stage: str) -> None:
    write_text(folder / "result.bin", "content")
    write_manifest(folder, stage=stage, config={}, inputs={}, files=["result.bin"])


def repair(run: Place, name: str, *, judged: bool = False) -> Place:
    """Write the finished repair `name`, which is TARGET/METHOD/SEED."""
    folder = run / "compare" / name
    begin(folder, config={}, inputs={})
    (folder / "model.safetensors").write_bytes(save({"w": np.ones(3, np.float32)}))
    write_manifest(
        folder,
        stage=f"compare {name.replace('/', ' ')}",
        config={},
        inputs={},
        files=["model.safetensors"],
    )
    if judged:
        write_text(folder / "judged.json", json.dumps(ROW))
        write_table(folder / "samples.parquet", pa.table({"part": ["fail"]}))
        for file in JUDGED:
            seal(folder / file, {"file": file})
    return folder


def prepare(run: Place, *, pieces: int, done: bool = False) -> Place:
    """Write `pieces` sealed pieces of a preparation, and one without a seal."""
    folder = run / "prepared" / "apricot"
    begin(folder, config={}, inputs={})
    names = [f"reduced-{number:03d}.safetensors" for number in range(pieces + 1)]
    for name in names:
        (folder / name).write_bytes(save({"w": np.ones(3, np.float32)}))
    for name in names[: pieces + done]:
        seal(folder / name, {"name": name})
    if done:
        files = [*names, *(f"{name}.seal" for name in names)]
        write_manifest(folder, stage="prepare apricot", config={}, inputs={}, files=files)
    return folder


def plan(run: Place, targets: tuple[str, ...] = ("fog", "snow"), seeds: tuple[int, ...] = (0, 1)) -> None:
    write_plan(run / "compare", targets=targets, methods=("none", "tent"), seeds=seeds, config={})


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that compares on two targets: one is done, the other has one repair of four."""
    root = tmp_path / "sample"
    for role, name in (("experience", "frost"), ("target", "fog"), ("target", "snow")):
        finish(root / f"{role}s" / name, f"mine {role} {name}")
    prepare(root, pieces=2, done=True)
    plan(root)
    for name in ("none/0", "none/1", "tent/0", "tent/1"):
        repair(root, f"fog/{name}", judged=True)
    repair(root, "snow/none/0")
    begin(root / "compare" / "snow" / "tent" / "0", config={}, inputs={})
    return root


def member(found: RunStatus, path: str) -> Member:
    return next(m for s in found.stages for m in s.members if m.path == path)


def counts(found: RunStatus, target: str) -> tuple[str, int | None, int | None, int | None]:
    one = member(found, f"compare/{target}")
    return one.state, one.done, one.total, one.judged


def words(text: str) -> str:
    return " ".join(text.split())


def damaged(found: Inspection) -> list[tuple[str, str]]:
    return [(d.path, d.state) for d in found.damaged]


def states(found: Inspection, path: str) -> dict[str, str]:
    return {f.name: f.state for s in found.stages if s.path == path for f in s.files}


def row(found: Inspection, path: str) -> tuple[Any, ...]:
    details: Any = next(s.details for s in found.stages if s.path == path)
    (one,) = details.methods
    return one.method, one.target, one.seed, one.d_fail, one.corrupted, one.clean


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(bytes(content))


def test_a_comparison_is_counted_by_target_and_nothing_else_is_expected(run: Path) -> None:
    found = status_of(str(run))
    assert (found.state, found.damaged) == ("unfinished", ())
    assert [(s.name, s.state) for s in found.stages] == [
        ("mine", "done"),
        ("prepare", "done"),
        ("compare", "begun"),
    ]
    assert counts(found, "fog") == ("done", 4, 4, 4)
    assert counts(found, "snow") == ("begun", 1, 4, 0)
    text = words(describe_status(found))
    assert (
        "prepare done: apricot compare started: 1 of 2 done snow: 1 of 4 repairs, 0 judged, last file" in text
    )
    for name in ("none/0", "none/1", "tent/0", "tent/1"):
        repair(run, f"snow/{name}", judged=name != "tent/1")
    assert counts(status_of(str(run)), "snow") == ("begun", 4, 4, 3)
    repair(run, "snow/tent/1", judged=True)
    found = status_of(str(run))
    assert (found.state, "compare done: 2 targets" in words(describe_status(found))) == ("finished", True)


def test_a_repair_counts_as_judged_only_with_a_seal_on_both_files(run: Path) -> None:
    seal_of(run / "compare" / "fog" / "none" / "0" / "samples.parquet").unlink()
    assert counts(status_of(str(run)), "fog") == ("begun", 4, 4, 3)
    found = inspect(str(run))
    assert found.damaged == ()
    assert "fog none 0 25.0% 50.0% 75.0% not judged yet" in words(describe(found))


def test_a_target_that_is_only_planned_is_not_begun(run: Path) -> None:
    plan(run, ("fog", "rain", "snow"))
    found = status_of(str(run))
    assert counts(found, "rain") == ("not begun", 0, 4, 0)
    assert "not started: rain" in words(describe_status(found))


def test_a_new_plan_makes_the_run_a_comparison_and_expects_no_repair_stage(tmp_path: Path) -> None:
    finish(tmp_path / "targets" / "fog", "mine target fog")
    plan(tmp_path)
    found = status_of(str(tmp_path))
    assert ([s.name for s in found.stages], found.state) == (["mine", "compare"], "unfinished")


def test_repairs_that_a_later_comparison_leaves_out_do_not_keep_it_unfinished(run: Path) -> None:
    plan(run, ("fog",), seeds=(0,))
    assert counts(status_of(str(run)), "fog") == ("done", 2, 2, 2)
    assert counts(status_of(str(run)), "snow") == ("begun", 1, None, 0)


STRINGS = '{"targets": "fog", "methods": ["tent"], "seeds": [0]}'  # a string is not a list of names


def test_without_a_plan_the_counts_stand_alone_and_a_damaged_one_is_named(run: Path) -> None:
    (run / "compare" / "comparison.json").unlink()
    found = status_of(str(run))
    assert (counts(found, "fog"), counts(found, "snow")) == (("done", 4, None, 4), ("begun", 1, None, 0))
    assert found.damaged == ()
    for content in (
        "{",
        "[]",
        '{"targets": 3}',
        '{"targets": ["fog"], "methods": [1], "seeds": [0]}',
        STRINGS,
    ):
        write_text(run / "compare" / "comparison.json", content)
        found = status_of(str(run))
        assert [(d.path, d.state) for d in found.damaged] == [("compare/comparison.json", "damaged")]
        assert "metarepair compare" in found.damaged[0].remedy
        assert counts(found, "fog") == ("done", 4, None, 4)
        with pytest.raises(DataError, match="damaged"):
            read_plan(run / "compare")


def test_a_plan_is_read_as_it_was_written_and_replaced(root: Place) -> None:
    folder = root / "compare"
    assert read_plan(folder) is None
    for targets in (("fog", "snow"), ("rain",)):
        plan(root, targets)
        assert read_plan(folder) == Plan(targets=targets, methods=("none", "tent"), seeds=(0, 1))


def test_a_run_with_its_own_repairs_and_a_comparison_lists_the_stages_of_both(run: Path) -> None:
    finish(run / "repaired" / "fog", "repair fog")
    names = [s.name for s in status_of(str(run)).stages]
    assert names == ["mine", "features", "score", "train", "repair", "report", "prepare", "compare"]


def test_a_run_held_by_compare_is_not_expected_to_repair_and_report(tmp_path: Path) -> None:
    finish(tmp_path / "targets" / "fog", "mine target fog")
    finish(tmp_path / "meta" / "fog", "train fog")
    with locked(tmp_path, "compare"):
        assert [s.name for s in status_of(str(tmp_path)).stages] == ["mine", "train"]
    assert "repair" in [s.name for s in status_of(str(tmp_path)).stages], "nobody compares any more"


def test_the_time_left_follows_the_pace_of_the_comparison_in_progress(run: Path) -> None:
    assert status_of(str(run)).stages[-1].seconds_left is None
    with locked(run, "compare"):
        now = datetime.now(UTC).timestamp()
        done = sorted((run / "compare").glob("*/*/*/manifest.json"))
        for path, seconds in zip(done, (-9000, 10, 15, 20, 25), strict=True):
            os.utime(path, (now + seconds, now + seconds))
        found = status_of(str(run))
        assert (found.state, found.stages[-1].seconds_left) == ("under way", pytest.approx(3 * 5.0))
        for name in ("none/1", "tent/0", "tent/1"):
            repair(run, f"snow/{name}")
        assert status_of(str(run)).stages[-1].seconds_left is None, "nothing tells how long judging takes"


def test_an_unfinished_preparation_counts_its_sealed_pieces(tmp_path: Path) -> None:
    finish(tmp_path / "targets" / "fog", "mine target fog")
    folder = prepare(tmp_path, pieces=2)
    one = member(status_of(str(tmp_path)), "prepared/apricot")
    assert (one.state, one.done, one.total, one.unit, one.name) == ("begun", 2, None, "pieces", "apricot")
    found = inspect(str(tmp_path))
    assert list(states(found, "prepared/apricot").values()) == ["ok", "ok", "unchecked"]
    flip(folder / "reduced-001.safetensors")
    found = inspect(str(folder))
    assert (found.kind, found.finished) == ("prepared", False)
    assert damaged(found) == [("reduced-001.safetensors", "differs")]
    assert "recreates damaged files" in found.damaged[0].remedy


def test_an_inspection_has_a_row_for_every_repair_of_a_comparison(root: Place) -> None:
    run = root / "sample"
    finish(run / "targets" / "fog", "mine target fog")
    prepare(run, pieces=1, done=True)
    repair(run, "fog/none/0", judged=True)
    repair(run, "fog/tent/12")
    begin(run / "compare" / "fog" / "tent" / "13", config={}, inputs={})
    write_text(run / "compare" / "fog" / "tent" / "13" / "model.safetensors.0a1b.tmp", "half")
    write_text(run / "compare" / "pairs" / "fog.csv", "a")
    found = inspect(str(run))
    assert (found.kind, found.damaged) == ("run", ())
    assert [(s.path, s.kind, s.name) for s in found.stages[1:]] == [
        ("prepared/apricot", "prepared", "apricot"),
        ("compare/fog/none/0", "compared", "fog/none/0"),
        ("compare/fog/tent/12", "compared", "fog/tent/12"),
        ("compare/fog/tent/13", "compared", "fog/tent/13"),
    ]
    assert set(states(found, "compare/fog/none/0")) == {"model.safetensors", *JUDGED}
    assert {state for s in found.stages for state in states(found, s.path).values()} == {"ok"}
    assert row(found, "compare/fog/none/0") == ("none", "fog", 0, 0.25, 0.5, 0.75)
    assert row(found, "compare/fog/tent/12") == ("tent", "fog", 12, None, None, None)
    text = words(describe(found))
    assert "fog none 0 25.0% 50.0% 75.0% judged fog tent 12 ? ? ? not judged yet" in text
    assert "fog tent 13 ? ? ? unfinished, not repaired yet" in text
    assert damaged(inspect(str(run / "compare"))) == []


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'"a"', b"[" * 100_000, json.dumps(ROW).encode()[:-3] + b"9}"]
)
def test_a_damaged_judgement_is_a_row_that_says_so(
    run: Path, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run / "compare" / "fog" / "none" / "1"
    (folder / "judged.json").write_bytes(content)
    found = inspect(str(run))
    assert damaged(found) == [("compare/fog/none/1/judged.json", "differs")]
    assert row(found, "compare/fog/none/1") == ("none", "fog", 1, None, None, None)
    assert "fog none 1 ? ? ? judged.json differs" in words(describe(found))
    assert main(["inspect", str(folder)]) == 2
    error = capsys.readouterr().err
    assert "judged.json differs from its checksum. Run `metarepair compare --config FILE` again" in error
    status_of(str(run))
    seal(folder / "judged.json", {})
    assert row(inspect(str(run)), "compare/fog/none/1")[:3] == ("none", "fog", 1), "sealed, and no row"


def test_damaged_weights_are_named_with_what_to_delete(run: Path) -> None:
    for path in ("compare/fog/none/0/model.safetensors", "prepared/apricot/reduced-000.safetensors"):
        whole = (run / path).read_bytes()
        flip(run / path)
        found = inspect(str(run))
        assert damaged(found) == [(path, "differs")]
        manifest = f"{path.rpartition('/')[0]}/manifest.json"
        assert found.damaged[0].remedy == (
            f"Delete {path} and {manifest}, and run `metarepair compare --config FILE` again."
        )
        alone = inspect(str(run / path))
        assert (alone.kind, damaged(alone)) == ("file", [(path.rpartition("/")[2], "differs")])
        assert status_of(str(run)).damaged == (), "of the same size"
        (run / path).write_bytes(whole[:-1])
        assert [(d.path, d.state) for d in status_of(str(run)).damaged] == [(path, "differs")]
        (run / path).write_bytes(whole)
    assert inspect(str(run)).damaged == status_of(str(run)).damaged == ()


def test_paths_in_a_comparison_are_inspected_by_themselves(run: Path) -> None:
    found = inspect(str(run / "compare" / "fog" / "none" / "1"))
    assert (found.kind, found.finished, found.damaged) == ("compared", True, ())
    assert row(found, ".") == ("none", "fog", 1, 0.25, 0.5, 0.75)
    assert "fog none 1 25.0% 50.0% 75.0% judged" in words(describe(found))
    found = inspect(str(run / "prepared" / "apricot"))
    assert (found.kind, found.stages[0].name, found.damaged) == ("prepared", "apricot", ())
    assert {inspect(str(run / group)).kind for group in ("prepared", "compare")} == {"folder"}
    for path in ("compare/fog/none/1/model.safetensors", "prepared/apricot/reduced-000.safetensors"):
        alone = inspect(str(run / path)).file
        assert alone is not None
        assert (alone.state, alone.header["values"]) == ("ok", 3)
        assert str(alone.promised_by).endswith("manifest.json")
    samples = run / "compare" / "fog" / "none" / "1" / "samples.parquet"
    assert getattr(inspect(str(samples)).file, "state", None) == "ok"
    flip(samples)
    assert damaged(inspect(str(samples))) == [("samples.parquet", "differs")]


def test_a_repair_that_was_copied_elsewhere_is_known_by_its_manifest(run: Path) -> None:
    (run / "compare" / "fog" / "tent" / "1").rename(run.parent / "copy")
    found = inspect(str(run.parent / "copy"))
    assert (found.kind, found.stages[0].name, found.damaged) == ("compared", "fog/tent/1", ())


@pytest.mark.parametrize(
    "place", ["compare", "compare/fog", "compare/fog/none/1", "prepared", "prepared/apricot"]
)
def test_a_part_of_a_comparison_is_no_run(run: Path, place: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", str(run / place)]) == 2
    assert f"of a run. Name the run: metarepair status {run}\n" in capsys.readouterr().err


def test_a_run_may_have_the_name_of_one_of_its_folders(run: Path) -> None:
    named = run.rename(run.parent / "compare")
    assert counts(status_of(str(named)), "fog") == ("done", 4, 4, 4)
    with pytest.raises(DataError, match="folder of runs"):
        status_of(str(named.parent))


def test_files_that_vanish_or_appear_during_an_inspection_are_not_damage(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A comparison may be restarted or judged again, or may finish a repair, between the listing and the reading."""
    folder, judged = (run / "compare" / name for name in ("fog/none/0", "fog/tent/0"))
    pieces = prepare(run.parent / "second", pieces=2)
    promised = inspecting.promised_states
    manifest = read_manifest(folder)
    assert manifest is not None

    def meanwhile(place: Any, *rest: Any) -> Any:
        for path in (*folder.iterdir(), seal_of(judged / "judged.json"), judged / "judged.json"):
            path.unlink(missing_ok=True)
        return promised(place, *rest)

    monkeypatch.setattr(inspecting, "promised_states", meanwhile)
    found = inspect(str(folder))
    assert (found.finished, found.damaged) == (False, ())
    assert inspect(str(judged)).damaged == ()
    sealed = inspecting.sealed_of

    def taken(stage: Any) -> list[str]:
        names = sealed(stage)
        (stage.folder / names[0]).unlink()
        return names

    monkeypatch.setattr(inspecting, "sealed_of", taken)
    assert inspect(str(pieces)).damaged == ()
    monkeypatch.undo()
    repair(run, "snow/none/1")

    def before(root: Path) -> dict[str, walk.FileStat]:
        found = walk.stat_files(root)
        return {name: stat for name, stat in found.items() if not name.endswith("none/1/model.safetensors")}

    monkeypatch.setattr(status, "stat_files", before)
    assert status_of(str(run)).damaged == ()


def test_the_samples_of_a_judgement_are_not_read(run: Path) -> None:
    """They hold every label of D_fail: bytes that are no table pass as long as they match their seal."""
    path = run / "compare" / "fog" / "none" / "0" / "samples.parquet"
    path.write_bytes(b"no table")
    seal(path, {})
    assert inspect(str(run)).damaged == ()
    assert "D_fail was opened" not in describe(inspect(str(run)))


def test_json_has_the_counts_of_a_comparison(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", str(run), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["stages"][-1]
    assert (found["name"], found["done"], found["total"]) == ("compare", 1, 2)
    assert [(m["name"], m["done"], m["total"], m["judged"]) for m in found["members"]] == [
        ("fog", 4, 4, 4),
        ("snow", 1, 4, 0),
    ]


def test_a_judgement_with_other_settings_of_evaluate_does_not_count(run: Path) -> None:
    config = {"evaluate": {"others": []}, "mining": {"severities": [1], "experiences": ["frost"]}}
    folder = run / "compare" / "fog" / "none" / "0"
    manifest = read_manifest(folder)
    assert manifest is not None
    judged = {"repaired": manifest.digest, "evaluate": {"others": []}, "severities": [1]}
    for file in JUDGED:
        seal(folder / file, judged | {"file": file})
    write_plan(
        run / "compare", targets=("fog", "snow"), methods=("none", "tent"), seeds=(0, 1), config=config
    )
    assert counts(status_of(str(run)), "fog") == ("begun", 4, 4, 1)


def test_the_plan_gives_a_judgement_the_same_identity_as_the_judge(tmp_path: Path) -> None:
    config = load_config(Path(__file__).parents[3] / "tune_configs" / "sample.yaml", [])
    run = Run(tmp_path)
    repair(tmp_path, "fog/none/0")
    write_plan(
        run.compare, targets=("fog",), methods=("none",), seeds=(0,), config=config.model_dump(mode="json")
    )
    plan, manifest = read_plan(run.compare), read_manifest(run.compared("fog", "none", 0))
    assert plan is not None
    assert manifest is not None
    here = load_surroundings(config)
    identity = judging_identity(run, config, ComparedRepair(target="fog", method="none", seed=0), here)
    assert plan.judging(manifest.digest) == identity
    assert plan.experiences == config.mining.experiences


def test_an_environment_that_a_later_comparison_does_not_use_is_not_counted(run: Path) -> None:
    begin(run / "experiences" / "rain" / "parts", config={}, inputs={})
    for path in (*run.rglob("*"), run):
        os.utime(path, (1e9, 1e9))
    config = {"mining": {"experiences": ["frost"]}}
    write_plan(
        run / "compare", targets=("fog", "snow"), methods=("none", "tent"), seeds=(0, 1), config=config
    )
    found = status_of(str(run))
    assert found.unused == ("experiences/rain",)
    assert "experiences/rain" not in {m.path for s in found.stages for m in s.members}
