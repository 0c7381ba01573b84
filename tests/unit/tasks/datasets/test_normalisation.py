"""Check that a mean and deviation are those of pixels in [0, 1], in a call and everywhere in a YAML file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from metarepair.config.load import parse_config
from metarepair.models.clean_check import USUAL
from tasks.datasets.normalisation import check_mean, check_std
from tasks.errors import ConfigError

CONFIG = {"name": "a", "mining": {"experiences": ["fog"]}}


@pytest.mark.parametrize("pair", USUAL.values(), ids=USUAL)
def test_every_usual_normalisation_is_accepted(pair: tuple[tuple[float, ...], tuple[float, ...]]) -> None:
    taken = parse_config(CONFIG | {"model": {"mean": list(pair[0]), "std": list(pair[1])}}).model
    assert (taken.mean, taken.std) == pair
    for check, values in zip((check_mean, check_std), pair, strict=True):
        check("model.x", values)
        with pytest.raises(ConfigError, match="outside"):
            check("model.x", [255 * value + 2 for value in values])


def test_a_deviation_of_a_rounded_255th_is_accepted() -> None:
    check_std("std", (0.0039,) * 3)
    with pytest.raises(ConfigError, match=r"outside 1/255\.\.1"):
        check_std("std", (0.0038,) * 3)


@pytest.mark.parametrize(
    ("check", "values", "says"),
    [
        (
            check_mean,
            (123.7, 116.3, 103.5),
            r"\[123\.7, 116\.3, 103\.5\] is outside 0\.\.1.*\[0\.4851, 0\.4561, 0\.4059\]",
        ),
        (check_mean, (0.5, 1.5, 0.5), r"divide both by 255"),
        (check_mean, (-0.1, 0.5, 0.5), r"outside 0\.\.1: mean and std are of pixels in \[0, 1\]\.$"),
        (check_mean, (float("nan"),), r"\[nan\] is outside"),
        (check_std, (58.4, 57.1, 57.4), r"outside 1/255\.\.1.*\[0\.229, 0\.2239, 0\.2251\]"),
        (check_std, (255.0,), r"this one is \[1\]"),
        (
            check_std,
            (0.5, 2.0),
            r"outside 1/255\.\.1: mean and std are of pixels in \[0, 1\], [^.]*\.\.255\.$",
        ),
        (check_std, (0.0009, 0.0009), r"outside 1/255\.\.1"),
        (check_std, (0.5, 0.0), "must be above 0"),
        (check_std, (float("nan"),), "must be above 0"),
        (check_std, (float("inf"),), r"outside 1/255\.\.1"),
    ],
)
def test_a_wrong_scale_is_refused_with_the_rescaled_numbers(
    check: Callable[[str, Any], None], values: tuple[float, ...], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        check("model.x", values)


@pytest.mark.parametrize("group", ["model", "data"])
@pytest.mark.parametrize(
    ("mean", "std", "says"),
    [
        ([123.7, 116.3, 103.5], [0.2, 0.2, 0.2], r"mean=\[123.7, 116.3, 103.5\] is outside 0\.\.1"),
        ([0.5, 0.5, 0.5], [58.4, 57.1, 57.4], r"std=\[58.4, 57.1, 57.4\] is outside 1/255\.\.1"),
        ([0.5, 0.5, 0.5], [0.5, 0.0, 0.5], "must be above 0"),
    ],
)
def test_a_yaml_file_is_checked_as_a_call_is(group: str, mean: Any, std: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{group}\..*{says}|^{group}\.std.*{says}"):
        parse_config(CONFIG | {group: {"mean": mean, "std": std}})
    fine = parse_config(CONFIG | {group: {"mean": [0.0, 0.0, 0.0], "std": [0.0039, 0.0039, 0.0039]}})
    assert getattr(fine, group).std == (0.0039, 0.0039, 0.0039)
