"""How a DNN is repaired: models, inner loop, meta-gradient, repair, evaluation, reports, command line.

In Python: `from metarepair import RepairConfig, repair`. Both are imported when they are first asked for, so that
the command line's help needs no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from metarepair.own_packages import import_own

if TYPE_CHECKING:
    from metarepair.config.repair import RepairConfig
    from metarepair.repairs.api import Repaired, repair

__all__ = ["RepairConfig", "Repaired", "__version__", "repair"]
__version__ = "0.1.0"

import_own("tasks")  # before a user's tasks.py is found in its place

_LAZY = {
    "RepairConfig": "metarepair.config.repair",
    "Repaired": "metarepair.repairs.api",
    "repair": "metarepair.repairs.api",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    found = getattr(import_module(_LAZY[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
