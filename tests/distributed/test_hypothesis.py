"""The study's fine-tunes on actors equal those made in this process."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from distributed.stages.executor import executor_for
from metarepair.config.run import Config
from metarepair.stages.hypothesis import HypothesisStudy

pytestmark = [pytest.mark.distributed, pytest.mark.soak]
NAMES = ["shot_noise", "speckle_noise", "fog", "contrast"]


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Use one torch thread, as an actor does, so that sums are added in the same order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_two_actors_measure_the_same_gains_as_this_process(
    cluster: None, one_thread: None, tiny: Callable[..., Config], tmp_path: Path
) -> None:
    mining = {"experiences": NAMES, "severities": [5]}
    alone, actors = (
        tiny(tmp_path, targets=NAMES, mining=mining, workers=workers, repair={"seeds": [0, 1]})
        for workers in (0, 2)
    )
    study = HypothesisStudy(alone, executor_for)
    study.study()
    root = tmp_path / alone.name
    expected = {p.name: json.loads(p.read_text()) for p in (root / "hypothesis/gains").glob("*-*.json")}
    assert len(expected) == 8
    before = (root / "hypothesis" / "summary.json").read_bytes()
    shutil.rmtree(root / "hypothesis")
    HypothesisStudy(actors, executor_for).study()
    found = {p.name: json.loads(p.read_text()) for p in (root / "hypothesis/gains").glob("*-*.json")}
    assert found == expected
    assert (root / "hypothesis" / "summary.json").read_bytes() == before
