"""Translate settings that had other names in older versions."""

from __future__ import annotations

from typing import Any

from tasks.errors import ConfigError

_OLD = ("clean_weight", "clean_corrupted")


def translated(values: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return plain settings with today's names, and a note on each translation.

    `train.clean_weight` w and `train.clean_corrupted` c are now shares of `train.query`: 1 − w failures, w c images of
    the environment, and w (1 − c) clean images. Raises ConfigError if both forms are given, or if a value is not from
    0 to 1.
    """
    train = values.get("train") if isinstance(values, dict) else None
    old = {key: train[key] for key in _OLD if key in train} if isinstance(train, dict) else {}
    if not old:
        return values, []
    assert isinstance(train, dict)
    if "query" in train:
        raise ConfigError(
            f"train.{next(iter(old))} is an older name for a share of train.query, and both are given. Remove it."
        )
    for key, value in old.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            raise ConfigError(
                f"train.{key}={value!r} must be a number from 0 to 1. Give train.query instead."
            )
    weight, corrupted = (float(old.get(key, 0)) for key in _OLD)
    if corrupted and not weight:
        raise ConfigError(
            f"train.clean_corrupted={corrupted} is a share of the images that train.clean_weight weighs, and that is "
            "0. Give train.query instead."
        )
    shares = {"failures": 1 - weight, "environment": weight * corrupted, "clean": weight * (1 - corrupted)}
    query = {key: share for key, share in shares.items() if key == "failures" or share}
    new = {key: value for key, value in train.items() if key not in _OLD} | {"query": query}
    words = ", ".join(f"{key}: {share:g}" for key, share in query.items())
    note = f"{' and '.join(f'train.{key}' for key in old)}: now written as train.query: {{{words}}}"
    return values | {"train": new}, [note]
