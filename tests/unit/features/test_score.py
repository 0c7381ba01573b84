"""Check the report of `score` on a target: experiences by distance, and α and β with the stated effect."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.csv as csv
import pytest

from metarepair.config.run import ExperienceConfig
from metarepair.features.confidence_tables import (
    GUIDED,
    ONE,
    confidence_of,
    describe_confidence,
    guides,
    write_scores,
)
from metarepair.stages.score import _leave_other_targets
from tasks.errors import StageError
from tasks.records import FidScore
from tasks.sampling.confidence import confidence
from tasks.storage.manifest import read_manifest, write_manifest
from tasks.storage.paths import Place, local, write_text

DISTANCES = {"fog": 12.0, "snow": 3.0, "frost": 5.0, "contrast": 40.0, "saturate": 7.5, "spatter": 9.0}


def scores(**more: float) -> list[FidScore]:
    return [
        FidScore(
            experience=name,
            target="brightness",
            distance=distance,
            extractor="deployed",
            num_experience=9,
            num_target=9,
            **more,
        )
        for name, distance in DISTANCES.items()
    ]


@pytest.mark.parametrize("number", GUIDED)
def test_guided_alpha_and_beta_give_the_stated_effective_number(number: int) -> None:
    guide = next(g for g in guides(DISTANCES) if g.number == number)
    by_alpha = confidence(DISTANCES, rule="hinge", alpha=guide.alpha, beta=None)
    assert by_alpha.effective_number == pytest.approx(max(number, ONE), rel=1e-6)
    by_beta = confidence(DISTANCES, rule="cutoff", alpha=0.0, beta=guide.beta)
    assert by_beta.effective_number == pytest.approx(number)


def test_guidance_stops_at_the_number_of_experiences() -> None:
    assert [g.number for g in guides({"fog": 1.0, "snow": 2.0, "frost": 3.0})] == [1, 3]


def test_no_alpha_is_suggested_if_none_gives_the_effective_number() -> None:
    assert guides({"fog": 1.0, "snow": 1.0, "frost": 3.0})[0].alpha is None


def test_experiences_are_listed_nearest_first_with_probability_and_effective_number() -> None:
    found = confidence_of(scores(), "brightness", ExperienceConfig())
    lines = describe_confidence("brightness", found, scores()).splitlines()
    assert "effective number of experiences 3.00 of 6" in lines[0]
    assert [line.split()[0] for line in lines[1:7]] == sorted(DISTANCES, key=DISTANCES.__getitem__)
    assert sum(float(line.split()[-1]) for line in lines[1:7]) == pytest.approx(1, abs=0.003)
    assert [line.split()[1] for line in lines[7:]] == ["1", "3", "5"]


def test_intervals_are_printed_if_there_are_any() -> None:
    found = confidence_of(scores(), "brightness", ExperienceConfig())
    text = describe_confidence("brightness", found, scores(low=2.0, high=4.0, limit=1.5, limit_error=0.25))
    assert "(2.00 to 4.00), extrapolated 1.50 ± 0.25" in text


def test_guidance_is_written_as_csv(root: Place) -> None:
    found = confidence_of(scores(), "brightness", ExperienceConfig())
    files = write_scores(root, scores(), np.zeros((1, 1)), ["x"], {"brightness": found})
    assert all((root / name).is_file() for name in files)
    rows = csv.read_csv(local(root / "guidance.csv")).to_pylist()
    assert [row["effective_number"] for row in rows] == [1, 3, 5]
    assert [row["cutoff_beta"] for row in rows] == [3.0, 7.5, 12.0]


def test_a_refused_score_names_the_changed_settings_and_not_the_other_targets(tmp_path: Path) -> None:
    held = {"targets": ["fog"], "experiences": {"alpha": 1.0}, "mined": ["snow"]}
    write_text(tmp_path / "fid.parquet", "content")
    inputs = {"features target fog": "a", "features experience snow": "b"}
    write_manifest(tmp_path, stage="score", config=held, inputs=inputs, files=["fid.parquet"])
    settings = held | {"targets": ["rain"], "experiences": {"alpha": 2.0}}
    now = {"features target rain": "c", "features experience snow": "b"}
    with pytest.raises(StageError, match="alpha") as refused:
        _leave_other_targets(tmp_path, settings, now)
    assert "rain" not in str(refused.value)
    assert "fog" not in str(refused.value)
    _leave_other_targets(tmp_path, held | {"targets": ["rain"]}, now)
    assert read_manifest(tmp_path) is None, "other targets alone: made again"
