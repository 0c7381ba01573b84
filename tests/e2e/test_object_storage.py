"""A run on an object store, even after an interruption, gives the weights, scores and results of a local run."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from equal_runs import comparable
from metarepair.cli import main
from tasks.storage.paths import Place, find, place


def run(folder: Path, storage: Place | str, *arguments: str) -> int:
    return main(
        [arguments[0], "--config", str(folder / "tiny.yaml"), "--storage", str(storage), *arguments[1:]]
    )


@pytest.mark.slow
def test_a_run_on_an_object_store_equals_the_local_run(tiny_run: Path, s3: str) -> None:
    assert run(tiny_run, s3, "run") == 0
    there, here = comparable(place(s3) / "tiny"), comparable(tiny_run / "runs" / "tiny")
    assert len(here) > 10
    assert there.keys() == here.keys()
    assert [name for name in here if there[name] != here[name]] == []
    page = (place(s3) / "tiny" / "report" / "index.html").read_text(encoding="utf-8")
    assert "is missing" not in page
    assert not list(tiny_run.glob("s3:*"))


def test_a_finished_stage_on_an_object_store_is_left_unchanged(
    tiny_run: Path, s3: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tiny_run, s3, "mine") == 0
    before = {str(p): p.read_bytes() for p in find(place(s3), "*.*", deep=True) if p.is_file()}
    assert run(tiny_run, s3, "mine") == 0
    assert {str(p): p.read_bytes() for p in find(place(s3), "*.*", deep=True) if p.is_file()} == before
    assert run(tiny_run, s3, "mine", "--set", "seed=5") == 2
    assert "seed: 0 -> 5" in capsys.readouterr().err
    assert run(tiny_run, s3, "mine", "--set", "seed=5", "--restart") == 0


@pytest.mark.parametrize(
    ("stage", "function"),
    [
        ("mine", "metarepair.stages.mining.write_part"),
        ("score", "metarepair.stages.features.write_features"),
        pytest.param("train", "metarepair.runs.checkpoint.publish", marks=pytest.mark.slow),
    ],
)
def test_an_interrupted_stage_resumes_from_the_object_store(
    tiny_run: Path, s3: str, stage: str, function: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for before in ("mine", "score")[: ("mine", "score", "train").index(stage)]:
        assert run(tiny_run, s3, before) == 0
    calls = 0
    module, name = function.rsplit(".", 1)
    work = getattr(__import__(module, fromlist=[name]), name)

    def stopping(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return work(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(function, stopping)
        assert run(tiny_run, s3, stage) == 1
    shutil.rmtree(tmp_path / "cache")  # as if another node resumed
    assert run(tiny_run, s3, stage) == 0
    there, here = comparable(place(s3) / "tiny"), comparable(tiny_run / "runs" / "tiny")
    assert [name for name in there if there[name] != here[name]] == []


@pytest.mark.slow
def test_a_store_without_pixels_gives_the_same_repair(tiny_run: Path, s3: str) -> None:
    assert run(tiny_run, s3, "run", "--set", "mining.pixels=recomputed") == 0
    there, here = comparable(place(s3) / "tiny"), comparable(tiny_run / "runs" / "tiny")
    exact = [n for n in here if not n.startswith(("experiences/", "targets/")) and not n.endswith(".json")]
    assert "report/results.parquet" in exact
    assert [name for name in exact if there[name] != here[name]] == []
    page = (place(s3) / "tiny" / "report" / "index.html").read_text(encoding="utf-8")
    assert "gaussian_noise_examples.png" in page


def test_a_missing_bucket_is_reported_in_one_paragraph(
    tiny_run: Path, s3: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tiny_run, "s3://no-such-bucket/runs", "mine") == 2
    error = capsys.readouterr().err
    assert "s3://no-such-bucket/runs" in error
    assert "AWS_ENDPOINT_URL" in error
    assert "Traceback" not in error
