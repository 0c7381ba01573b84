"""The settings of limits: what a repair may cost, and what it must gain, to be taken in place of the deployed DNN."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from metarepair.config.section import Fraction, Section

# Of `fix` and of a kit's repair, if the user sets no limit of clean images. By 500 images that select, others lost 0.3
# to 0.8 points in the mean, a tenth of the repairs up to 2 (docs/results/your_photographs.md).
USUAL_CLEAN_DROP = 0.005
Share = Annotated[float, Field(gt=0, lt=1)]


class LimitsConfig(Section):
    """Limits of a repair, measured on images that select; without any, the end of a repair is taken as it is."""

    max_broken: Share | None = Field(
        None,
        description="Largest share of clean images, right before the repair, that may be wrong after it: the one-sided "
        "95% upper bound on the clean images that select; above 0, below 1. If not set, any.",
    )
    max_clean_drop: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        None,
        description="Largest fall of the accuracy on the clean images that select, in absolute terms (0.01: one "
        "point); 0 or more, below 1. If not set, any.",
    )
    protected_classes: dict[str, Fraction] = Field(
        {},
        description="Classes whose recall may not fall by more than the given amount, 0 to 1, on the clean images and "
        "on the environment's images that select; by name, or by number.",
    )
    min_gain: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        None,
        description="Least gain of accuracy on the environment's images that select, right ones included, in absolute "
        "terms; 0 or more, below 1. With any limit set, there must be a gain.",
    )

    @property
    def active(self) -> bool:
        """Whether there is any limit."""
        return self != LimitsConfig()


def user_limits(
    *,
    max_broken: float | None,
    max_clean_drop: float | None,
    protected_classes: Mapping[str, float],
    min_gain: float | None,
) -> dict[str, Any]:
    """The settings `limits` of a `fix` or a kit's repair: the usual clean drop unless the user limits clean images."""
    usual = USUAL_CLEAN_DROP if max_broken is None and max_clean_drop is None else None
    limits = {
        "max_broken": max_broken,
        "max_clean_drop": max_clean_drop if usual is None else usual,
        "protected_classes": dict(protected_classes),
        "min_gain": min_gain or 0.0,
    }
    return {key: value for key, value in limits.items() if value is not None}
