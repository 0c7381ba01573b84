"""Compare Eq. 8 and its rules with direct evaluation, and check the choice of experiences."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import pytest

from tasks.errors import ConfigError, DataError
from tasks.sampling.confidence import Rule, alpha_for_effective_number, choose_experiences, confidence

Q = {"snow": 4.0, "fog": 1.5, "blur": 2.0, "noise": 9.0, "jpeg": 2.5}
CATEGORY = {"snow": "weather", "fog": "weather", "blur": "blur", "noise": "noise", "jpeg": "digital"}
RULES: tuple[Rule, ...] = ("softmax", "hinge", "cutoff", "uniform")


def direct(weights: list[float]) -> list[float]:
    return [w / sum(weights) for w in weights]


def test_softmax_equals_eq_8_as_printed() -> None:
    p = confidence(Q, rule="softmax", alpha=0.7, beta=2.2).probabilities_K
    assert p == pytest.approx(direct([math.exp(-0.7 * (q - 2.2)) for q in Q.values()]), rel=1e-12)


def test_beta_has_no_effect_under_softmax() -> None:
    reference = confidence(Q, rule="softmax", alpha=0.7, beta=None)
    for beta in (-50.0, 0.0, 2.2, 300.0):
        p = confidence(Q, rule="softmax", alpha=0.7, beta=beta).probabilities_K
        np.testing.assert_array_equal(p, reference.probabilities_K)


def test_hinge_decays_only_beyond_beta() -> None:
    result = confidence(Q, rule="hinge", alpha=0.7, beta=2.2)
    expected = direct([math.exp(-0.7 * max(q - 2.2, 0.0)) for q in Q.values()])
    assert result.probabilities_K == pytest.approx(expected, rel=1e-12)
    p = result.as_dict()
    assert p["fog"] == p["blur"] > p["jpeg"] > p["snow"] > p["noise"]


def test_beta_matters_under_hinge_and_cutoff() -> None:
    for rule in ("hinge", "cutoff"):
        near = confidence(Q, rule=rule, alpha=0.7, beta=1.6).probabilities_K
        far = confidence(Q, rule=rule, alpha=0.7, beta=5.0).probabilities_K
        assert np.abs(near - far).max() > 0.1


def test_cutoff_gives_probability_zero_beyond_beta() -> None:
    p = confidence(Q, rule="cutoff", alpha=0.7, beta=2.5).as_dict()
    assert p["snow"] == p["noise"] == 0.0
    expected = direct([math.exp(-0.7 * q) for q in (1.5, 2.0, 2.5)])
    assert [p["fog"], p["blur"], p["jpeg"]] == pytest.approx(expected, rel=1e-12)


def test_a_cutoff_below_all_distances_is_refused_with_the_smallest() -> None:
    with pytest.raises(ConfigError, match=r"smallest distance is 1\.5"):
        confidence(Q, rule="cutoff", alpha=1.0, beta=1.4)


def test_uniform_ignores_alpha_and_beta() -> None:
    result = confidence(Q, rule="uniform", alpha=5.0, beta=2.0)
    assert result.as_dict() == dict.fromkeys(Q, 0.2)
    assert result.alpha == 0.0
    assert result.effective_number == pytest.approx(5.0)


def test_names_keep_the_given_order() -> None:
    result = confidence(Q, rule="hinge", alpha=None, beta=None)
    assert result.names == tuple(Q)
    assert list(result.as_dict()) == list(Q)


@pytest.mark.parametrize("rule", ["softmax", "hinge"])
def test_defaults_are_the_smallest_distance_and_three_effective_experiences(rule: Rule) -> None:
    result = confidence(Q, rule=rule, alpha=None, beta=None)
    assert result.beta == 1.5
    assert result.alpha > 0.0
    assert result.effective_number == pytest.approx(3.0, rel=1e-12)


def test_defaults_do_not_depend_on_the_scale_of_the_features() -> None:
    for scale in (1e-6, 1e6):
        scaled = confidence({n: q * scale for n, q in Q.items()}, rule="hinge", alpha=None, beta=None)
        reference = confidence(Q, rule="hinge", alpha=None, beta=None)
        np.testing.assert_allclose(scaled.probabilities_K, reference.probabilities_K, rtol=1e-9)


def test_default_beta_of_cutoff_is_the_median() -> None:
    result = confidence(Q, rule="cutoff", alpha=None, beta=None)
    assert result.beta == 2.5
    assert result.alpha == 0.0  # three remain, with equal probability
    assert result.effective_number == pytest.approx(3.0)
    nine = {str(q): float(q) for q in range(9)}
    five_left = confidence(nine, rule="cutoff", alpha=None, beta=None)
    assert five_left.beta == 4.0
    assert five_left.effective_number == pytest.approx(3.0, rel=1e-12)
    assert (five_left.probabilities_K > 0).sum() == 5


@pytest.mark.parametrize("count", [1, 2, 3])
def test_three_or_fewer_experiences_are_equally_likely_by_default(count: int) -> None:
    few = dict(list(Q.items())[:count])
    result = confidence(few, rule="hinge", alpha=None, beta=None)
    assert result.alpha == 0.0
    np.testing.assert_allclose(result.probabilities_K, 1 / count)


def test_ties_that_make_three_effective_experiences_impossible_give_uniform() -> None:
    ties = {"a": 1.0, "b": 1.0, "c": 1.0, "d": 1.0, "e": 7.0}
    result = confidence(ties, rule="hinge", alpha=None, beta=None)
    assert result.alpha == 0.0
    np.testing.assert_allclose(result.probabilities_K, 0.2)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("size", [0.0, 1e-300, 1.0, 1e6, 1e12, 1e300])
@pytest.mark.parametrize("alpha", [None, 0.0, 1.0, 1e308])
@pytest.mark.parametrize("beta", [None, 0.0, 1e12])
def test_probabilities_are_never_nan(
    rule: Rule, size: float, alpha: float | None, beta: float | None
) -> None:
    distances = {str(i): size * q for i, q in enumerate([0.0, 1.0, 1.0 + 1e-12, 3.0, 3.0, 8.0])}
    result = confidence(distances, rule=rule, alpha=alpha, beta=beta)
    assert np.isfinite(result.probabilities_K).all()
    assert (result.probabilities_K >= 0).all()
    assert result.probabilities_K.sum() == pytest.approx(1.0, abs=1e-12)
    assert math.isfinite(result.alpha)


@pytest.mark.parametrize("rule", ["softmax", "hinge", "cutoff"])
def test_a_nearer_experience_is_never_less_likely(rule: Rule) -> None:
    p = confidence(Q, rule=rule, alpha=0.3, beta=2.0).as_dict()
    by_distance = [p[name] for name in sorted(Q, key=lambda name: Q[name])]
    assert by_distance == sorted(by_distance, reverse=True)


@pytest.mark.parametrize("alpha", [-1.0, math.nan, math.inf])
def test_a_negative_or_non_finite_alpha_is_refused(alpha: float) -> None:
    with pytest.raises(ConfigError, match=r"confidence\.alpha=.*at least 0"):
        confidence(Q, rule="hinge", alpha=alpha, beta=None)


def test_a_non_finite_beta_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"confidence\.beta=inf"):
        confidence(Q, rule="hinge", alpha=None, beta=math.inf)


@pytest.mark.parametrize("q", [math.nan, math.inf, -0.1])
def test_an_invalid_distance_is_refused_by_name(q: float) -> None:
    with pytest.raises(DataError, match="'fog'"):
        confidence(Q | {"fog": q}, rule="hinge", alpha=None, beta=None)


def test_an_empty_mapping_of_distances_is_refused() -> None:
    with pytest.raises(DataError, match="at least one"):
        confidence({}, rule="uniform", alpha=None, beta=None)


def test_an_unknown_rule_is_refused_with_a_near_name() -> None:
    with pytest.raises(ConfigError, match="did you mean 'hinge'"):
        confidence(Q, rule="hinged", alpha=None, beta=None)  # type: ignore[arg-type]


@pytest.mark.parametrize("number", [1.01, 2.0, 3.0, 4.9, 5.0])
def test_alpha_for_an_effective_number_gives_that_number(number: float) -> None:
    alpha = alpha_for_effective_number(Q, number)
    for rule in ("softmax", "hinge"):
        result = confidence(Q, rule=rule, alpha=alpha, beta=None)
        assert result.effective_number == pytest.approx(number, rel=1e-9)


def test_an_unreachable_effective_number_is_refused_with_the_range() -> None:
    for number in (0.5, 6.0, math.nan):
        with pytest.raises(ConfigError, match=r"between 1 .* and 5"):
            alpha_for_effective_number(Q, number)
    with pytest.raises(ConfigError, match=r"between 3 .* and 5"):
        alpha_for_effective_number(Q, 2.0, beta=3.0)


def choose(
    choice: Literal["all", "top_k", "category", "list"],
    top_k: int | None = None,
    names: tuple[str, ...] = (),
    target: str = "snow",
) -> tuple[str, ...]:
    return choose_experiences(
        Q, choice=choice, top_k=top_k, names=names, target=target, category_of=CATEGORY.__getitem__
    )


def test_a_target_is_never_its_own_experience() -> None:
    assert choose("all") == ("fog", "blur", "noise", "jpeg")
    assert choose("top_k", top_k=4) == ("fog", "blur", "jpeg", "noise")
    assert choose("category") == ("fog",)
    assert choose("list", names=("jpeg", "snow", "fog")) == ("jpeg", "fog")


def test_top_k_takes_the_nearest_first() -> None:
    assert choose("top_k", top_k=2) == ("fog", "blur")
    assert choose("top_k", top_k=2, target="fog") == ("blur", "jpeg")


@pytest.mark.parametrize("top_k", [None, 0, -1, 5])
def test_a_top_k_that_cannot_be_met_is_refused(top_k: int | None) -> None:
    with pytest.raises(ConfigError, match=r"1\.\.4"):
        choose("top_k", top_k=top_k)


def test_an_unknown_name_in_the_list_is_refused_with_a_near_name() -> None:
    with pytest.raises(ConfigError, match="no experience 'frog'; did you mean 'fog'"):
        choose("list", names=("jpeg", "frog"))


def test_a_name_twice_in_the_list_is_refused() -> None:
    with pytest.raises(ConfigError, match="'fog' 2 times"):
        choose("list", names=("fog", "jpeg", "fog"))


def test_a_choice_that_leaves_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"choice=category leaves none for target 'blur'"):
        choose("category", target="blur")
    with pytest.raises(ConfigError, match="choice=list"):
        choose("list", names=("snow",))


def test_an_unknown_choice_is_refused_with_a_near_name() -> None:
    with pytest.raises(ConfigError, match="did you mean 'top_k'"):
        choose("top-k")  # type: ignore[arg-type]


def test_an_error_does_not_list_the_target_among_the_experiences() -> None:
    with pytest.raises(ConfigError) as error:
        choose_experiences(
            {"fog": 1.0, "jpeg": 2.0},
            choice="list",
            top_k=None,
            names=("frog",),
            target="snow",
            category_of=str,
        )
    assert str(error.value).endswith("There are: fog, jpeg")
