"""Find a repair method by its name: this project's own, and those of other packages by their entry points."""

from __future__ import annotations

from collections.abc import Sequence
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
    """Add a method class to the registry under its name, and return the class (a decorator)."""
    METHODS[cls.name] = cls()
    return cls


def all_methods() -> dict[str, Method]:
    """Return all repair methods: this project's own, then those of other packages.

    Returns:
        One instance of each method, by name.

    Raises:
        ConfigError: The entry point of another package cannot be loaded, is not a complete Method, or takes the name
            of another method.
    """
    return METHODS | _of_other_packages()


@cache
def _of_other_packages() -> dict[str, Method]:
    methods = dict[str, Method]()
    for point in entry_points(group=GROUP):
        source = f"the entry point {point.name!r} = {point.value!r} (group {GROUP})"
        try:
            cls = point.load()
        except (Exception, SystemExit) as error:
            raise ConfigError(
                f"{source} cannot be loaded ({type(error).__name__}: {error}). Fix or uninstall its package."
            ) from error
        if not (isinstance(cls, type) and issubclass(cls, Method)):
            raise ConfigError(
                f"{source} is not a subclass of metarepair.methods.Method. Name such a class, or uninstall its package."
            )
        missing = [key for key in DECLARED if not hasattr(cls, key)] + sorted(cls.__abstractmethods__)
        if missing:
            raise ConfigError(
                f"{source} has no {missing[0]!r}. A method declares {', '.join(DECLARED)}, and defines `repair`."
            )
        unknown = [word for word in cls.uses if word not in get_args(Uses)]
        if unknown:
            raise ConfigError(f"{source}: {unknown_name('word of `uses`', unknown[0], get_args(Uses))}")
        if cls.name in METHODS or cls.name in methods:
            raise ConfigError(
                f"{source} takes the name {cls.name!r} of another method. Rename or uninstall it."
            )
        try:
            methods[cls.name] = cls()
        except Exception as error:
            raise ConfigError(
                f"{source} cannot be called without arguments ({type(error).__name__}: {error}). Fix or uninstall its "
                "package."
            ) from error
    return methods


def get_method(name: str) -> Method:
    """Return the repair method of this name.

    Args:
        name: A name of this project's methods or of another package's.

    Returns:
        The method, the same instance for every call.

    Raises:
        ConfigError: No method has this name (the message gives the nearest ones), or the entry point of another
            package is broken.

    Example:
        >>> from metarepair.methods import get_method
        >>> get_method("bn_adapt").changes
        ('statistics',)
    """
    if not isinstance(name, str):
        raise ConfigError(f"method={name!r} is not a name. There are: {', '.join(sorted(all_methods()))}")
    method = METHODS.get(name) or all_methods().get(name)
    if method is None:
        raise ConfigError(unknown_name("repair method", name, all_methods()))
    return method


def method_settings(name: str, settings: dict[str, Any]) -> Section:
    """Check a method's own settings.

    Args:
        name: The method.
        settings: Its settings by key; what is not given has its default.

    Returns:
        The settings as an instance of the method's `Settings`.

    Raises:
        ConfigError: There is no such method or key (the message has the nearest names), or a value is wrong.
    """
    group = get_method(name).Settings
    try:
        return group.model_validate(settings)
    except ValidationError as error:
        raise ConfigError(
            explain(error, "the configuration", root=group, above=f"methods.{name}.")
        ) from error


def settings_of(config: AnyConfig, name: str) -> Section:
    """Check the settings of one method in a configuration.

    Args:
        config: The settings of a run, or of a call of `repair`.
        name: The method.

    Returns:
        The settings as an instance of the method's `Settings`.

    Raises:
        ConfigError: There is no such method or key (the message has the nearest names), or a value is wrong.
    """
    return method_settings(name, config.methods.get(name, {}))


def check_steps(config: AnyConfig, names: Sequence[str]) -> None:
    """Raise ConfigError for a method that would change nothing, since its only steps are `inner.steps` and these are 0.

    MetaRepair may take none: its θ_meta is what it gives.
    """
    idle = [name for name in names if get_method(name).walks and "experiences" not in get_method(name).uses]
    if config.inner.steps == 0 and idle:
        raise ConfigError(
            f"{idle[0]} repairs by inner.steps, and they are 0, so it would change nothing. Leave it out of the "
            "methods, or set inner.steps to 1 or more."
        )


def check_method_settings(config: AnyConfig) -> None:
    """Check the settings of every method named under `methods`. Raises ConfigError with the nearest names."""
    for name in config.methods:
        if name not in all_methods():
            raise ConfigError(f"methods: {unknown_name('repair method', name, all_methods())}")
        settings_of(config, name)
