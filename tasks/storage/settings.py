"""The settings that a stage records, and their comparison with those of an older run.

Settings are recorded in full. One rule serves runs of older versions: a key that their record lacks counts as its
default.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


class Settings(dict[str, Any]):
    """A group of settings as plain values, possibly with nested groups; `defaults` of the keys that have one."""

    def __init__(self, values: Mapping[str, Any], *, defaults: Mapping[str, Any]) -> None:
        super().__init__(values)
        self.defaults = dict(defaults)

    def __or__(self, other: Mapping[str, Any]) -> Settings:  # type: ignore[override]  # dict's loses the defaults
        return Settings({**self, **other}, defaults=self.defaults)


def changes(recorded: Mapping[str, Any], settings: Mapping[str, Any]) -> list[str]:
    """`train.episodes: 20 -> 60` for every setting that differs from a record, which may lack newer keys."""
    return difference(_filled(recorded, settings), plain(settings))


def _filled(recorded: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The record, completed by the defaults of keys that only `settings` has; lists are left as they are."""
    defaults = settings.defaults if isinstance(settings, Settings) else {}
    filled = dict(recorded)
    for key, value in settings.items():
        held = recorded.get(
            key, {} if isinstance(value, Settings) else None
        )  # a missing group lacks each of its keys
        if isinstance(value, Mapping) and isinstance(held, Mapping):
            filled[key] = _filled(held, value)
        elif key not in recorded and key in defaults:
            filled[key] = defaults[key]
    return filled


def difference(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """`train.episodes: 20 -> 60` for every setting in which two plain configurations differ."""
    lines = []
    for key in sorted(old.keys() | new.keys()):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            lines += difference(a, b, f"{prefix}{key}.")
        elif a != b:
            lines.append(f"{prefix}{key}: {a} -> {b}")
    return lines


def plain(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content as it reads back from JSON (tuples become lists)."""
    read_back: dict[str, Any] = json.loads(json.dumps(content))
    return read_back
