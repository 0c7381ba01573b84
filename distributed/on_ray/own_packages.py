"""Have Ray's workers import our packages, where the user has modules of the same names.

Ray puts the folder that a command was started from first on its workers' path, before what is installed. A user's
`tasks.py` there would be imported in place of our package.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from importlib.machinery import PathFinder

from metarepair.own_packages import FOLDER, NAMES

logger = logging.getLogger(__name__)


def hidden_by(path: Sequence[str]) -> dict[str, str]:
    """The names of our packages that belong to others on `path`, and the files found there."""
    found = {}
    for name in NAMES:
        spec = PathFinder.find_spec(name, path)
        # A folder without an __init__.py hides nothing: packages come before it, wherever they are on the path.
        if spec is not None and spec.origin is not None:
            ours = FOLDER / name / "__init__.py"
            if not (ours.exists() and ours.samefile(spec.origin)):
                found[name] = spec.origin
    return found


def import_ours_first() -> Callable[[], None]:
    """What each worker process calls when it starts: it imports our packages before the user's folder is on the path.

    A nested function, as Ray sends that as code: the worker may not find the module that it is from.
    """
    here, names = str(FOLDER), NAMES

    def import_ours() -> None:
        import importlib
        import sys
        from pathlib import Path

        for folder in (here, *sys.path):  # on another node ours may be elsewhere
            if all((Path(folder) / name / "__init__.py").is_file() for name in names):
                sys.path.insert(0, folder)
                for name in names:
                    importlib.import_module(name)
                sys.path.remove(folder)
                return

    return import_ours


def worker_options(folder: str, path: Sequence[str]) -> dict[str, object]:
    """Options of `ray.init` that keep our packages in place on the workers; none where nobody else has their names."""
    hidden = hidden_by([folder, *path])
    for name, file in hidden.items():
        logger.warning(
            f"{file} has the name of a package of MetaRepair: in this run, {name!r} is MetaRepair's"
        )
    return {"runtime_env": {"worker_process_setup_hook": import_ours_first()}} if hidden else {}
