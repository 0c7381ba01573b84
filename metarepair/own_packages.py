"""Import MetaRepair's own packages even if another module on the path has the same name.

Other projects use the names `tasks` and `distributed` too: Celery projects have a `tasks.py`, Dask has `distributed`.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

FOLDER = Path(__file__).parents[1]
NAMES = ("tasks", "metarepair", "distributed")


def import_own(name: str) -> None:
    """Import the package `name` from the folder that holds this one, ahead of any other module of that name.

    Raises ImportError if another module of that name was imported before, or is found in its place.
    """
    if name not in sys.modules:
        sys.path.insert(0, str(FOLDER))
        try:
            importlib.import_module(name)
        finally:
            sys.path.remove(str(FOLDER))
    found = getattr(sys.modules[name], "__file__", None)
    if found is None or not Path(found).samefile(FOLDER / name / "__init__.py"):
        raise ImportError(
            f"MetaRepair's package {name!r} is hidden by another module of that name ({found}). Rename the other "
            "module, or do not import it in the same program.",
            name=name,
        )
