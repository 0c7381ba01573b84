"""Import the packages that are installed beside this one, where something else on the path has their name.

`tasks` and `distributed` are names that others use, too: Celery's users have a `tasks.py`, Dask has `distributed`.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

FOLDER = Path(__file__).parents[1]
NAMES = ("tasks", "metarepair", "distributed")


def import_own(name: str) -> None:
    """Imports our package `name` from beside this one, whatever else on the path is called so.

    Raises ImportError where another module of the name has been imported before, or has taken the package's place.
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
            f"MetaRepair's package {name!r} is hidden by another module of that name ({found}). Rename that, or do "
            "not import it in the same program.",
            name=name,
        )
