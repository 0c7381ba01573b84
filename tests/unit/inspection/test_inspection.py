"""Test that an inspection reports what was written, names damage and does not read D_fail."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file

import metarepair.inspection.inspect
from metarepair.cli import main
from metarepair.inspection import checksums
from metarepair.inspection.command import show_inspection as show
from metarepair.inspection.facts import Inspection, StageFacts
from metarepair.inspection.inspect import inspect
from metarepair.inspection.inspect_text import describe
from metarepair.runs.checkpoint import write_state
from small import failures_of
from tasks.datasets import CIFAR10_CLASSES
from tasks.experiences.failure_file import write_failures
from tasks.experiences.mining import MinedShard
from tasks.experiences.store import finish_environment, write_part
from tasks.records import Failures
from tasks.storage.manifest import CHECKSUM, begin, content_hash, read_manifest, write_manifest
from tasks.storage.paths import Place, write_text
from tasks.storage.sealed_parts import seal as seal_part

CONFIG = {"seed": 3, "data": {"name": "cifar10_sample"}, "model": {"name": "resnet8_cifar", "weights": "w"}}
EXAMINED, CORRECT = {1: 40, 5: 40}, {1: 30, 5: 11}


def failures(count: int = 39, seed: int = 0, corruption: str = "fog") -> Failures:
    generator = np.random.default_rng(seed)
    return failures_of(
        corruption=corruption,
        severities_N=np.repeat([1, 5], [10, count - 10]),
        labels_N=generator.integers(0, 9, count),  # class 9, truck, is absent
        predicted_N=generator.integers(0, 10, count),
        images_NHWC=generator.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8),
    )


def mined(seed: int = 0, corruption: str = "fog") -> MinedShard:
    return MinedShard(
        failures=failures(seed=seed, corruption=corruption),
        examined=EXAMINED,
        correct=CORRECT,
        seconds={"classify": 1.0},
    )


def sides(found: Failures) -> np.ndarray:
    return (np.arange(len(found)) % 3).astype(np.int8)


def write_environment(run: Place, role: str, corruption: str) -> Place:
    """Write a finished environment, with a third of the failures each in D_collect, D_fail and unused."""
    folder = run / f"{role}s" / corruption
    write_part(folder / "parts" / "part-00000.arrow", mined(corruption=corruption))
    finish_environment(
        folder,
        [folder / "parts" / "part-00000.arrow"],
        sides,
        stage=f"mine {role} {corruption}",
        config=CONFIG,
        inputs={"train": "abc"},
        num_classes=10,
    )
    return folder


@pytest.fixture
def run(root: Place) -> Place:
    """A run with an experience and a target."""
    write_environment(root / "sample", "experience", "fog")
    write_environment(root / "sample", "target", "snow")
    return root / "sample"


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """The same run, in a local folder."""
    write_environment(tmp_path / "sample", "experience", "fog")
    write_environment(tmp_path / "sample", "target", "snow")
    return tmp_path / "sample"


def stage(found: Inspection, path: str) -> StageFacts:
    return next(s for s in found.stages if s.path == path)


def states(found: Inspection, path: str) -> dict[str, str]:
    return {file.name: file.state for file in stage(found, path).files}


def inspect_cli(*arguments: str | Path) -> int:
    return main(["inspect", *map(str, arguments)])


def test_counts_are_those_that_were_mined(run: Place) -> None:
    found = inspect(str(run))
    assert (found.kind, found.finished, found.damaged) == ("run", True, ())
    assert [s.path for s in found.stages] == ["experiences/fog", "targets/snow"]
    fog = stage(found, "experiences/fog")
    assert (fog.kind, fog.role, fog.name, fog.manifest) == ("environment", "experience", "fog", "ok")
    assert fog.rows == {"collect": 13, "fail": 13, "unused": 13}
    collected = failures().take(np.arange(0, 39, 3))
    facts: Any = fog.details
    assert facts.pixels == "stored"
    assert {s: (f.examined, f.correct, f.failures) for s, f in facts.severities.items()} == {
        "1": (40, 30, 10),
        "5": (40, 11, 29),
    }
    assert facts.severities["5"].accuracy == pytest.approx(11 / 40)
    assert [facts.severities[s].collected for s in ("1", "5")] == [
        int((collected.severities_N == s).sum()) for s in (1, 5)
    ]
    counts = np.bincount(collected.labels_N, minlength=10).tolist()
    assert facts.collected_per_class == dict(zip(CIFAR10_CLASSES, counts, strict=True))
    manifest = read_manifest(run / "experiences" / "fog")
    assert manifest is not None
    assert (fog.result, fog.versions) == (manifest.digest, manifest.versions)
    assert states(found, "targets/snow") == {"collect.arrow": "ok", "fail.arrow": "ok"}
    sizes = [size for s in found.stages for size in (f.size_bytes for f in s.files)]
    assert found.size_bytes > sum(size or 0 for size in sizes)


def test_classes_of_a_data_set_that_is_not_known_have_numbers(here: Path) -> None:
    folder = here / "experiences" / "fog"
    text = (folder / "manifest.json").read_text(encoding="utf-8").replace("cifar10_sample", "my_images")
    content = json.loads(text)
    del content[CHECKSUM]
    write_text(folder / "manifest.json", json.dumps(content | {CHECKSUM: content_hash(content)}))
    facts: Any = inspect(str(folder)).stages[0].details
    assert list(facts.collected_per_class) == [str(i) for i in range(10)]
    assert not facts.classes_named


def damage(path: Place, how: str) -> None:
    content = path.read_bytes()
    if how == "missing":
        path.unlink()
    elif how == "truncated":
        path.write_bytes(content[: len(content) // 2])
    else:
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])


@pytest.mark.parametrize("how", ["missing", "truncated", "one bit"])
@pytest.mark.parametrize("name", ["collect.arrow", "fail.arrow"])
def test_damage_is_named_and_everything_else_is_still_reported(run: Place, name: str, how: str) -> None:
    damage(run / "experiences" / "fog" / name, how)
    found = inspect(str(run))
    expected = {"missing": "missing"}.get(how, "differs")
    assert [(d.path, d.state) for d in found.damaged] == [(f"experiences/fog/{name}", expected)]
    assert "metarepair mine" in found.damaged[0].remedy
    assert sorted(states(found, "experiences/fog").values()) == sorted([expected, "ok"])
    assert set(states(found, "targets/snow").values()) == {"ok"}
    facts: Any = stage(found, "experiences/fog").details
    collected = failures().take(np.arange(0, 39, 3))
    # Counts by class come from the manifest; counts by severity need an undamaged file.
    assert list(facts.collected_per_class.values()) == np.bincount(collected.labels_N, minlength=10).tolist()
    assert (facts.severities["5"].collected is None) == (name == "collect.arrow")
    assert f"experiences/fog/{name}" in describe(found)


def test_d_fail_and_samples_are_checked_but_not_read(here: Path) -> None:
    """Bytes that cannot be parsed as failures pass as long as they match the manifest."""
    folder, repaired = here / "targets" / "snow", here / "repaired" / "snow"
    manifest = read_manifest(folder)
    assert manifest is not None
    (folder / "fail.arrow").write_bytes(b"no failures at all")
    write_manifest(
        folder,
        stage=manifest.stage,
        config=CONFIG,
        inputs={},
        files=["collect.arrow", "fail.arrow"],
        rows=manifest.rows,
        facts=manifest.facts,
    )
    repaired.mkdir(parents=True)
    (repaired / "samples.parquet").write_bytes(b"no table either")
    write_manifest(repaired, stage="repair snow", config={}, inputs={}, files=["samples.parquet"])
    found = inspect(str(here))
    assert found.damaged == ()
    assert stage(found, "targets/snow").rows["fail"] == 13
    show(str(here), sheet=here.parent / "sheet.png", as_json=False)


def test_an_unfinished_environment_lists_its_parts_and_names_a_damaged_one(run: Place) -> None:
    folder = run / "targets" / "rain"
    begin(folder / "parts", config=CONFIG, inputs={})
    for i in range(3):
        write_part(folder / "parts" / f"part-0000{i}.arrow", mined(i, "rain"))
        seal_part(folder / "parts" / f"part-0000{i}.arrow", {"shard": i})
    rain = stage(inspect(str(run)), "targets/rain")
    facts: Any = rain.details
    assert (rain.finished, rain.manifest, rain.config["seed"], facts.parts) == (False, "missing", 3, 3)
    assert (facts.severities["5"].examined, facts.severities["5"].correct) == (120, 33)
    assert facts.severities["5"].collected is None
    damage(folder / "parts" / "part-00001.arrow", "one bit")
    found = inspect(str(run))
    facts = stage(found, "targets/rain").details
    assert (facts.parts, facts.severities["5"].examined) == (2, 80)
    assert [(d.path, d.state) for d in found.damaged] == [("targets/rain/parts/part-00001.arrow", "differs")]
    assert "unfinished, 2 shards" in describe(found)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'{"stage": "mine',
        bytes(range(256)),
        b"[]",
        b'{"stage": "mine experience fog"}',
        b'{"stage": 1, "config": [], "inputs": {}, "rows": 3, "facts": null, "files": {}, "versions": {}}',
        b"[" * 100_000,
    ],
)
def test_a_manifest_that_cannot_be_used_is_damage(here: Path, content: bytes) -> None:
    (here / "experiences" / "fog" / "manifest.json").write_bytes(content)
    found = inspect(str(here))
    assert [(d.path, d.state) for d in found.damaged] == [("experiences/fog/manifest.json", "damaged")]
    assert states(found, "experiences/fog") == {"collect.arrow": "unchecked", "fail.arrow": "unchecked"}
    assert stage(found, "targets/snow").finished
    assert "manifest damaged" in describe(found)


@pytest.mark.parametrize("facts", [{}, {"examined": 3, "correct": {"1": "x"}, "collected_per_class": "none"}])
def test_a_manifest_without_the_facts_leaves_them_unknown(here: Path, facts: dict[str, Any]) -> None:
    folder = here / "experiences" / "fog"
    write_manifest(
        folder, stage="mine experience fog", config={}, inputs={}, files=["fail.arrow"], facts=facts
    )
    found = inspect(str(folder))
    shown: Any = found.stages[0].details
    assert found.damaged == ()
    assert shown.severities == shown.collected_per_class == {}
    assert "? in D_collect" in describe(found)


def test_training_lists_its_checkpoints_and_skips_an_incomplete_one(here: Path) -> None:
    folder = here / "meta" / "snow"
    settings = {"train": {"episodes": 9}}
    begin(folder, config=settings, inputs={})
    for episode in (3, 6):
        checkpoint = folder / "checkpoints" / f"checkpoint-{episode:06d}"
        checkpoint.mkdir(parents=True)
        for name in ("model", "optimizer"):
            save_file({"w": np.zeros(episode, np.float32)}, checkpoint / f"{name}.safetensors")
        write_state(checkpoint, {"episode": episode})
    assert "  2 checkpoints, at episodes 3, 6\n" in describe(inspect(str(folder)))
    damage(folder / "checkpoints" / "checkpoint-000006" / "optimizer.safetensors", "one bit")
    facts: Any = stage(inspect(str(here)), "meta/snow").details
    assert [(c.episode, c.whole) for c in facts.checkpoints] == [(3, True), (None, False)]
    assert (facts.episodes, facts.episodes_wanted) == (3, 9)
    (folder / "model.safetensors").write_bytes(b"x")
    (folder / "metrics.json").write_text(json.dumps([{"validation_accuracy": 0.25}, {"episode": 9}]))
    write_manifest(
        folder,
        stage="train snow",
        config=settings,
        inputs={},
        files=["model.safetensors", "metrics.json"],
        facts={"episodes": 9, "seconds": 61.0, "skipped_episodes": 1},
    )
    found = inspect(str(folder))
    assert (found.kind, found.damaged) == ("meta", ())
    text = describe(found)
    for words in (
        "9 of 9 episodes, 1 skipped, took 1 min 1 s",
        "25.0%",
        "  1 checkpoint, at episode 3\n",
        "is ignored",
    ):
        assert words in text


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("nowhere", "does not exist"),
        ("", "folder of runs (sample)"),
        ("empty", "is empty"),
        ("others", "is neither a run"),
        ("others/a.txt", "is not a file that can be inspected"),
        ("sample/experiences/fog/manifest.json", "is not a file that can be inspected"),
        ("x" * 5000, "cannot be read"),
        ("zero\0byte", "does not exist"),
        ("report", "is a report"),
        ("experiences", "is empty"),
    ],
)
def test_a_path_that_belongs_to_no_run_is_refused_in_one_paragraph(
    here: Path, path: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    root = here.parent
    for folder in ("empty", "others", "report", "experiences"):
        (root / folder).mkdir()
    (root / "others" / "a.txt").write_text("a", encoding="utf-8")
    (root / "report" / "index.html").write_text("a", encoding="utf-8")
    assert inspect_cli(f"{root}/{path}") == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("metarepair: ")
    assert err.count("\n") == 1
    assert says in err


def test_an_address_of_no_known_kind_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert inspect_cli("ftp://host/runs") == 2
    assert "'ftp'" in capsys.readouterr().err


def test_cyclic_links_are_followed_once(here: Path) -> None:
    (here / "targets" / "snow" / "loop").symlink_to(here, target_is_directory=True)
    (here.parent / "elsewhere").mkdir()
    (here / "experiences" / "fog").rename(here.parent / "elsewhere" / "fog")
    (here / "experiences" / "fog").symlink_to(here.parent / "elsewhere" / "fog", target_is_directory=True)
    found = inspect(str(here))
    assert [s.path for s in found.stages] == ["experiences/fog", "targets/snow"]
    assert found.damaged == ()


def test_a_stage_that_was_copied_elsewhere_is_known_by_its_manifest(here: Path) -> None:
    (here / "targets" / "snow").rename(here.parent / "copy")
    found = inspect(str(here.parent / "copy"))
    assert (found.kind, found.stages[0].role, found.stages[0].name) == ("environment", "target", "snow")
    assert found.damaged == ()


def test_json_and_its_description_have_the_same_keys(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert inspect_cli(here, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    top = "schema_version path kind size_bytes damaged stages d_fail_reads file finished"
    assert sorted(found) == sorted(top.split())
    of_stage = (
        "path kind role name finished manifest written size_bytes settings result config inputs rows versions"
    )
    assert sorted(found["stages"][0]) == sorted([*of_stage.split(), "files", "details"])
    assert inspect_cli(here / "targets" / "snow" / "collect.arrow", "--json") == 0
    alone = json.loads(capsys.readouterr().out)
    nested = [
        *found["stages"][0]["details"],
        *found["stages"][0]["details"]["severities"]["5"],
        *alone["file"],
    ]
    for key in [*found, *found["stages"][0], *found["stages"][0]["files"][0], *nested]:
        assert key in str(metarepair.inspection.inspect.__doc__), key


def test_damage_is_exit_code_2_with_everything_on_stdout(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(here / "targets" / "snow" / "fail.arrow", "one bit")
    assert inspect_cli(here, "--json") == 2
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert [d["path"] for d in found["damaged"]] == ["targets/snow/fail.arrow"]
    assert found["stages"][1]["rows"]["fail"] == 13
    assert err.count("\n") == 1
    assert "targets/snow/fail.arrow differs from its checksum. Run `metarepair mine" in err


def test_a_single_file_is_checked_against_the_manifest_that_lists_it(here: Path) -> None:
    folder = here / "targets" / "snow"
    found = inspect(str(folder / "collect.arrow"))
    assert found.file is not None
    assert (found.file.state, found.file.promised_by) == ("ok", str(folder / "manifest.json"))
    assert found.file.header["rows"] == 13
    assert (
        sum(found.file.collected_per_class.values()) == sum(found.file.collected_per_severity.values()) == 13
    )
    closed = inspect(str(folder / "fail.arrow")).file
    assert closed is not None
    assert (closed.state, closed.collected_per_class, closed.collected_per_severity) == ("ok", {}, {})
    alone = here.parent / "collect.arrow"
    (folder / "collect.arrow").rename(alone)
    found = inspect(str(alone))
    assert found.damaged == ()
    assert found.file is not None
    assert found.file.state == "unchecked"
    seal_part(alone, {"shard": 0})
    damage(alone, "one bit")
    found = inspect(str(alone))
    assert found.file is not None
    assert found.file.state == "differs"
    assert [d.path for d in found.damaged] == ["collect.arrow"]


@pytest.mark.parametrize("name", ["a.arrow", "a.parquet", "a.safetensors"])
@pytest.mark.parametrize("content", [b"", b"junk", bytes(range(256)) * 8])
def test_a_file_that_is_not_what_its_name_says_is_damage(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    found = inspect(str(tmp_path / name))
    assert len(found.damaged) == 1
    assert name in describe(found)


def test_headers_of_tables_and_tensors_are_reported(tmp_path: Path) -> None:
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(12, np.float32)), 4)
    pq.write_table(pa.table({"features": vectors}), tmp_path / "f.parquet")
    save_file({"a": np.zeros((2, 3), np.float32), "b": np.zeros(4, np.int64)}, tmp_path / "m.safetensors")
    table, tensors = inspect(str(tmp_path / "f.parquet")).file, inspect(str(tmp_path / "m.safetensors")).file
    assert table is not None
    assert tensors is not None
    assert (table.state, table.header["rows"], table.header["dim"]) == ("unchecked", 3, 4)
    assert (tensors.header["tensors"], tensors.header["values"]) == (2, 10)
    assert set(tensors.header["types"]) == {"F32", "I64"}


def test_names_of_many_classes_are_summed_up(tmp_path: Path) -> None:
    folder = tmp_path / "experiences" / "fog"
    many = replace(failures(), labels_N=np.arange(39) * 5)
    write_failures(folder / "collect.arrow", many)
    write_manifest(
        folder,
        stage="mine experience fog",
        config={},
        inputs={},
        files=["collect.arrow"],
        rows={"collect": 39},
        facts={"collected_per_class": [0] * 200},
    )
    text = describe(inspect(str(folder)))
    assert "200 classes" in text
    assert "161 classes have none" in text


def test_long_checks_show_progress(
    here: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    inspect(str(here))
    assert caplog.messages == []
    monkeypatch.setattr(checksums, "SHOWN_FROM_BYTES", 1)
    (here / "targets" / "snow" / "big.bin").write_bytes(b"0" * (3 << 20))
    write_manifest(
        here / "targets" / "snow", stage="mine target snow", config={}, inputs={}, files=["big.bin"]
    )
    inspect(str(here))
    assert caplog.messages[-1].startswith("checksums: 3 of 3 MiB")


def test_nothing_is_written_and_torch_is_not_needed(here: Path) -> None:
    def content() -> dict[str, bytes]:
        return {str(p): p.read_bytes() for p in sorted(here.rglob("*")) if p.is_file()}

    before = content()
    code = (
        "import sys\nfrom metarepair.cli import main\n"
        f"code = main(['inspect', {str(here)!r}])\nsys.exit(code or ('torch' in sys.modules) * 7)"
    )
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert done.returncode == 0, done.stdout
    assert "experiences/fog" in done.stdout
    assert content() == before


def test_a_log_of_openings_is_counted(here: Path) -> None:
    write_text(here / "d_fail_reads.jsonl", '{"a": 1}\n{"a": 2}\n')
    found = inspect(str(here))
    assert found.d_fail_reads == 2
    assert "opened 2 times" in describe(found)
