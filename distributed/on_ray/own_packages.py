"""Make Ray's workers import our packages even if the user has modules of the same names.

Ray puts the folder that a command was started from first on its workers' path, before the installed packages. A user's
`tasks.py` there would be imported in place of our package.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from importlib.machinery import PathFinder

from metarepair.own_packages import FOLDER, NAMES

logger = logging.getLogger(__name__)


def hidden_by(path: Sequence[str]) -> dict[str, str]:
    """The names of our packages that `path` resolves to other files, with those files."""
    hidden = {}
    for name in NAMES:
        spec = PathFinder.find_spec(name, path)
        # A folder without an __init__.py hides nothing: a regular package anywhere on the path takes precedence.
        if spec is not None and spec.origin is not None:
            ours = FOLDER / name / "__init__.py"
            if not (ours.exists() and ours.samefile(spec.origin)):
                hidden[name] = spec.origin
    return hidden


def import_ours_first() -> Callable[[], None]:
    """The start-up hook of each worker process. It imports our packages before the user's folder is on the path.

    It is a nested function because Ray sends those as code: the worker may be unable to import this module.
    """
    here, names = str(FOLDER), NAMES

    def import_ours() -> None:
        import importlib
        import sys
        from pathlib import Path

        for folder in (here, *sys.path):  # on another node, our packages may be elsewhere
            if all((Path(folder) / name / "__init__.py").is_file() for name in names):
                sys.path.insert(0, folder)
                for name in names:
                    importlib.import_module(name)
                sys.path.remove(folder)
                return

    return import_ours


def worker_options(folder: str, path: Sequence[str]) -> dict[str, object]:
    """Options of `ray.init` that make workers import our packages; empty if no other module has their names."""
    hidden = hidden_by([folder, *path])
    for name, file in hidden.items():
        logger.warning(f"{file} has the name of a MetaRepair package; in this run, {name!r} is MetaRepair's")
    return {"runtime_env": {"worker_process_setup_hook": import_ours_first()}} if hidden else {}
