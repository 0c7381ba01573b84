"""Turn the distances between experiences and a target into the probabilities with which experiences are drawn.

    softmax   p ∝ exp(−α (q − β))            Eq. 8 as printed; β cancels
    hinge     p ∝ exp(−α max(q − β, 0))      equal confidence up to β, decaying beyond it
    cutoff    p ∝ exp(−α q) for q ≤ β, else 0
    uniform   p = 1/K                        the paper's "w/o Confidence"

The scale of q depends on the feature extractor, so α and β may be left out: they are then chosen relative
to the distances themselves. All arithmetic is in float64, on logarithms.

Shape letter: K experiences. Source: paper Eq. 8 and Sec. 4.2 (choice of experiences: Sec. 5, "Empirical
Selection" and Fig. 5). The rules other than `softmax`, and all relative defaults, are ours.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from tasks.errors import ConfigError, DataError, unknown_name
from tasks.storage.manifest import content_hash

Rule = Literal["softmax", "hinge", "cutoff", "uniform"]
Choice = Literal["all", "top_k", "category", "list"]
Doubles = NDArray[np.float64]

EFFECTIVE_NUMBER = 3.0  # of experiences, if α is left out


@dataclass(frozen=True, kw_only=True, eq=False)
class Confidence:
    """The probability of each experience, and the α ≥ 0 (per unit of distance) and β (a distance) that gave it."""

    names: tuple[str, ...]
    probabilities_K: Doubles
    rule: Rule
    alpha: float
    beta: float

    @property
    def effective_number(self) -> float:
        """exp(entropy): K if all experiences are equally likely, 1 if one has all the probability."""
        return _effective_number(self.probabilities_K)

    @property
    def digest(self) -> str:
        """A digest of everything that the drawing of tasks depends on."""
        return content_hash([self.names, self.probabilities_K.tolist(), self.rule, self.alpha, self.beta])

    def as_dict(self) -> dict[str, float]:
        """Probabilities by name, in the given order."""
        return dict(zip(self.names, self.probabilities_K.tolist(), strict=True))


def confidence(
    distances: Mapping[str, float], *, rule: Rule, alpha: float | None, beta: float | None
) -> Confidence:
    """The probability of each experience, from its distance to the target (paper Eq. 8 and the rules above).

    distances: q ≥ 0 by name. `softmax` is Eq. 8 as printed: β has no effect there, because exp(αβ) is a
    common factor that normalisation cancels. `uniform` uses neither α nor β and reports α = 0.

    `None` selects a relative default. For β this is the smallest q; under `cutoff`, where that would leave only
    one experience, it is the median of q (ours). α is chosen so that the effective number of experiences is 3.
    If that is impossible, because β leaves 3 or fewer or because 3 or more share the smallest penalty, α is 0
    and all remaining experiences are equally likely.

    Raises DataError if there are no distances or a q is negative, NaN or infinite; ConfigError for an unknown
    rule, a negative or non-finite α, a non-finite β, and a β that leaves no experience under `cutoff`.
    """
    if rule not in get_args(Rule):
        raise ConfigError(unknown_name("confidence rule", rule, get_args(Rule)))
    q_K = _checked(distances)
    _check_number("alpha", alpha, smallest=0.0)
    _check_number("beta", beta)
    if beta is None:
        beta = float(np.median(q_K) if rule == "cutoff" else q_K.min())
    penalty_K = _penalty(q_K, rule, beta)
    if rule == "uniform":
        alpha = 0.0
    elif alpha is None:
        alpha = _alpha_for(penalty_K, EFFECTIVE_NUMBER) or 0.0
    return Confidence(
        names=tuple(distances),
        probabilities_K=_probabilities(penalty_K, alpha),
        rule=rule,
        alpha=alpha,
        beta=beta,
    )


def alpha_for_effective_number(
    distances: Mapping[str, float], number: float, beta: float | None = None
) -> float:
    """The α that gives an effective number of `number` experiences, exp(entropy) = number, under the hinge rule.

    If beta is `None` (the smallest q), `hinge` and `softmax` agree, so the α serves both. Raises ConfigError
    with the possible numbers if no α gives `number`; DataError as `confidence` does.
    """
    q_K = _checked(distances)
    _check_number("beta", beta)
    penalty_K = _penalty(q_K, "hinge", float(q_K.min()) if beta is None else beta)
    alpha = _alpha_for(penalty_K, number)
    if alpha is None:
        alike = int((penalty_K == penalty_K.min()).sum())
        raise ConfigError(
            f"no alpha gives an effective number of {number:g}: {alike} of {len(q_K)} experiences share the "
            f"smallest penalty, so it lies between {alike} (large alpha) and {len(q_K)} (alpha = 0)"
        )
    return alpha


def choose_experiences(
    distances: Mapping[str, float],
    *,
    choice: Choice,
    top_k: int | None,
    names: Sequence[str],
    target: str,
    category_of: Callable[[str], str],
) -> tuple[str, ...]:
    """The names of the experiences that a target may learn from; the target itself is never one of them.

    all: every experience, in the order of `distances`. top_k: the `top_k` nearest, nearest first (ties by name).
    category: those of the target's category ("Empirical Selection"). list: `names`, in their order, without the
    target, so that one list serves many targets. The other choices ignore `top_k` and `names`. Raises ConfigError
    for an unknown choice or name, a repeated name, a missing or impossible top_k, and if no experience is left.
    """
    others = [name for name in distances if name != target]
    match choice:
        case "all":
            chosen = others
        case "top_k":
            chosen = _nearest({name: distances[name] for name in others}, top_k)
        case "category":
            chosen = [name for name in others if category_of(name) == category_of(target)]
        case "list":
            chosen = _listed(names, mined=list(distances), target=target)
        case _:
            raise ConfigError(unknown_name("choice of experiences", choice, get_args(Choice)))
    if not chosen:
        there = ", ".join(others) if others else "none besides the target"
        raise ConfigError(
            f"experiences.choice={choice} leaves none for target {target!r}. There are: {there}"
        )
    return tuple(chosen)


def _nearest(distances: Mapping[str, float], top_k: int | None) -> list[str]:
    if top_k is None or not 1 <= top_k <= len(distances):
        raise ConfigError(
            f"experiences.top_k={top_k} is impossible: give a number in 1..{len(distances)}, the number of "
            "experiences besides the target"
        )
    _checked(distances)
    return sorted(distances, key=lambda name: (distances[name], name))[:top_k]


def _listed(names: Sequence[str], *, mined: Sequence[str], target: str) -> list[str]:
    for name, times in Counter(names).items():
        if name not in mined and name != target:
            raise ConfigError(unknown_name("experience", name, mined))
        if times > 1:
            raise ConfigError(f"experiences.names has {name!r} {times} times; name each experience once")
    return [name for name in names if name != target]


def _penalty(q_K: Doubles, rule: Rule, beta: float) -> Doubles:
    """The factor of α for each experience: ≥ 0, at least one is 0; infinite if the experience is cut off."""
    if rule == "uniform":
        return np.zeros_like(q_K)
    if rule == "softmax":
        beta = float(q_K.min())  # β cancels, so its value is free: the smallest q keeps exp() in range
    if rule in ("softmax", "hinge"):
        beyond_K: Doubles = np.maximum(q_K - beta, 0.0)
        shifted_K: Doubles = beyond_K - beyond_K.min()
        return shifted_K
    kept_K = q_K <= beta
    if not kept_K.any():
        raise ConfigError(
            f"beta={beta:g} cuts off every experience: the smallest distance is {q_K.min():g}. "
            "Give a beta of at least that, or leave it out for the median"
        )
    return np.where(kept_K, q_K - q_K.min(), np.inf)


def _probabilities(penalty_K: Doubles, alpha: float) -> Doubles:
    kept_K = np.isfinite(penalty_K)
    with np.errstate(over="ignore"):  # a product beyond float64 is a probability of 0
        logits_K = np.where(kept_K, -alpha * np.where(kept_K, penalty_K, 0.0), -np.inf)
    weights_K = np.exp(logits_K)  # the largest is 1, since some penalty is 0
    probabilities_K: Doubles = weights_K / weights_K.sum()
    return probabilities_K


def _effective_number(probabilities_K: Doubles) -> float:
    p = probabilities_K[probabilities_K > 0]
    return float(np.exp(-(p * np.log(p)).sum()))


def _alpha_for(penalty_K: Doubles, number: float) -> float | None:
    """The α with exp(entropy) = number, by bisection in log α; 0 if all count equally; `None` if there is none."""
    kept = int(np.isfinite(penalty_K).sum())
    if number == kept:
        return 0.0
    if not int((penalty_K == 0).sum()) < number < kept:
        return None
    apart = penalty_K[np.isfinite(penalty_K) & (penalty_K > 0)]
    # At `low` all weights are 1 to rounding; at `high` all weights but those of the nearest are 0.
    low = math.log(1e-9) - math.log(apart.max())
    high = min(math.log(1e3) - math.log(apart.min()), math.log(np.finfo(np.float64).max))
    for _ in range(100):
        middle = (low + high) / 2
        if _effective_number(_probabilities(penalty_K, math.exp(middle))) > number:
            low = middle
        else:
            high = middle
    return math.exp((low + high) / 2)


def _checked(distances: Mapping[str, float]) -> Doubles:
    if not distances:
        raise DataError("no distances: score at least one experience against the target first")
    for name, q in distances.items():
        if not (math.isfinite(q) and q >= 0):
            raise DataError(
                f"the distance of experience {name!r} is {q}; a squared Fréchet distance is finite and not "
                "negative: score the experiences again"
            )
    return np.array(list(distances.values()), dtype=np.float64)


def _check_number(name: str, value: float | None, smallest: float = -math.inf) -> None:
    if value is not None and not (math.isfinite(value) and value >= smallest):
        least = f" of at least {smallest:g}" if math.isfinite(smallest) else ""
        raise ConfigError(
            f"confidence.{name}={value} is not allowed; give a finite number{least}, or leave it out"
        )
