"""Errors in what the user gave. Each message says what came, what is allowed, and what to do.

    UserError                 the input is wrong (exit code 2)
    ├── ConfigError           a setting: unknown, of the wrong type, out of range
    ├── DataError             images, labels, stores: missing, truncated, of another layout
    ├── WeightsError          weights: missing, of another DNN, not safetensors
    ├── TooFewFailuresError   fewer failures than asked to collect
    ├── StageError            a stage's folder holds something else, or is unfinished when it must be finished
    ├── LockError             another process is writing in the run, or took it over
    ├── StorageError          an object store: unreachable, no such bucket, not permitted
    ├── WorkerError           a worker was lost repeatedly, or Ray itself failed
    └── DivergedError         a loss became NaN or infinite

All are built from one string, so they pickle and leave an actor unharmed.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "ConfigError",
    "DataError",
    "DivergedError",
    "LockError",
    "StageError",
    "StorageError",
    "TooFewFailuresError",
    "UserError",
    "WeightsError",
    "WorkerError",
]


class UserError(Exception):
    """The user's input is wrong. The message is one paragraph and needs no traceback."""


class ConfigError(UserError):
    """A setting is unknown, of the wrong type, or out of range."""


class DataError(UserError):
    """Images, labels or a store are missing, truncated, or of another layout."""


class WeightsError(UserError):
    """Weights are missing, belong to another DNN, or are not in a safe format."""


class TooFewFailuresError(UserError):
    """An environment has fewer failures than asked to collect."""


class StorageError(UserError):
    """An object store cannot be reached, or refuses access."""


class StageError(UserError):
    """A stage's folder holds something else, or is unfinished when it must be finished."""


class LockError(UserError):
    """Another process is writing in the run, or took it over."""


class WorkerError(UserError):
    """A worker was lost repeatedly during one piece of work, or Ray itself failed."""


class DivergedError(UserError):
    """A loss became NaN or infinite."""


def near_names(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the nearest known names, or an empty string."""
    near = difflib.get_close_matches(name, list(known), n=2, cutoff=0.6)
    return f"; did you mean {' or '.join(repr(n) for n in near)}?" if near else ""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> str:
    """`no corruption 'gausian_noise'; did you mean 'gaussian_noise'? There are: brightness, …`."""
    names = sorted(known)
    hint = near_names(name, names) or "."
    return f"no {kind} {name!r}{hint} There are: {', '.join(names)}"


def unreadable(path: object, error: Exception) -> str:
    """`PATH cannot be read (…)` for an error of the system, `PATH is damaged (…)` for an error in the content."""
    if isinstance(error, OSError):
        return f"{path} cannot be read ({error.strerror or error})"
    return f"{path} is damaged ({f'it lacks {error}' if isinstance(error, KeyError) else error})"
