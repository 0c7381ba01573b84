"""Readings of images that judge are counted by the images, on any storage."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pytest

from metarepair.evaluation.judging import SAMPLE, count_readings, readings_of_seeds, sample_of
from metarepair.runs.layout import Run
from tasks.storage.paths import Place, append_line, write_text

RNG = np.random.default_rng(0)


def judge(run: Run, target: str, images: dict[str, np.ndarray], judged: Sequence[str] = ("none/0",)) -> None:
    run.root.mkdir(parents=True, exist_ok=True)
    samples = {name: sample_of(digests_N) for name, digests_N in images.items()}
    append_line(run.d_fail_log, json.dumps({"target": target, "judged": list(judged), "images": samples}))


def digests(count: int) -> np.ndarray:
    return RNG.integers(0, 2**64, count, dtype=np.uint64)


def test_readings_of_all_runs_are_counted_by_images(root: Place) -> None:
    first, second, third = (Run(root / name) for name in ("first", "second", "third"))
    night = digests(1000)
    judge(first, "night", {"night": night, "fog": digests(50)})
    assert count_readings(first, "night") == 1
    assert count_readings(first, "fog") == count_readings(second, "night") == 0
    judge(second, "dusk", {"dusk": np.concatenate([night[:300], digests(700)])})
    assert count_readings(first, "night") == count_readings(second, "dusk") == 2
    judge(third, "fog", {"fog": digests(1000), "night": night[500:]})
    judge(third, "fog", {"fog": digests(1000)})
    assert count_readings(first, "night") == 3
    assert count_readings(second, "dusk") == 2


def test_targets_that_show_each_others_images_are_one_reading(root: Place) -> None:
    run, night, fog = Run(root / "run"), digests(10), digests(10)
    judge(run, "night", {"night": night, "fog": fog})
    judge(run, "fog", {"fog": fog, "night": night})
    assert count_readings(run, "night") == count_readings(run, "fog") == 1
    judge(run, "fog", {"fog": fog, "night": night})
    assert count_readings(run, "night") == count_readings(run, "fog") == 2


def test_the_seeds_of_a_comparison_are_runs_of_the_same_storage_folder(root: Place) -> None:
    outer, other, night = Run(root / "run"), Run(root / "other"), digests(10)
    seeds = [outer.of_seed(seed) for seed in (0, 1)]
    write_text(outer.compare / "table.md", "")
    for run in seeds:
        judge(run, "night", {"night": night})
    assert [count_readings(run, "night") for run in seeds] == [2, 2]
    assert "some of them, once." in readings_of_seeds(seeds, "night")[1]
    judge(other, "night", {"night": night})
    assert [count_readings(run, "night") for run in (other, *seeds)] == [3, 3, 3]
    assert "some of them, up to 2 times. If a repair" in readings_of_seeds(seeds, "night")[1]
    assert len(readings_of_seeds(seeds, "fog")) == 1


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_sets_that_share_some_images_share_some_of_their_samples(share: float) -> None:
    ours = digests(5000)
    shared = int(share * len(ours))
    theirs = np.concatenate([ours[:shared], digests(len(ours) - shared)])
    assert set(sample_of(ours)) & set(sample_of(theirs))
    assert len(sample_of(ours)) == SAMPLE
    assert not set(sample_of(ours)) & set(sample_of(digests(5000)))


def test_lines_that_are_damaged_or_judge_nothing_count_nothing(root: Place) -> None:
    run, night = Run(root / "run"), digests(10)
    judge(run, "night", {"night": night})
    judge(run, "night", {"night": night}, judged=())
    for line in (
        "{",
        json.dumps({"target": "night", "judged": ["none/0"], "data": "00"}),
        '{"images": 3, "judged": 1}',
        json.dumps({"target": "night", "judged": ["none/0"], "images": {"night": [1, [2], None]}}),
    ):
        append_line(run.d_fail_log, line)
    assert count_readings(run, "night") == 1
