"""Counts what a repair spends, and tells when its limit of seconds, gradient steps or images is reached.

Every method asks it before each piece of work. Work that is prepared before any target is known does not count.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

from tasks.errors import ConfigError

Unit = Literal["s", "steps", "images"]
ALLOWED = "Give a number above 0 and its unit: 60s (seconds), 500steps (gradient steps) or 100000images."


@dataclass(frozen=True, kw_only=True)
class Limit:
    """An amount of one unit."""

    amount: float
    unit: Unit

    def __str__(self) -> str:
        return f"{self.amount:g}{self.unit}"


def parse_limit(text: str) -> Limit:
    """`60s`, `500steps` or `100000images`. Raises ConfigError that says what is allowed."""
    match = re.fullmatch(r"\s*([0-9]+(?:_[0-9]+)*(?:\.[0-9]+)?(?:[eE][0-9]+)?)\s*([a-z]+)\s*", text)
    units = get_args(Unit)
    if match is None or match[2] not in units:
        raise ConfigError(f"budget={text!r} is no budget. {ALLOWED}")
    amount = float(match[1])
    if not 0 < amount < float("inf") or (match[2] != "s" and amount != int(amount)):
        raise ConfigError(f"budget={text!r} must be above 0, and whole for steps and images. {ALLOWED}")
    return Limit(amount=amount, unit=match[2])  # type: ignore[arg-type]  # one of units


class Budget:
    """Counts images and gradient steps as they are spent. Seconds count from its creation.

    Without a limit it counts too, and is never over.
    """

    def __init__(self, limit: Limit | None = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.limit, self.images_seen, self.gradient_steps = limit, 0, 0
        self._clock, self._started = clock, clock()

    def spend(self, *, images: int = 0, steps: int = 0) -> None:
        """Counts images that went through the DNN to learn from, and steps of an optimizer."""
        self.images_seen += images
        self.gradient_steps += steps

    @property
    def seconds(self) -> float:
        return self._clock() - self._started

    @property
    def share(self) -> float:
        """The used part of the limit, from 0 to 1; 0 without a limit."""
        if self.limit is None:
            return 0.0
        used = {"s": self.seconds, "steps": self.gradient_steps, "images": self.images_seen}[self.limit.unit]
        return min(1.0, used / self.limit.amount)

    @property
    def over(self) -> bool:
        return self.share >= 1.0

    @property
    def spent(self) -> dict[str, float]:
        """Seconds, images and steps, for a checkpoint; `go_on` takes them."""
        return {"seconds": self.seconds, "images": self.images_seen, "steps": self.gradient_steps}

    def go_on(self, *, seconds: float, images: float, steps: float) -> None:
        """Takes over what an interrupted repair had spent."""
        self.images_seen, self.gradient_steps = int(images), int(steps)
        self._started = self._clock() - seconds
