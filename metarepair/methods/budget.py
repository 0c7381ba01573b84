"""Count what a repair spends, and report when its limit is reached: seconds, core-seconds, gradient steps or images.

Every method checks its budget before each piece of work. What is prepared before any target is known has a budget of
its own.
Core-seconds are the processor time of all threads of this process, so two busy cores spend two in a second.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from metarepair.engine.passes import Passes
from metarepair.runs.amounts import read_amount
from tasks.errors import ConfigError

Unit = Literal["s", "core-s", "steps", "images"]
ALLOWED = (
    "Give a number above 0 and its unit: 60s (seconds), 60core-s (processor time), 500steps (gradient steps) or "
    "100000images. Minutes and hours are taken as seconds: 10m or 10min, 1h."
)


@dataclass(frozen=True, kw_only=True)
class Limit:
    """The limit of a repair: an amount of one unit.

    `str(limit)` is the text that `parse_limit` takes, such as `60s`.

    Attributes:
        amount: Seconds, core-seconds, gradient steps or images, above 0; whole for steps and images.
        unit: `s` (seconds), `core-s` (processor time), `steps` (gradient steps) or `images`.
    """

    amount: float
    unit: Unit

    def __str__(self) -> str:
        return f"{self.amount:g}{self.unit}"


def parse_limit(text: str) -> Limit:
    """Return the limit that a text names, such as `60s`, `500steps` or `100000images`.

    Args:
        text: A number above 0 and its unit; `1e5images` and `100_000images` are allowed, too. `m` or `min` (minutes)
            and `h` (hours) are taken as seconds.

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
    found = read_amount(text)
    if found is None or found[1] not in get_args(Unit):
        raise ConfigError(f"budget={text!r} is not a budget. {ALLOWED}")
    amount, unit = found
    if not 0 < amount < float("inf") or (unit in ("steps", "images") and amount != int(amount)):
        raise ConfigError(f"budget={text!r} must be above 0, and whole for steps and images. {ALLOWED}")
    return Limit(amount=amount, unit=unit)  # type: ignore[arg-type]  # one of Unit


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a repair, or a preparation, took.

    Attributes:
        seconds: Seconds from its start to its end.
        core_seconds: Processor seconds of all its threads and processes.
        forward_images: Images that went through the DNN for any purpose; an image counts once for each pass.
        backward_images: Images whose logits were differentiated; an image counts once for each derivative.
    """

    seconds: float = 0.0
    core_seconds: float = 0.0
    forward_images: int = 0
    backward_images: int = 0

    def as_json(self) -> dict[str, float | None]:
        """Return plain values; None for core-seconds that are not known."""
        return {key: None if math.isnan(value) else value for key, value in asdict(self).items()}

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            seconds=self.seconds + other.seconds,
            core_seconds=self.core_seconds + other.core_seconds,
            forward_images=self.forward_images + other.forward_images,
            backward_images=self.backward_images + other.backward_images,
        )


def core_seconds_budget(core_seconds: float | None) -> Budget:
    """Return the budget of a preparation: processor time; None for no limit."""
    return Budget(None if core_seconds is None else Limit(amount=core_seconds, unit="core-s"))


def cost_of(facts: Mapping[str, Any]) -> Cost:
    """Return the cost among the facts of a manifest; NaN core-seconds if an older one has no more than the seconds."""
    given = {field.name: facts[field.name] for field in fields(Cost) if field.name in facts}
    return Cost(**{"core_seconds": math.nan} | given)


class Budget:
    """Counts the images and gradient steps of a repair, and its seconds since the budget was created.

    Without a limit it also counts, and is never over.

    Args:
        limit: The limit of the repair; None for no limit.
        clock: Returns the time in seconds that a limit of seconds is for.

    Attributes:
        limit: The limit of the repair, or None.
        images_seen: Images that went through the DNN to learn from; an image counts once for each pass.
        gradient_steps: Steps of an optimizer.
        passes: Images that went through the DNN for any purpose, forward and backward.
    """

    def __init__(self, limit: Limit | None = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.limit, self.images_seen, self.gradient_steps = limit, 0, 0
        self.passes = Passes()
        self._clock, self._started, self._cores_started = clock, clock(), time.process_time()

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
    def core_seconds(self) -> float:
        """Processor seconds of this process since then, with those of an interrupted repair."""
        return time.process_time() - self._cores_started

    @property
    def share(self) -> float:
        """The part of the limit that is spent, from 0 to 1; 0 without a limit."""
        if self.limit is None:
            return 0.0
        used = {
            "s": self.seconds,
            "core-s": self.core_seconds,
            "steps": self.gradient_steps,
            "images": self.images_seen,
        }
        return min(1.0, used[self.limit.unit] / self.limit.amount)

    @property
    def over(self) -> bool:
        """Whether the limit is reached; always False without a limit."""
        return self.share >= 1.0

    def cost(self) -> Cost:
        """Return what was spent so far."""
        return Cost(
            seconds=self.seconds,
            core_seconds=self.core_seconds,
            forward_images=self.passes.forward,
            backward_images=self.passes.backward,
        )

    @property
    def spent(self) -> dict[str, float]:
        """Seconds, images, steps, passes and core-seconds so far, for a checkpoint: the arguments of `go_on`."""
        return {
            "seconds": self.seconds,
            "images": self.images_seen,
            "steps": self.gradient_steps,
            "forward": self.passes.forward,
            "backward": self.passes.backward,
            "core_seconds": self.core_seconds,
        }

    def go_on(
        self,
        *,
        seconds: float,
        images: float,
        steps: float,
        forward: float = 0,
        backward: float = 0,
        core_seconds: float = 0,
    ) -> None:
        """Resume from what an interrupted repair had spent.

        Args:
            seconds: Its seconds.
            images: Its images.
            steps: Its gradient steps.
            forward: Images of its forward passes.
            backward: Images of its backward passes.
            core_seconds: Its core-seconds.
        """
        self.images_seen, self.gradient_steps = int(images), int(steps)
        self.passes.forward, self.passes.backward = int(forward), int(backward)
        self._started = self._clock() - seconds
        self._cores_started = time.process_time() - core_seconds


class BudgetPart(Budget):
    """A part of a budget, from what is spent now to `end` (a share of the rest), as a budget of its own.

    What is spent here is also spent in the whole budget.
    """

    def __init__(self, whole: Budget, *, end: float = 1.0) -> None:
        super().__init__(whole.limit)
        super().go_on(**whole.spent)
        self.passes = whole.passes
        self._whole, self._begin, self._end = whole, whole.share, whole.share + (1 - whole.share) * end

    def spend(self, *, images: int = 0, steps: int = 0) -> None:
        super().spend(images=images, steps=steps)
        self._whole.spend(images=images, steps=steps)

    @property
    def share(self) -> float:
        """The share of this part that is spent, from 0 to 1; 0 without a limit."""
        if self.limit is None:
            return 0.0
        room, used = self._end - self._begin, self._whole.share - self._begin
        return min(1.0, max(0.0, used / room)) if room > 0 else 1.0

    def go_on(self, **spent: float) -> None:
        super().go_on(**spent)
        self._whole.go_on(**spent)
