"""Test that `status` reports finished, killed, empty and damaged runs, local or on an object store."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import metarepair.inspection.status
from metarepair.cli import main
from metarepair.inspection.facts import Member, RunStatus, StageStatus
from metarepair.inspection.status import status_of
from metarepair.inspection.status_text import describe_status as describe
from metarepair.runs.checkpoint import STATE, write_state
from tasks.storage.lease import LEASE, new_owner
from tasks.storage.manifest import begin, write_manifest
from tasks.storage.paths import Place, write_table, write_text
from tasks.storage.run_lock import locked
from tasks.storage.sealed_parts import seal as seal_part

MINING = {"seed": 0, "mining.shard_images": 10}
INPUTS = {"train": "abc"}


def finish(folder: Place, stage: str, config: dict[str, Any] | None = None, **manifest: Any) -> None:
    """Write a finished stage with one file."""
    write_text(folder / "result.bin", "content")
    write_manifest(folder, stage=stage, config=config or {}, inputs=INPUTS, files=["result.bin"], **manifest)


def finish_mining(run: Place, role: str, name: str) -> None:
    facts = {"examined": {"1": 95, "5": 95}}
    finish(run / f"{role}s" / name, f"mine {role} {name}", rows={"collect": 13}, facts=facts)


def write_parts(folder: Place, pattern: str, count: int) -> None:
    """Write `count` sealed parts, and one without a seal."""
    for number in range(count + 1):
        path = folder / pattern.format(number)
        write_text(path, "content")
        if number < count:
            seal_part(path, {"number": number})


def begin_mining(run: Place, role: str, name: str, parts: int) -> None:
    folder = run / f"{role}s" / name / "parts"
    begin(folder, config=MINING, inputs=INPUTS)
    write_parts(folder, "part-{:05d}.arrow", parts)


def write_checkpoint(folder: Path, episode: int, **changes: Any) -> Path:
    """Write a checkpoint as meta-training does; every tenth episode is validated."""
    checkpoint = folder / "checkpoints" / f"checkpoint-{episode:06d}"
    checkpoint.mkdir(parents=True)
    for name in ("model.safetensors", "optimizer.safetensors"):
        (checkpoint / name).write_bytes(b"tensors")
    rows: list[dict[str, float]] = [{"episode": e, "query_loss": 1 / e} for e in range(1, episode + 1)]
    for row in rows[9::10]:
        row["validation_accuracy"] = row["episode"] / 100
    state = {"episode": episode, "skipped": 2, "seconds": 4.0 * episode, "history": rows}
    write_state(checkpoint, state | {"config": {"train": {"episodes": 60}}} | changes)
    return checkpoint


def begin_training(run: Place, target: str) -> None:
    begin(run / "meta" / target, config={"train": {"episodes": 60}}, inputs=INPUTS)


def finish_run(run: Place, methods: tuple[str, ...] = ("none", "metarepair")) -> None:
    """Write all stages of a run with an experience and a target."""
    for role, name in (("experience", "fog"), ("target", "snow")):
        finish_mining(run, role, name)
        finish(run / "features" / f"{role}-{name}", f"features {role} {name}")
    finish(run / "score", "score")
    if "metarepair" in methods:
        finish(run / "meta" / "snow", "train snow", {"train": {"episodes": 60}}, facts={"episodes": 60})
    finish(run / "repaired" / "snow", "repair snow", {"repair": {"methods": list(methods)}})
    write_text(run / "report" / "index.html", "page")


def stage(found: RunStatus, name: str) -> StageStatus:
    return next(s for s in found.stages if s.name == name)


def member(found: RunStatus, path: str) -> Member:
    return next(m for s in found.stages for m in s.members if m.path == path)


def done_of(found: RunStatus, path: str) -> tuple[int | None, int | None, str | None]:
    one = member(found, path)
    return one.done, one.total, one.unit


def words(found: RunStatus) -> str:
    return " ".join(describe(found).split())


def status_cli(*arguments: str | Path) -> int:
    return main(["status", *map(str, arguments)])


def test_a_finished_run_is_finished(tmp_path: Path) -> None:
    run = tmp_path / "sample"
    finish_run(run)
    write_text(run / "d_fail_reads.jsonl", "{}\n{}\n")
    found = status_of(str(run))
    assert (found.state, found.holder, found.damaged, found.d_fail_reads) == ("finished", None, (), 2)
    assert [(s.name, s.state, s.done) for s in found.stages] == [
        ("mine", "done", 2),
        ("features", "done", 2),
        ("score", "done", 1),
        ("train", "done", 1),
        ("repair", "done", 1),
        ("report", "done", 1),
    ]
    assert done_of(found, "meta/snow") == (60, 60, "episodes")
    assert "sample: finished D_fail was opened 2 times" in words(found)


def test_a_run_killed_while_it_mined_has_the_parts_that_are_sealed(root: Place) -> None:
    run = root / "sample"
    finish_mining(run, "experience", "fog")
    begin_mining(run, "experience", "rain", parts=0)
    begin_mining(run, "experience", "snow", parts=2)
    begin_mining(run, "target", "frost", parts=3)
    found = status_of(str(run))
    assert (found.state, stage(found, "mine").state, stage(found, "mine").done) == ("unfinished", "begun", 1)
    assert done_of(found, "experiences/snow") == (2, 10, "shards"), "fog has 95 images, of the same split"
    assert done_of(found, "experiences/rain") == (0, 10, "shards")
    assert done_of(found, "targets/frost") == (3, None, "shards"), "no target is finished: nothing tells"
    assert [s.state for s in found.stages[1:]] == ["not begun"] * 5
    assert {m.path for m in stage(found, "features").members} == {
        *(f"features/experience-{name}" for name in ("fog", "rain", "snow")),
        "features/target-frost",
    }
    assert [m.path for m in stage(found, "train").members] == ["meta/frost"]
    assert "snow (experience): 2 of 10 shards, last file " in words(found)
    assert "frost (target): 3 shards, last file" in words(found)
    assert "repair not started: frost report not started" in words(found)


def test_the_marker_of_a_started_stage_may_give_its_number_of_parts(tmp_path: Path) -> None:
    begin_mining(tmp_path, "target", "frost", parts=3)
    mark = tmp_path / "targets" / "frost" / "parts" / "begun.json"
    mark.write_text(json.dumps(json.loads(mark.read_text()) | {"parts": 20}))
    assert done_of(status_of(str(tmp_path)), "targets/frost") == (3, 20, "shards")


def test_the_number_of_feature_shards_follows_from_the_mined_images(tmp_path: Path) -> None:
    run = tmp_path / "sample"
    for role, name in (("experience", "fog"), ("target", "snow")):
        finish_mining(run, role, name)
    finish(run / "features" / "experience-fog", "features experience fog")
    begin(run / "features" / "target-snow", config={"shard_images": 5}, inputs=INPUTS)
    write_parts(run / "features" / "target-snow", "part-{:05d}.parquet", 1)
    found = status_of(str(run))
    assert done_of(found, "features/target-snow") == (1, 3, "shards")
    assert (member(found, "features/target-snow").role, stage(found, "features").done) == ("target", 1)


def training(run: Path) -> Path:
    for role, name in (("experience", "fog"), ("target", "snow"), ("target", "frost")):
        finish_mining(run, role, name)
        finish(run / "features" / f"{role}-{name}", f"features {role} {name}")
    finish(run / "score", "score")
    begin_training(run, "snow")
    return run / "meta" / "snow"


def test_the_progress_of_training_is_that_of_its_newest_checkpoint(tmp_path: Path) -> None:
    folder = training(tmp_path)
    assert done_of(status_of(str(tmp_path)), "meta/snow") == (0, 60, "episodes")
    write_checkpoint(folder, 20)
    newest = write_checkpoint(folder, 35)
    (folder / "checkpoints" / "checkpoint-000040.0a1b.tmp").mkdir()
    two_minutes_ago = datetime.now(UTC).timestamp() - 120
    os.utime(newest / STATE, (two_minutes_ago, two_minutes_ago))
    found = status_of(str(tmp_path))
    assert done_of(found, "meta/snow") == (35, 60, "episodes")
    one = member(found, "meta/snow")
    assert one.metrics == {"query_loss": 1 / 35, "validation_accuracy": 0.3, "skipped_episodes": 2.0}
    assert one.seconds_left == pytest.approx(25 * 4.0)
    assert one.passed_over == ()
    text = words(found)
    assert "train started: 0 of 2 done snow: 35 of 60 episodes, last checkpoint 2 min " in text
    assert (
        "ago, query loss 0.029, validation accuracy 30.0%, 2 episodes skipped, about 1 min 40 s of work left "
        "not started: frost repair not started"
    ) in text


@pytest.mark.parametrize("how", ["half a state", "tensors gone", "another shape"])
def test_an_incomplete_checkpoint_is_skipped_and_named(tmp_path: Path, how: str) -> None:
    folder = training(tmp_path)
    write_checkpoint(folder, 20)
    newest = write_checkpoint(folder, 35)
    if how == "half a state":
        (newest / STATE).write_bytes((newest / STATE).read_bytes()[:50])
    elif how == "tensors gone":
        (newest / "optimizer.safetensors").unlink()
    else:
        (newest / STATE).write_text("[]")
    found = status_of(str(tmp_path))
    assert done_of(found, "meta/snow") == (20, 60, "episodes")
    assert member(found, "meta/snow").passed_over == ("checkpoints/checkpoint-000035",)
    assert "checkpoints/checkpoint-000035 is incomplete" in describe(found)


def test_repairs_that_are_written_are_counted(tmp_path: Path) -> None:
    finish_run(tmp_path)
    (tmp_path / "repaired" / "snow" / "manifest.json").unlink()
    for name in ("none/0", "metarepair/0", "metarepair/1"):
        write_text(tmp_path / "repaired" / "snow" / name / "model.safetensors", "weights")
    found = status_of(str(tmp_path))
    assert done_of(found, "repaired/snow") == (3, None, "repairs")
    assert found.state == "unfinished"


def test_a_run_lists_only_the_stages_that_it_needs(tmp_path: Path) -> None:
    finish_run(tmp_path / "others", methods=("none", "finetune"))
    found = status_of(str(tmp_path / "others"))
    assert found.state == "finished"
    assert "train" not in [s.name for s in found.stages]
    finish(tmp_path / "study" / "hypothesis", "hypothesis")
    finish_mining(tmp_path / "study", "experience", "fog")
    assert [s.name for s in status_of(str(tmp_path / "study")).stages] == [
        "mine",
        "features",
        "score",
        "hypothesis",
    ]
    finish(tmp_path / "dnn" / "deployed", "pretrain", facts={"clean_test_accuracy": 0.9})
    found = status_of(str(tmp_path / "dnn"))
    assert (found.state, [s.name for s in found.stages]) == ("finished", ["pretrain"])


def test_the_progress_of_pretraining_and_a_study_counts_their_parts(tmp_path: Path) -> None:
    begin(tmp_path / "deployed", config={"pretrain": {"epochs": 8}}, inputs=INPUTS)
    epochs = [{"epoch": e, "loss": 1 / e, "validation_accuracy": 0.5, "seconds": 10.0} for e in (1, 2)]
    write_text(tmp_path / "deployed" / "epochs.json", json.dumps(epochs))
    for name in ("fog", "snow"):
        finish_mining(tmp_path, "target", name)
    begin(tmp_path / "hypothesis" / "gains", config={"repair": {"seeds": [0, 1, 2]}}, inputs=INPUTS)
    write_parts(tmp_path / "hypothesis" / "gains", "fog-{}.json", 2)
    found = status_of(str(tmp_path))
    assert done_of(found, "deployed") == (2, 8, "epochs")
    assert member(found, "deployed").metrics == {"loss": 0.5, "validation_accuracy": 0.5}
    assert member(found, "deployed").seconds_left == pytest.approx(60.0)
    assert done_of(found, "hypothesis") == (2, 6, "fine-tunes")


def test_a_run_that_has_only_begun_has_nothing_done(root: Place) -> None:
    if isinstance(root, Path):
        (root / "sample").mkdir()
    with locked(root / "sample", "run"):
        found = status_of(str(root / "sample"))
    assert (found.state, found.holder is not None and found.holder.verb) == ("under way", "run")
    assert {s.state for s in found.stages} == {"not begun"}


def test_the_time_left_follows_the_pace_of_the_current_holder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finish_mining(tmp_path, "experience", "fog")
    begin_mining(tmp_path, "experience", "snow", parts=6)
    assert stage(status_of(str(tmp_path)), "mine").seconds_left is None, "nobody works there"
    with locked(tmp_path, "mine"):
        now = datetime.now(UTC).timestamp()
        for number, seconds in enumerate((-9000, -8000, 10, 13, 16, 19)):
            path = tmp_path / "experiences" / "snow" / "parts" / f"part-{number:05d}.arrow"
            os.utime(path, (now + seconds, now + seconds))
        found = status_of(str(tmp_path))
        assert (found.state, stage(found, "mine").seconds_left) == ("under way", pytest.approx(4 * 3.0))
        assert status_cli(tmp_path) == 0
    text = capsys.readouterr().out
    assert f"Held by `metarepair mine`, process {os.getpid()} on host " in text
    assert "mine       under way: 1 of 2 done, about 12 s left" in text
    assert status_of(str(tmp_path)).holder is None


def test_a_holder_that_died_without_releasing_the_run_is_reported(tmp_path: Path) -> None:
    begin_mining(tmp_path, "experience", "snow", parts=6)
    beat = (datetime.now(UTC) - timedelta(hours=2)).isoformat()
    owner = replace(new_owner("mine"), host="node-7", machine="elsewhere", beat=beat)
    write_text(tmp_path / LEASE, json.dumps(asdict(owner)))
    found = status_of(str(tmp_path))
    assert found.holder is not None
    assert (found.state, found.holder.alive, found.holder.host) == ("unfinished", False, "node-7")
    assert found.holder.last_sign_s == pytest.approx(7200, abs=60)
    assert "on host node-7" in words(found)
    assert "ended without releasing the run; last sign of life 2 h 0 min ago" in words(found)


@pytest.mark.parametrize(
    ("damage", "path", "state"),
    [
        (lambda run: (run / "score/result.bin").unlink(), "score/result.bin", "missing"),
        (lambda run: (run / "score/result.bin").write_text("cut"), "score/result.bin", "differs"),
        (lambda run: (run / "score/manifest.json").write_text("{"), "score/manifest.json", "damaged"),
        (lambda run: (run / "meta/frost/begun.json").write_text("{"), "meta/frost/begun.json", "damaged"),
    ],
)
def test_damage_that_changes_a_size_is_named_and_everything_else_is_reported(
    tmp_path: Path, damage: Any, path: str, state: str, capsys: pytest.CaptureFixture[str]
) -> None:
    finish_run(tmp_path)
    begin_training(tmp_path, "frost")
    assert status_cli(tmp_path) == 0
    damage(tmp_path)
    capsys.readouterr()
    assert status_cli(tmp_path) == 2
    output = capsys.readouterr()
    assert path in output.out
    assert "train " in output.out
    assert f"metarepair: 1 damaged file: {path} " in output.err
    assert output.err.count("\n") == 1
    assert [(d.path, d.state) for d in status_of(str(tmp_path)).damaged] == [(path, state)]


def test_no_bytes_of_a_result_are_read(tmp_path: Path) -> None:
    """That keeps `status` cheap; `inspect` reads the bytes."""
    finish_run(tmp_path)
    write_checkpoint(training(tmp_path / "second"), 20)
    for path in (*tmp_path.rglob("result.bin"), *tmp_path.rglob("*.safetensors")):
        path.write_bytes(bytes(len(path.read_bytes())))
        path.chmod(0)
    assert status_of(str(tmp_path)).damaged == ()
    assert done_of(status_of(str(tmp_path / "second")), "meta/snow") == (20, 60, "episodes")


def search_record(run: Place, name: str, **values: Any) -> None:
    record = {"drawn": {}, "rounds": 0, "of": 0, "objective": None, "over": False, "error": None}
    write_text(run / "search" / "trials" / name / "record.json", json.dumps(record | values))


def test_a_search_counts_its_trials_and_names_the_best(root: Place) -> None:
    run = root / "sample"
    finish_mining(run, "experience", "fog")
    finish(run / "features" / "experience-fog", "features experience fog")
    config = {"search": {"trials": 9, "searcher": "random"}}
    begin(run / "search", config=config, inputs=INPUTS)
    search_record(run, "trial-00", rounds=6, of=6, objective=0.5, over=True)
    search_record(run, "trial-01", rounds=6, of=6, objective=0.75, over=True)
    search_record(run, "trial-02", rounds=1, of=6, over=True, error="diverged")
    search_record(run, "trial-03", rounds=4, of=6, objective=0.9)
    write_text(run / "search" / "trials" / "trial-04" / "record.json", "{")
    found = status_of(str(run))
    assert [s.name for s in found.stages] == ["mine", "features"]
    assert found.search is not None
    assert (found.state, found.search.state, found.search.total) == ("unfinished", "begun", 9)
    assert found.search.trials == {"finished": 2, "failed": 1, "unfinished": 2}
    assert found.search.best is not None
    assert (found.search.best.name, found.search.best.objective) == ("trial-01", 0.75)
    assert [(t.name, t.rounds, t.of) for t in found.search.running] == [
        ("trial-03", 4, 6),
        ("trial-04", None, None),
    ]
    text = words(found)
    assert "search started: 2 finished, 1 failed, 2 unfinished of 9 trials best so far: trial-01" in text
    assert "trial-03: 4 of 6 rounds, objective 0.9000, last " in text
    assert "trial-04: no rounds yet" in text


def test_a_finished_search_is_reported_from_its_table(tmp_path: Path) -> None:
    finish_mining(tmp_path, "experience", "fog")
    finish(tmp_path / "features" / "experience-fog", "features experience fog")
    rows = {
        "name": ["trial-00", "trial-01", "trial-02"],
        "state": ["finished", "stopped early", "failed"],
        "objective": [0.25, 0.75, None],
    }
    for name in rows["name"]:
        search_record(tmp_path, str(name), rounds=2, of=6, objective=0.1)
    write_table(tmp_path / "search" / "trials.parquet", pa.table(rows))
    files, counts = ["trials.parquet"], {"trials": 3, "failed": 1}
    write_manifest(tmp_path / "search", stage="search", config={}, inputs={}, files=files, rows=counts)
    found = status_of(str(tmp_path))
    assert found.search is not None
    assert (found.state, found.search.state, found.search.total) == ("finished", "done", 3)
    assert found.search.trials == {"finished": 1, "stopped early": 1, "failed": 1}
    assert found.search.best is not None
    assert found.search.best.name == "trial-00", "one that was stopped early counts where none is finished"
    (tmp_path / "search" / "trials.parquet").write_bytes(b"cut")
    assert [(d.path, d.state) for d in status_of(str(tmp_path)).damaged] == [
        ("search/trials.parquet", "differs")
    ]


def test_a_grid_has_no_total_in_its_settings(tmp_path: Path) -> None:
    finish_mining(tmp_path, "experience", "fog")
    begin(tmp_path / "search", config={"search": {"trials": 1, "searcher": "grid"}}, inputs=INPUTS)
    found = status_of(str(tmp_path)).search
    assert found is not None
    assert (found.total, found.trials) == (None, {})


def test_many_environments_and_trials_fit_on_a_screen(tmp_path: Path) -> None:
    for number in range(40):
        begin_mining(tmp_path, "experience", f"fog-{number:02d}", parts=0)
    for number in range(20):
        search_record(tmp_path, f"trial-{number:02d}")
    text = describe(status_of(str(tmp_path)))
    assert text.count("\n") < 40
    assert "and 32 more" in text
    assert "and 12 more" in text
    assert "and 34 more" in text, "features that are not begun"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("runs/simple", "does not exist; did you mean 'sample'?"),
        ("runs/xyz", "its parent folder has: notes, sample, second"),
        ("nowhere/run", "does not exist. Name a run's folder"),
        (
            "runs",
            r"is a folder of runs \(sample, second\). Name one of them: metarepair status \S+/runs/sample$",
        ),
        ("runs/sample/score", r"is a part of a run. Name the run: metarepair status \S+/runs/sample$"),
        ("runs/sample/meta/snow", r"is one stage of a run. Name the run: metarepair status \S+/sample$"),
        ("runs/notes", "is empty: no run was started there. Name a run's folder"),
        ("runs/sample/score/result.bin", "is a file. Name a run's folder"),
        ("other", "is not a run. Name a run's folder"),
        ("x" * 5000, "cannot be read|does not exist"),
        ("ftp://host/run", "has the scheme 'ftp'. Give a local path"),
    ],
)
def test_a_path_that_is_no_run_is_refused_with_the_nearest_runs(
    tmp_path: Path, path: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    finish_run(tmp_path / "runs" / "sample")
    finish_mining(tmp_path / "runs" / "second", "experience", "fog")
    (tmp_path / "runs" / "notes").mkdir()
    (tmp_path / "other" / "else").mkdir(parents=True)
    assert status_cli(path if "://" in path else tmp_path / path) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.count("\n") == 1
    assert re.search(expected, output.err.strip())


def test_json_and_its_description_have_the_same_keys(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finish_run(tmp_path)
    search_record(tmp_path, "trial-00", rounds=1, over=True, objective=0.5)
    search_record(tmp_path, "trial-01", rounds=1)
    with locked(tmp_path, "run"):
        assert status_cli(tmp_path, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    described = str(metarepair.inspection.status.__doc__).partition("Its keys are stable:")[2]
    assert list(found) == re.findall(r"^    (\w+)  ", described, flags=re.MULTILINE)
    nested = [found["holder"], found["stages"][0], found["stages"][0]["members"][0], found["search"]]
    nested += [found["search"]["best"], found["search"]["running"][0]]
    for keys in nested:
        assert [key for key in keys if not re.search(rf"\b{key}\b", described)] == []


def test_nothing_is_written_and_neither_torch_nor_ray_is_needed(tmp_path: Path) -> None:
    write_checkpoint(training(tmp_path), 20)

    def content() -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    before = content()
    code = (
        "import sys; from metarepair.cli import main; code = main(sys.argv[1:]); "
        "print(sorted({'torch', 'ray', 'timm'} & set(sys.modules))); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "status", str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert (done.returncode, done.stdout.splitlines()[-1:]) == (0, ["[]"])
    assert content() == before


def scored(run: Path, mined: list[str], targets: list[str]) -> None:
    """Write a score that names its environments, and a report; both are newer than all other files."""
    for path in (*run.rglob("*"), run):
        os.utime(path, (1e9, 1e9))
    finish(run / "score", "score", {"mined": mined, "targets": targets})
    write_text(run / "report" / "index.html", "page")


def test_an_abandoned_experience_does_not_keep_a_run_unfinished(tmp_path: Path) -> None:
    run = tmp_path / "sample"
    finish_run(run)
    begin_mining(run, "experience", "rain", parts=2)
    finish_mining(run, "experience", "frost")
    assert status_of(str(run)).state == "unfinished", "no score says what the run uses"
    scored(run, ["fog"], ["snow"])
    found = status_of(str(run))
    assert (found.state, found.unused) == ("finished", ("experiences/frost", "experiences/rain"))
    assert [m.path for m in stage(found, "mine").members] == ["experiences/fog", "targets/snow"]
    assert [m.path for m in stage(found, "features").members] == [
        "features/experience-fog",
        "features/target-snow",
    ]
    assert "does not use them: experiences/frost experiences/rain" in words(found)


def test_an_experience_that_is_added_to_a_finished_run_is_counted(tmp_path: Path) -> None:
    run = tmp_path / "sample"
    finish_run(run)
    scored(run, ["fog"], ["snow"])
    os.utime(run / "score" / "manifest.json", (1.1e9, 1.1e9))
    os.utime(run / "report" / "index.html", (1.1e9, 1.1e9))
    begin_mining(run, "experience", "rain", parts=2)
    found = status_of(str(run))
    assert (found.state, found.unused) == ("unfinished", ())
    assert done_of(found, "experiences/rain")[0] == 2


def test_no_environment_is_unused_while_a_process_holds_the_run(tmp_path: Path) -> None:
    run = tmp_path / "sample"
    finish_run(run)
    begin_mining(run, "experience", "rain", parts=2)
    scored(run, ["fog"], ["snow"])
    with locked(run, "mine"):
        assert status_of(str(run)).unused == ()


def test_a_repaired_target_is_counted_even_if_the_score_does_not_name_it(tmp_path: Path) -> None:
    run = tmp_path / "sample"
    finish_run(run)
    for name in ("contrast", "frost"):
        finish_mining(run, "target", name)
        begin_training(run, name)
    finish(run / "meta" / "contrast", "train contrast", {"train": {"episodes": 60}}, facts={"episodes": 60})
    finish(run / "repaired" / "contrast", "repair contrast", {"repair": {"methods": ["metarepair"]}})
    finish(run / "features" / "target-contrast", "features target contrast")
    scored(run, ["fog"], ["snow"])
    found = status_of(str(run))
    assert (found.state, found.unused) == ("finished", ("targets/frost",))
    assert [m.name for m in stage(found, "train").members] == ["contrast", "snow"]
