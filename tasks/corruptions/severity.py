"""The constants of every corruption at every severity, from the published tables.

The three tables hold the published constants for images of 32, 64 and 224 pixels.
Source: github.com/hendrycks/robustness, ImageNet-C/create_c (Apache-2.0); only its numbers are taken.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources

import numpy as np
from numpy.typing import NDArray

from tasks.errors import ConfigError, unknown_name
from tasks.storage.paths import parse_json

TABLES = ("cifar", "tinyimagenet", "imagenet")
SEVERITIES = (1, 2, 3, 4, 5)

# Grey levels in 0..255 before clipping and truncation. This scale, unlike 0..1, returns a pixel that a
# corruption leaves alone exactly as it was.
Levels = NDArray[np.float32]
FiveSeverities = tuple[tuple[float, ...], ...]
# A thousandth of a level, added before truncation, so that float32 rounding cannot lower a whole level.
NUDGE = 2.0**-10


@dataclass(frozen=True, kw_only=True)
class Dose:
    """What the function that applies a corruption needs besides the pixels.

    constants: the constants of this severity, in the order of the table's `params`.
    native_size: the image size in pixels that the table was made for.
    frost_scale: the factor by which the table shrinks the frost textures.
    rngs: the generator of each image, in the order of the batch. It is one object, reset for each image, so draw all
        numbers of an image before those of the next.
    """

    constants: tuple[float, ...]
    native_size: int
    frost_scale: float
    rngs: Iterator[np.random.Generator]


@dataclass(frozen=True, kw_only=True)
class SeverityTable:
    """The content of one JSON file: constants by published name, and the sizes they were made for."""

    constants: dict[str, FiveSeverities]
    native_size: int
    frost_scale: float


def load_table(table: str) -> SeverityTable:
    """Load one of the shipped tables. Raises ConfigError for an unknown name."""
    if table not in TABLES:
        raise ConfigError(unknown_name("severity table", str(table), TABLES))
    return _read_table(table)


@functools.cache
def _read_table(table: str) -> SeverityTable:
    text = resources.files("tasks.corruptions").joinpath(f"severity_{table}.json").read_text("utf-8")
    content = parse_json(text)
    meta = content.pop("_meta")
    return SeverityTable(
        constants={
            name: tuple(tuple(float(c) for c in row) for row in entry["severity"])
            for name, entry in content.items()
        },
        native_size=int(meta["image_size"]),
        frost_scale=float(meta["frost_resize"]),
    )


def severity_table(table: str = "cifar") -> dict[str, FiveSeverities]:
    """Load the constants of all corruptions.

    Args:
        table: cifar (made for 32 px), tinyimagenet (64 px) or imagenet (224 px).

    Returns:
        For each published name, five tuples of constants, severity 1 first. The dict is a copy.

    Raises:
        ConfigError: there is no such table.

    Example:
        >>> severity_table("cifar")["contrast"]
        ((0.75,), (0.5,), (0.4,), (0.3,), (0.15,))

    Source: github.com/hendrycks/robustness, ImageNet-C/create_c (Apache-2.0).
    """
    return dict(load_table(table).constants)


def constants_at(table: str, *, corruption: str, severity: int) -> tuple[float, ...]:
    """The constants of one corruption at one severity. Raises ConfigError for a severity outside 1..5."""
    check_severity(severity)
    return load_table(table).constants[corruption][int(severity) - 1]


def check_severity(severity: int) -> None:
    """Raise ConfigError unless the severity is an integer in 1..5."""
    if isinstance(severity, bool) or not isinstance(severity, int | np.integer):
        raise ConfigError(f"severity={severity!r} is not an integer; give one of 1..5")
    if severity not in SEVERITIES:
        raise ConfigError(f"severity={severity} is outside 1..5; give one of these")
