"""Find the module, class or function that a dotted name stands for."""

from __future__ import annotations

import importlib
from typing import Any


def look_up(name: str) -> Any:
    """Return what `name` stands for, such as `tasks.corruptions.corrupt`. Raises LookupError if nothing does."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            target = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            if not hasattr(target, part):
                raise LookupError(name)
            target = getattr(target, part)
        return target
    raise LookupError(name)
