"""Test that a repair is taken inside limits: the best point on the way from the deployed to the repaired DNN."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import beta
from torch import nn

from metarepair.adaptation.meta_test import Step
from metarepair.config.limits import LimitsConfig
from metarepair.config.load import parse_config
from metarepair.data.clean_images import CleanImages
from metarepair.data.selecting_images import SelectingImages
from metarepair.engine.vectors import State
from metarepair.evaluation.bounds import broken_bound
from metarepair.methods import RepairedModel
from metarepair.models.build import DeployedModel
from metarepair.repairs.limits import HALVINGS, choice_of, take_inside
from metarepair.reports.outcome import named, taken_inside
from metarepair.reports.table import verdict
from small import deployed_of
from tasks.errors import ConfigError
from tasks.splits import JUDGE, LEARN, SELECT
from tasks.splits.parts import judge_half, select_of_learned

REPAIRED_BIAS = 3.0  # moves the threshold between the classes from grey value 127.5 down to 63.75


def threshold_dnn() -> DeployedModel:
    """Return a DNN that finds class 1 in images lighter than medium grey, and class 0 in darker ones."""
    last = nn.Linear(3, 2)
    with torch.no_grad():
        last.weight.copy_(torch.tensor([[0.0] * 3, [1.0] * 3]))
        last.bias.zero_()
    return deployed_of(nn.Sequential(nn.Flatten(), last), num_classes=2)


def greys(values: Any, label: int) -> CleanImages:
    grey = np.asarray(list(values), np.uint8)
    images = np.broadcast_to(grey[:, None, None, None], (len(grey), 1, 1, 3))
    return CleanImages(images_NHWC=images, labels_N=np.full(len(grey), label))


def both(a: CleanImages, b: CleanImages) -> CleanImages:
    return CleanImages(
        images_NHWC=np.concatenate([a.images_NHWC, b.images_NHWC]),
        labels_N=np.concatenate([a.labels_N, b.labels_N]),
    )


def images() -> SelectingImages:
    """The environment has darker images of class 1, half of them wrong; each grey value is clean, all right."""
    return SelectingImages(
        environment=both(greys(range(64, 128), 1), greys(range(128, 192), 1)),
        clean=both(greys(range(128), 0), greys(range(128, 256), 1)),
        classes=("dark", "light"),
    )


def state(bias: float) -> State:
    return {"1.weight": torch.tensor([[0.0] * 3, [1.0] * 3]), "1.bias": torch.tensor([0.0, bias])}


def repaired(bias: float = REPAIRED_BIAS, episodes: tuple[float, ...] = ()) -> RepairedModel:
    def steps() -> Iterator[Step]:
        for episode, end in enumerate(episodes):
            for slot, at in enumerate((end / 2, end)):
                yield Step(episode=episode, slot=slot, parameters=state(at), buffers={}, images_seen=1)

    return RepairedModel(
        method="sgd",
        parameters=state(bias),
        buffers={},
        images_seen=0,
        gradient_steps=0,
        steps=steps if episodes else None,
    )


def lowered(weight: float, count: int) -> int:
    """How many of the grey values below 128, of the last `count`, are above the threshold at this weight."""
    return int((np.arange(128 - count, 128) > 127.5 - 63.75 * weight).sum())


def assert_at_the_edge(weight: float, inside: Callable[[float], bool]) -> None:
    """Check that a weight is inside, and that the next one of the search is not, or repairs no more."""
    further = weight + (0.1 if weight >= 0.1 else 0.05) / 2**HALVINGS
    assert inside(weight)
    assert not inside(further) or lowered(further, 64) == lowered(weight, 64)


def test_the_bound_of_broken_images_is_that_of_clopper_and_pearson() -> None:
    assert broken_bound(0, 100) == pytest.approx(1 - 0.05 ** (1 / 100))
    assert broken_bound(3, 200) == pytest.approx(beta.ppf(0.95, 4, 197))
    assert broken_bound(5, 5) == broken_bound(0, 0) == 1.0


@pytest.mark.parametrize("most", [0.06, 0.1, 0.2])
def test_the_largest_weight_inside_max_broken_is_taken(most: float) -> None:
    taken, selection = take_inside(threshold_dnn(), repaired(), images(), LimitsConfig(max_broken=most))
    weight, point = selection.point.weight, selection.point
    assert_at_the_edge(weight, lambda w: broken_bound(lowered(w, 128), 256) <= most)
    assert not selection.kept
    assert taken.parameters["1.bias"][1].item() == pytest.approx(REPAIRED_BIAS * weight)
    assert point.environment == (64 + lowered(weight, 64)) / 128
    assert point.broken == lowered(weight, 128) / 256
    assert point.broken_bound == broken_bound(lowered(weight, 128), 256)
    assert (selection.environment_before, selection.clean_before) == (0.5, 1.0)
    assert (selection.images, selection.clean_images) == (128, 256)


def test_the_fall_of_clean_accuracy_is_limited() -> None:
    _, selection = take_inside(threshold_dnn(), repaired(), images(), LimitsConfig(max_clean_drop=0.05))
    assert_at_the_edge(selection.point.weight, lambda w: lowered(w, 128) / 256 <= 0.05)


def test_without_a_limit_that_bites_the_repair_itself_is_taken() -> None:
    taken, selection = take_inside(threshold_dnn(), repaired(), images(), LimitsConfig(min_gain=0.1))
    assert selection.point.weight == 1.0
    assert torch.equal(taken.parameters["1.bias"], state(REPAIRED_BIAS)["1.bias"])


def test_the_deployed_weights_are_kept_if_no_point_is_inside_and_the_nearest_are_told() -> None:
    deployed = threshold_dnn()
    taken, selection = take_inside(deployed, repaired(), images(), LimitsConfig(max_broken=0.01))
    assert selection.kept
    assert torch.equal(taken.parameters["1.bias"], torch.zeros(2))
    assert (selection.point.weight, selection.point.environment, selection.point.broken) == (0.0, 0.5, 0.0)
    nearest = selection.nearest[0]
    assert lowered(nearest.weight, 128) == min(lowered(point.weight, 128) for point in selection.nearest)
    by = broken_bound(lowered(nearest.weight, 128), 256) - 0.01
    assert nearest.outside["max_broken"] == pytest.approx(by)
    assert len(selection.nearest) == 3


@pytest.mark.parametrize(
    ("limits", "goes_on"),
    [({"max_clean_drop": 0.0}, True), ({"max_clean_drop": 0.0, "max_broken": 0.02}, False)],
)
def test_only_a_broken_bound_ends_the_search(limits: dict[str, float], goes_on: bool) -> None:
    """Of the clean images a small step breaks 10, and a longer one mends 40."""
    dark, light = greys(range(118, 128), 0), greys(range(78, 118), 1)
    clean = both(both(dark, light), greys([255] * 50, 1))
    _, selection = take_inside(
        threshold_dnn(), repaired(), replace(images(), clean=clean), LimitsConfig(**limits)
    )
    assert (selection.point.weight == 1.0) == goes_on
    assert selection.kept != goes_on


def test_a_gain_below_the_least_is_no_gain() -> None:
    _, selection = take_inside(threshold_dnn(), repaired(0.5), images(), LimitsConfig(min_gain=0.3))
    assert selection.kept
    _, worse = take_inside(threshold_dnn(), repaired(-1.0), images(), LimitsConfig(min_gain=0.0))
    assert worse.kept


@pytest.mark.parametrize("name", ["dark", "0"])
def test_the_recall_of_a_protected_class_does_not_fall_by_more(name: str) -> None:
    limits = LimitsConfig(protected_classes={name: 0.1})
    _, selection = take_inside(threshold_dnn(), repaired(), images(), limits)
    weight = selection.point.weight
    assert_at_the_edge(weight, lambda w: lowered(w, 128) / 128 <= 0.1)
    assert selection.point.recall_falls == {"dark": lowered(weight, 128) / 128}


def test_a_protected_class_that_gains_does_not_limit() -> None:
    _, selection = take_inside(
        threshold_dnn(), repaired(), images(), LimitsConfig(protected_classes={"light": 0})
    )
    assert selection.point.weight == 1.0


def test_an_episode_that_is_better_than_the_means_is_taken() -> None:
    limits = LimitsConfig(max_clean_drop=0.05)
    between = REPAIRED_BIAS * 0.19
    assert lowered(0.19, 128) <= 0.05 * 256 < lowered(0.2, 128)
    walked = replace(
        repaired(episodes=(REPAIRED_BIAS, between)), parameters=state(40.0)
    )  # whose means are coarse
    taken, selection = take_inside(threshold_dnn(), walked, images(), limits)
    assert (selection.point.episode, selection.point.environment) == (1, (64 + lowered(0.19, 64)) / 128)
    assert torch.equal(taken.parameters["1.bias"], state(between)["1.bias"])


def test_a_repair_that_changed_nothing_is_kept() -> None:
    _, selection = take_inside(threshold_dnn(), repaired(0.0), images(), LimitsConfig(max_broken=0.5))
    assert selection.kept
    assert len(selection.nearest) == 1


def test_limits_of_clean_images_need_clean_images() -> None:
    none = replace(images(), clean=None)
    with pytest.raises(ConfigError, match="measured on clean images, and none are given"):
        take_inside(threshold_dnn(), repaired(), none, LimitsConfig(max_broken=0.1))
    _, selection = take_inside(threshold_dnn(), repaired(), none, LimitsConfig(min_gain=0.1))
    assert (selection.clean_before, selection.point.broken_bound, selection.clean_images) == (None, None, 0)


def test_a_protected_class_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ConfigError, match="there is no class 'lihgt'"):
        take_inside(threshold_dnn(), repaired(), images(), LimitsConfig(protected_classes={"lihgt": 0.1}))


def row(method: str, most: float, bias: float = REPAIRED_BIAS) -> dict[str, Any]:
    _, selection = take_inside(threshold_dnn(), repaired(bias), images(), LimitsConfig(max_broken=most))
    return {"method": method, "seed": 0, "selection": selection.as_json()}


def test_the_method_that_is_best_on_selecting_images_is_chosen() -> None:
    rows = [row("sgd", 0.06), row("joint", 0.2), row("bn_adapt", 0.001)]
    assert choice_of(rows) == {"method": "joint", "seed": 0, "kept": False}
    assert choice_of([row("sgd", 0.001)]) == {"method": "none", "seed": 0, "kept": True}


def test_a_report_says_what_was_taken_and_what_was_kept() -> None:
    rows = [row("sgd", 0.06), row("bn_adapt", 0.001)]
    lines = taken_inside({"methods": rows})
    assert lines[0].startswith("fine-tuned by SGD: taken at weight 0.125 (environment 50.0% → ")
    assert lines[1].startswith("BN-adapted: the deployed weights are kept. The nearest is at weight ")
    assert "outside limits.max_broken by " in lines[1]
    assert named("bn_adapt", rows[1:]) == "BN-adapted (kept)"
    assert named("sgd", rows[:1]) == "fine-tuned by SGD"
    assert taken_inside({"methods": [{"method": "sgd", "seed": 0}]}) == []
    kept = {"methods": rows[1:], "choice": choice_of(rows[1:])}
    assert verdict(kept)[0].startswith(
        "Keep your model: no repair gains anything inside your limits on the 128 images"
    )


def test_the_nearest_points_gain_something() -> None:
    _, selection = take_inside(threshold_dnn(), repaired(), images(), LimitsConfig(max_broken=0.001))
    assert selection.nearest
    assert all(point.environment > 0.5 for point in selection.nearest)


def test_a_protected_class_that_no_selecting_image_shows_is_refused() -> None:
    three = replace(images(), classes=("dark", "light", "grey"))
    with pytest.raises(ConfigError, match="no image that selects is of grey"):
        take_inside(threshold_dnn(), repaired(), three, LimitsConfig(protected_classes={"grey": 0.1}))


def test_half_of_the_images_that_do_not_judge_select_by_whole_groups() -> None:
    groups_N = np.arange(400) // 4
    judged_N = judge_half(groups_N, fraction=0.5, seed=3)
    parts_N = select_of_learned(judged_N, groups_N, seed=3)
    assert ((parts_N == JUDGE) == (judged_N == JUDGE)).all()
    assert abs(int((parts_N == SELECT).sum()) - 100) <= 8
    assert (parts_N == LEARN).sum() + (parts_N == SELECT).sum() == (judged_N == LEARN).sum()
    assert all(len(set(parts_N[groups_N == group])) == 1 for group in range(100))
    assert (select_of_learned(judged_N, groups_N, seed=4) != parts_N).any()


def test_limits_need_test_images_that_do_not_judge() -> None:
    given = {
        "name": "x",
        "mining": {"experiences": ["fog"], "judge_fraction": None},
        "limits": {"max_broken": 0.1},
    }
    with pytest.raises(ConfigError, match=r"mining\.judge_fraction: null leaves none"):
        parse_config(given)
