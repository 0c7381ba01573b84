"""Build a user's own nn.Module from an import path, `package.module:factory`."""

from __future__ import annotations

import importlib
import inspect
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from torch import nn

from metarepair.config.kit import PYTHON
from metarepair.models.wrappers import copied, unwrapped
from metarepair.weights.hub import EXAMPLE, KINDS
from tasks.errors import ConfigError, near_names

_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


def is_import_path(name: str) -> bool:
    """Whether `name` has the form module:FACTORY; `timm:NAME` and the names of hubs do not."""
    return ":" in name and not name.startswith(KINDS)


def put_current_folder_on_path() -> None:
    """Make modules of the current folder importable, in the driver and in its workers.

    An installed command has its own folder first on the path, not the user's. Workers of a local Ray run in the
    driver's current folder, those of a job with a working_dir in a copy of that folder.
    """
    folder = os.getcwd()  # noqa: PTH109  sys.path holds strings
    if folder not in sys.path:
        sys.path.insert(0, folder)


_given: dict[str, nn.Module] = {}


@contextmanager
def given_as(name: str, module: nn.Module) -> Iterator[None]:
    """Let `python:CLASS`, as the name of a DNN, stand for a copy of `module` in this process during the block."""
    before = _given.get(name)
    _given[name] = module
    try:
        yield
    finally:
        if before is None:
            del _given[name]
        else:
            _given[name] = before


def _given_module(name: str) -> nn.Module:
    if name not in _given:
        raise ConfigError(
            f"model.name={name!r}: this DNN was given as a module in Python. Give it again (RepairKit.load(folder, "
            "model=…)), or name its import path, module:FACTORY (--model)."
        )
    return copied(_given[name])


def build_from_factory(path: str, num_classes: int) -> nn.Module:
    """Call the factory at `path`, with num_classes if it takes that argument, and return the module.

    Raises ConfigError if the factory is not found, raises, or returns anything but a module with parameters.
    """
    if path.startswith(PYTHON):
        return _given_module(path)
    factory = find_factory(path)
    arguments = {"num_classes": num_classes} if _takes_num_classes(factory) else {}
    try:
        module = factory(**arguments)
    except (Exception, SystemExit) as error:
        given = f"num_classes={num_classes}" if arguments else ""
        raise ConfigError(
            f"model.name={path!r}: {path.partition(':')[2]}({given}) raised {type(error).__name__}: {error}. "
            "It is called with no other arguments; give those defaults, or name a function that sets them."
        ) from error
    if not isinstance(module, nn.Module):
        raise ConfigError(
            f"model.name={path!r} returned {type(module).__name__}, not a torch.nn.Module. Name a function or "
            "class that returns the classifier."
        )
    module = unwrapped(module)
    if next(module.parameters(), None) is None:
        raise ConfigError(
            f"model.name={path!r} returned a module without parameters, so there is nothing to repair."
        )
    return module


def find_factory(path: str) -> Any:
    """Return the callable at an import path, also in the current folder. Raises ConfigError if there is none."""
    if not _PATH.fullmatch(path):
        module, _, name = path.partition(":")
        hint = module.strip("./").removesuffix(".py").replace("/", ".")
        written = f"{hint or 'package.module'}:{name or 'factory'}"
        example = written if _PATH.fullmatch(written) else "examples.cifar_resnets:resnet20"
        raise ConfigError(
            f"model.name={path!r} is neither a timm name nor an import path, nor of a hub, as {EXAMPLE}"
            f"{near_names(module, [kind.rstrip(':') for kind in KINDS]) or '.'} An import path is "
            f"package.module:factory, as in {example}"
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
                "on PYTHONPATH, or installed. Start in the folder that holds it, or set PYTHONPATH (on a cluster: "
                "a working_dir in the job's runtime environment)."
            ) from error
        raise ConfigError(
            f"model.name={path!r}: {where} imports {error.name!r}, which is not installed here. Install it into "
            "this environment (on a cluster: on every node)."
        ) from error
    except (Exception, SystemExit) as error:
        raise ConfigError(
            f"model.name={path!r}: importing {where} raised {type(error).__name__}: {error}. Fix the module; every "
            "worker imports it, so it should only define functions and classes."
        ) from error


def _takes_num_classes(factory: Any) -> bool:
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError):  # a callable written in C has no readable signature
        return False
    keywords = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    return keywords or "num_classes" in parameters
