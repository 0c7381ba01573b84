"""Repair image classifiers: models, inner loop, meta-gradient, repair, evaluation, reports, command line.

In Python: `from metarepair import RepairConfig, RepairKit, repair, save_images`. All are imported on first use, so that
the help of the command line does not import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from metarepair.own_packages import import_own

if TYPE_CHECKING:
    from metarepair.config.repair import RepairConfig
    from metarepair.data.save_images import save_images
    from metarepair.repair_kit import FixedModel, RepairKit
    from metarepair.repairs.api import Repaired, repair

__all__ = ["FixedModel", "RepairConfig", "RepairKit", "Repaired", "__version__", "repair", "save_images"]
__version__ = "0.2.0"

import_own("tasks")  # so that a user's tasks.py cannot take its place

_LAZY = {
    "FixedModel": "metarepair.repair_kit",
    "RepairConfig": "metarepair.config.repair",
    "RepairKit": "metarepair.repair_kit",
    "Repaired": "metarepair.repairs.api",
    "repair": "metarepair.repairs.api",
    "save_images": "metarepair.data.save_images",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
