"""An import path `package.module:factory` in, the user's own nn.Module out; what can go wrong is told by name."""

from __future__ import annotations

import importlib
import inspect
import os
import re
import sys
from types import ModuleType
from typing import Any

from torch import nn

from metarepair.models.wrappers import unwrapped
from tasks.errors import ConfigError, near_names

TIMM = "timm:"
_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


def is_import_path(name: str) -> bool:
    """Whether `name` is of the form module:FACTORY; `timm:NAME` is not."""
    return ":" in name and not name.startswith(TIMM)


def put_current_folder_on_path() -> None:
    """Makes modules of the current folder importable, in the driver and in its workers.

    An installed command has its own folder first on the path, not the user's. Workers of a Ray on this machine run in
    the driver's current folder, those of a job with a working_dir in a copy of that.
    """
    folder = os.getcwd()  # noqa: PTH109  sys.path holds strings
    if folder not in sys.path:
        sys.path.insert(0, folder)


def build_from_factory(path: str, num_classes: int) -> nn.Module:
    """Calls the factory at `path`, with num_classes where it takes it.

    Raises ConfigError where it is not found, raises, or returns anything but a module with parameters.
    """
    factory = find_factory(path)
    arguments = {"num_classes": num_classes} if _takes_num_classes(factory) else {}
    try:
        module = factory(**arguments)
    except (Exception, SystemExit) as error:
        given = f"num_classes={num_classes}" if arguments else ""
        raise ConfigError(
            f"model.name={path!r}: {path.partition(':')[2]}({given}) raised {type(error).__name__}: {error}. "
            "It is called without anything else; give those arguments defaults, or name a function that sets them."
        ) from error
    if not isinstance(module, nn.Module):
        raise ConfigError(
            f"model.name={path!r} returned {type(module).__name__}, not a torch.nn.Module. Name a function or "
            "class that returns the classifier."
        )
    module = unwrapped(module)
    if next(module.parameters(), None) is None:
        raise ConfigError(
            f"model.name={path!r} returned a module without parameters: nothing can be repaired."
        )
    return module


def find_factory(path: str) -> Any:
    """The callable at an import path; the current folder is on the path. Raises ConfigError."""
    if not _PATH.fullmatch(path):
        module, _, name = path.partition(":")
        hint = module.strip("./").removesuffix(".py").replace("/", ".")
        written = f"{hint or 'package.module'}:{name or 'factory'}"
        example = written if _PATH.fullmatch(written) else "examples.cifar_resnets:resnet20"
        raise ConfigError(
            f"model.name={path!r} is neither a timm name nor an import path. An import path is package.module:factory, "
            f"as in {example}"
        )
    where, _, attribute = path.partition(":")
    found: Any = _import(where, path)
    for name in attribute.split("."):
        if not hasattr(found, name):
            known = [n for n in dir(found) if not n.startswith("_")]
            raise ConfigError(
                f"model.name={path!r}: {where} has no {name!r}{near_names(name, known) or '.'} It has: "
                f"{', '.join(known[:20]) or 'nothing'}"
            )
        found = getattr(found, name)
    if isinstance(found, nn.Module) or not callable(found):
        raise ConfigError(
            f"model.name={path!r} is {type(found).__name__}, not a function or class that returns the "
            "classifier. Write one: `def build(num_classes): return …`."
        )
    return found


def _import(where: str, path: str) -> ModuleType:
    put_current_folder_on_path()
    try:
        return importlib.import_module(where)
    except ModuleNotFoundError as error:
        if error.name is not None and (where == error.name or where.startswith(f"{error.name}.")):
            raise ConfigError(
                f"model.name={path!r}: there is no module {error.name!r} in the current folder ({os.getcwd()}), "  # noqa: PTH109
                "on PYTHONPATH, or installed. Start from the folder that holds it, or set PYTHONPATH (on a cluster: "
                "a working_dir in the job's runtime environment)."
            ) from error
        raise ConfigError(
            f"model.name={path!r}: {where} imports {error.name!r}, which is not installed here. Install it into "
            "this environment (on a cluster: on every node)."
        ) from error
    except (Exception, SystemExit) as error:
        raise ConfigError(
            f"model.name={path!r}: importing {where} raised {type(error).__name__}: {error}. Mend the module; it is "
            "imported by every worker, so it should define things and do nothing."
        ) from error


def _takes_num_classes(factory: Any) -> bool:
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError):  # a callable of C has no signature to read
        return False
    keywords = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    return keywords or "num_classes" in parameters
