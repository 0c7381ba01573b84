"""The name of a table in, the constants of every corruption at every severity out.

The three tables hold the published constants for images of 32, 64 and 224 pixels.
Source: github.com/hendrycks/robustness, ImageNet-C/create_c (Apache-2.0); only its numbers are taken.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources

import numpy as np
from numpy.typing import NDArray

from tasks.errors import ConfigError, unknown_name

TABLES = ("cifar", "tinyimagenet", "imagenet")
SEVERITIES = (1, 2, 3, 4, 5)

# Grey levels on the scale 0..255, before they are clipped and truncated. Kept on this scale rather than
# on 0..1 so that a pixel that a corruption leaves alone comes out exactly as it went in.
Levels = NDArray[np.float32]
FiveSeverities = tuple[tuple[float, ...], ...]
# A thousandth of a level, added before the fraction is cut off: float32 must not round a whole level below itself.
NUDGE = 2.0**-10


@dataclass(frozen=True, kw_only=True)
class Dose:
    """How much of a corruption: what an apply function needs besides the pixels.

    constants: the tuple of this severity, in the order of the table's `params`
    native_size: the image size in pixels that the table was made for
    frost_scale: the factor by which the table shrinks the frost textures
    rngs: the generator of each image, in the order of the batch; the same object turned to the next image,
        so draw all of an image's numbers before the next image's
    """

    constants: tuple[float, ...]
    native_size: int
    frost_scale: float
    rngs: Iterator[np.random.Generator]


@dataclass(frozen=True, kw_only=True)
class SeverityTable:
    """One JSON file: constants by published name, and the sizes they were made for."""

    constants: dict[str, FiveSeverities]
    native_size: int
    frost_scale: float


def load_table(table: str) -> SeverityTable:
    """A table of the package; an unknown name is a ConfigError."""
    if table not in TABLES:
        raise ConfigError(unknown_name("severity table", str(table), TABLES))
    return _read_table(table)


@functools.cache
def _read_table(table: str) -> SeverityTable:
    text = resources.files("tasks.corruptions").joinpath(f"severity_{table}.json").read_text("utf-8")
    content = json.loads(text)
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
    """Published name -> five tuples of constants, severity 1 first. The caller owns the dict."""
    return dict(load_table(table).constants)


def constants_at(table: str, *, corruption: str, severity: int) -> tuple[float, ...]:
    """The constants of one corruption at one severity; outside 1..5 is a ConfigError."""
    check_severity(severity)
    return load_table(table).constants[corruption][int(severity) - 1]


def check_severity(severity: int) -> None:
    """Anything but a whole number of 1..5 is a ConfigError."""
    if isinstance(severity, bool) or not isinstance(severity, int | np.integer):
        raise ConfigError(f"severity={severity!r} is no whole number; give one of 1..5")
    if severity not in SEVERITIES:
        raise ConfigError(f"severity={severity} is outside 1..5; give one of these")
