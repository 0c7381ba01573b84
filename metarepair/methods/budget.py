"""Count what a repair spends, and report when its limit of seconds, gradient steps or images is reached.

Every method checks its budget before each piece of work. Preparation before any target is known does not count.
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
    """The limit of a repair: an amount of one unit.

    `str(limit)` is the text that `parse_limit` takes, such as `60s`.

    Attributes:
        amount: Seconds, gradient steps or images, above 0; whole for steps and images.
        unit: `s` (seconds), `steps` (gradient steps) or `images`.
    """

    amount: float
    unit: Unit

    def __str__(self) -> str:
        return f"{self.amount:g}{self.unit}"


def parse_limit(text: str) -> Limit:
    """Return the limit that a text names, such as `60s`, `500steps` or `100000images`.

    Args:
        text: A number above 0 and its unit; `1e5images` and `100_000images` are allowed, too.

    Returns:
        The limit.

    Raises:
        ConfigError: The text has another form, the amount is not above 0, or it is not whole for steps or images.

    Example:
        >>> from metarepair.methods import parse_limit
        >>> parse_limit("60s")
        Limit(amount=60.0, unit='s')
    """
    if not isinstance(text, str):
        raise ConfigError(f"budget={text!r} is not text. {ALLOWED}")
    match = re.fullmatch(r"\s*([0-9]+(?:_[0-9]+)*(?:\.[0-9]+)?(?:[eE][0-9]+)?)\s*([a-z]+)\s*", text)
    units = get_args(Unit)
    if match is None or match[2] not in units:
        raise ConfigError(f"budget={text!r} is not a budget. {ALLOWED}")
    amount = float(match[1])
    if not 0 < amount < float("inf") or (match[2] != "s" and amount != int(amount)):
        raise ConfigError(f"budget={text!r} must be above 0, and whole for steps and images. {ALLOWED}")
    return Limit(amount=amount, unit=match[2])  # type: ignore[arg-type]  # one of units


class Budget:
    """Counts the images and gradient steps of a repair, and its seconds since the budget was created.

    Without a limit it also counts, and is never over.

    Args:
        limit: The limit of the repair; None for no limit.
        clock: Returns the time in seconds.

    Attributes:
        limit: The limit of the repair, or None.
        images_seen: Images that went through the DNN to learn from; an image counts once for each pass.
        gradient_steps: Steps of an optimizer.
    """

    def __init__(self, limit: Limit | None = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.limit, self.images_seen, self.gradient_steps = limit, 0, 0
        self._clock, self._started = clock, clock()

    def spend(self, *, images: int = 0, steps: int = 0) -> None:
        """Add to the counts.

        Args:
            images: Images that went through the DNN to learn from.
            steps: Steps of an optimizer.
        """
        self.images_seen += images
        self.gradient_steps += steps

    @property
    def seconds(self) -> float:
        """Seconds since the budget was created, with those of an interrupted repair that `go_on` was given."""
        return self._clock() - self._started

    @property
    def share(self) -> float:
        """The part of the limit that is spent, from 0 to 1; 0 without a limit."""
        if self.limit is None:
            return 0.0
        used = {"s": self.seconds, "steps": self.gradient_steps, "images": self.images_seen}[self.limit.unit]
        return min(1.0, used / self.limit.amount)

    @property
    def over(self) -> bool:
        """Whether the limit is reached; always False without a limit."""
        return self.share >= 1.0

    @property
    def spent(self) -> dict[str, float]:
        """Seconds, images and steps so far, for a checkpoint: the arguments of `go_on`."""
        return {"seconds": self.seconds, "images": self.images_seen, "steps": self.gradient_steps}

    def go_on(self, *, seconds: float, images: float, steps: float) -> None:
        """Resume from what an interrupted repair had spent.

        Args:
            seconds: Its seconds.
            images: Its images.
            steps: Its gradient steps.
        """
        self.images_seen, self.gradient_steps = int(images), int(steps)
        self._started = self._clock() - seconds
