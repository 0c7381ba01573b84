"""Test the sentence that `fix` ends with."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from metarepair.reports.outcome import gain_interval, knows_only_failures, named, outcome_of
from tasks.errors import StageError

# 400 photographs judge, 80 of them failures: 50 become right, and 10 of the other 320 wrong.
ROW = {
    "method": "sgd",
    "seed": 0,
    "d_fail": 50 / 80,
    "break_rate_corrupted": 10 / 320,
    "break_rate": 0.02,
    "clean": 0.904,
    "clean_before": 0.912,
    "weights": "repaired/photographs/sgd/0/model.safetensors",
}
RESULT: dict[str, Any] = {
    "judging": {"images": 400, "clean_images": 500},
    "d_collect": {"fail": 80},
    "methods": [ROW | {"method": "none", "d_fail": 0.0}, ROW],
    "choice": {"method": "sgd", "seed": 0, "kept": False},
}


def test_a_repair_that_is_taken_is_told_with_its_gain_and_its_cost() -> None:
    outcome = outcome_of(RESULT, only_failures=False)
    assert (outcome.kept, outcome.method, outcome.weights) == (False, "sgd", ROW["weights"])
    assert "accuracy goes from 80.0% to 90.0%" in outcome.words
    assert "50 became right and 10 wrong" in outcome.words
    # 9 clean images broken, 5 fixed: −4 of 500, give or take 1.96 · √14 of 500.
    assert "from 91.2% to 90.4% (−0.8 points; 95% interval −2.3 to +0.7)" in outcome.words
    assert "2.0% of the clean images that were right are now wrong" in outcome.words


def test_what_only_failures_cannot_tell_is_said_to_be_unknown() -> None:
    words = outcome_of(RESULT, only_failures=True).words
    assert "62.5% of the 80 failures" in words
    assert "unknown" in words
    assert "80.0%" not in words


def point(**changed: Any) -> dict[str, Any]:
    usual = {
        "weight": 0.3,
        "episode": None,
        "environment": 0.83,
        "clean": 0.89,
        "broken": 0.03,
        "broken_bound": 0.045,
    }
    return {**usual, "recall_falls": {}, "outside": {"max_clean_drop": 0.012}, **changed}


def kept(*nearest: dict[str, Any], limits: dict[str, float] | None = None) -> dict[str, Any]:
    before = {"environment_before": 0.8, "clean_before": 0.912, "images": 200, "clean_images": 100}
    rows = [
        row | {"selection": before | {"kept": True, "nearest": list(nearest)}} for row in RESULT["methods"]
    ]
    choice = {"method": "none", "seed": 0, "kept": True}
    return RESULT | {"choice": choice, "methods": rows, "config": {"limits": limits or {}}}


def test_kept_weights_end_with_the_reason_and_no_weights() -> None:
    far = point(weight=1.0, environment=0.9, outside={"max_clean_drop": 0.05})
    outcome = outcome_of(kept(point(), far), only_failures=False)
    assert outcome.kept
    assert outcome.words.startswith(
        "Keep your model: no repair gains anything inside your limits on the 200 images of the environment and 100 "
        "clean images that select. The nearest is fine-tuned by SGD at weight 0.3 (environment 80.0% → 83.0%; "
        "clean 91.2% → 89.0%;"
    )
    assert outcome.words.endswith("outside limits.max_clean_drop by 1.2 points.")
    assert outcome.weights is None


def test_a_limit_that_no_repair_can_meet_is_told_with_the_images_it_takes() -> None:
    words = outcome_of(kept(point(), limits={"max_broken": 0.02})).words
    assert "limits.max_broken=0.02 cannot be met: with 91 clean images" in words
    assert "the bound is 3.2% even if none breaks; 149 are needed." in words
    assert "cannot be met" not in outcome_of(kept(point(), limits={"max_broken": 0.04})).words


def test_a_cost_beyond_the_limit_on_images_that_judge_is_doubted() -> None:
    costly = RESULT | {"methods": [ROW | {"clean": 0.862, "break_rate": 0.06}]}
    allowed = {"config": {"limits": {"max_clean_drop": 0.01}}}
    assert "lose more than the 1 points that the limit allowed" in outcome_of(costly | allowed).words
    assert "lose more" not in outcome_of(costly).words
    assert "lose more" not in outcome_of(RESULT | allowed).words


def test_few_photographs_that_judge_are_told() -> None:
    few = RESULT | {"judging": {"images": 99, "clean_images": 500}, "d_collect": {"fail": 40}}
    assert "Only 99 photographs judge" in outcome_of(few).words
    assert "Only" not in outcome_of(RESULT).words


def test_only_failures_are_recognised_by_their_number() -> None:
    judging = {"protocol": "own images", "images": 80, "clean_images": 500}
    assert knows_only_failures(RESULT | {"judging": judging})
    assert not knows_only_failures(RESULT | {"judging": judging | {"images": 81}})
    assert not knows_only_failures(RESULT | {"judging": judging | {"protocol": "set aside"}})


def test_rows_are_marked_as_taken_or_kept() -> None:
    rows = [{"selection": {"kept": True}}, {"selection": {"kept": False}}]
    assert named("sgd", rows, {"method": "sgd"}) == "fine-tuned by SGD (taken)"
    assert named("sgd", rows, {"method": "joint"}) == "fine-tuned by SGD (kept in 1 of 2)"
    assert named("none", rows[:1], {"method": "none"}) == "before repair"


@pytest.mark.parametrize(
    ("fixed", "broken", "says"), [(10, 20, "show no gain"), (12, 8, "may be chance"), (60, 5, None)]
)
def test_a_gain_that_is_not_confirmed_is_doubted(fixed: int, broken: int, says: str | None) -> None:
    row = ROW | {"d_fail": fixed / 80, "break_rate_corrupted": broken / 320}
    words = outcome_of(RESULT | {"methods": [row]}, only_failures=False).words
    assert (says in words) if says else words.endswith("are now wrong.")
    assert words.startswith("Do not take" if fixed < broken else "Take")


def test_a_result_without_a_choice_is_refused() -> None:
    with pytest.raises(StageError, match="no choice"):
        outcome_of({k: v for k, v in RESULT.items() if k != "choice"}, only_failures=False)


def test_the_interval_covers_the_true_gain_in_95_of_100_draws() -> None:
    generator, images, truth = np.random.default_rng(0), 1000, 0.06 - 0.03
    drawn = generator.multinomial(images, [0.06, 0.03, 0.91], size=2000)
    covered = 0
    for fixed, broken, _ in drawn.tolist():
        gain, low, high = gain_interval(fixed=fixed, broken=broken, images=images)
        assert gain == (fixed - broken) / images
        covered += low <= truth <= high
    assert 0.93 < covered / len(drawn) < 0.97


def test_an_image_of_a_corruption_judges_in_each_severity() -> None:
    five = ROW | {"corrupted_by_severity": dict.fromkeys("12345", 0.9), "break_rate_corrupted": 10 / 1920}
    words = outcome_of(RESULT | {"methods": [five]}).words
    assert "on the 2,000 photographs that judge, accuracy goes from 96.0% to 98.0%" in words
