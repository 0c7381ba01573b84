"""Finds a repair method by its name: our own, and those of other packages by their entry points."""

from __future__ import annotations

from functools import cache
from importlib.metadata import entry_points
from typing import Any, TypeVar, get_args

from pydantic import ValidationError

from metarepair.adaptation.repair_data import Uses
from metarepair.config.load import explain
from metarepair.config.repair import AnyConfig
from metarepair.config.section import Section
from metarepair.methods.base import Method
from tasks.errors import ConfigError, unknown_name

GROUP = "metarepair.methods"
DECLARED = ("name", "words", "uses", "changes", "cost")
METHODS: dict[str, Method] = {}
MethodClass = TypeVar("MethodClass", bound=type[Method])


def register(cls: MethodClass) -> MethodClass:
    """Adds a method class to the registry by its name."""
    METHODS[cls.name] = cls()
    return cls


def all_methods() -> dict[str, Method]:
    """The project's methods, then those of other packages. Raises ConfigError for a package whose method is none."""
    return METHODS | _of_other_packages()


@cache
def _of_other_packages() -> dict[str, Method]:
    found = dict[str, Method]()
    for point in entry_points(group=GROUP):
        whose = f"the entry point {point.name!r} = {point.value!r} (group {GROUP})"
        try:
            cls = point.load()
        except Exception as error:
            raise ConfigError(
                f"{whose} cannot be loaded ({type(error).__name__}: {error}). Mend or uninstall its package."
            ) from error
        if not (isinstance(cls, type) and issubclass(cls, Method)):
            raise ConfigError(f"{whose} is no class that subclasses metarepair.methods.Method.")
        missing = [key for key in DECLARED if not hasattr(cls, key)] + sorted(cls.__abstractmethods__)
        if missing:
            raise ConfigError(
                f"{whose} has no {missing[0]!r}. A method declares {', '.join(DECLARED)}, and has a `repair`."
            )
        unknown = [word for word in cls.uses if word not in get_args(Uses)]
        if unknown:
            raise ConfigError(f"{whose}: {unknown_name('word of `uses`', unknown[0], get_args(Uses))}")
        if cls.name in METHODS or cls.name in found:
            raise ConfigError(
                f"{whose} takes the name {cls.name!r} of another method. Rename or uninstall it."
            )
        found[cls.name] = cls()
    return found


def get_method(name: str) -> Method:
    """The method `name`. Raises ConfigError with near names for an unknown one."""
    if not isinstance(name, str):
        raise ConfigError(f"method={name!r} is no name. There are: {', '.join(sorted(all_methods()))}")
    found = METHODS.get(name) or all_methods().get(name)
    if found is None:
        raise ConfigError(unknown_name("repair method", name, all_methods()))
    return found


def method_settings(name: str, settings: dict[str, Any]) -> Section:
    """A method's own settings, checked. Raises ConfigError with near names for an unknown key."""
    group = get_method(name).Settings
    try:
        return group.model_validate(settings)
    except ValidationError as error:
        raise ConfigError(
            explain(error, "the configuration", root=group, above=f"methods.{name}.")
        ) from error


def settings_of(config: AnyConfig, name: str) -> Section:
    """The settings of the method `name` in a configuration, checked."""
    return method_settings(name, config.methods.get(name, {}))


def check_method_settings(config: AnyConfig) -> None:
    """The settings under `methods`, of all that are named there. Raises ConfigError with near names."""
    for name in config.methods:
        if name not in all_methods():
            raise ConfigError(f"methods: {unknown_name('repair method', name, all_methods())}")
        settings_of(config, name)
