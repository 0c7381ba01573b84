"""Write methods and fractions as tables and sentences do."""

from __future__ import annotations

from metarepair.evaluation.side_effects import CLEAN, OTHERS, TARGET
from metarepair.methods import METHODS, all_methods


def method_words(method: str) -> str:
    """Return a method's name in plain words."""
    known = METHODS.get(method) or all_methods().get(method)
    return known.words if known else method


def percent(fraction: float) -> str:
    """Return `45.3` for 0.453."""
    return f"{100 * fraction:.1f}"


def points(difference: float) -> str:
    """Return `+3.2 points` for a difference of fractions of 0.032."""
    rounded = round(100 * difference, 1)
    sign = "+" if rounded > 0 else "−" if rounded < 0 else "±"
    return f"{sign}{abs(rounded):.1f} points"


def signed(percentage: float) -> str:
    """Return `+3.2` or `−3.2`, with the minus sign of `points`."""
    return f"{percentage:+.1f}".replace("-", "−")


def plain_words(name: str) -> str:
    """Return `gaussian noise` for `gaussian_noise`."""
    return name.replace("_", " ")


def set_words(name: str, target: str) -> str:
    """Return what to call a set of images that judged (`metarepair.evaluation.side_effects`)."""
    return {CLEAN: "clean", TARGET: plain_words(target), OTHERS: "other environments"}[name]
