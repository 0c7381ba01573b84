"""A configuration in; nothing out, or the first reason why a comparison cannot come to its end."""

from __future__ import annotations

from metarepair.compare.units import limit_of
from metarepair.config import Config
from metarepair.deploy import Surroundings
from metarepair.methods import all_methods, get_method, method_settings
from tasks.errors import ConfigError, unknown_name


def check_settings(config: Config) -> None:
    """Methods, their settings and budgets; without a DNN or data. Raises ConfigError."""
    for name in (*config.compare.methods, *config.repair.methods):
        get_method(name)
    check_method_settings(config)
    for name in config.compare.budgets:
        if name not in config.compare.methods:
            raise ConfigError(
                f"compare.budgets: {unknown_name('method of compare.methods', name, config.compare.methods)}"
            )
    for name in config.compare.methods:
        limit_of(config, name)


def check_method_settings(config: Config) -> None:
    """The settings under `methods`, of all that are named there. Raises ConfigError with near names."""
    for name, settings in config.methods.items():
        if name not in all_methods():
            raise ConfigError(f"methods: {unknown_name('repair method', name, all_methods())}")
        method_settings(name, settings)


def check_methods(config: Config, here: Surroundings) -> None:
    """Whether every method can work with this DNN and has the data that it needs. Raises ConfigError."""
    for name in config.compare.methods:
        method = get_method(name)
        method.check(here.deployed.module, method_settings(name, config.methods.get(name, {})))
        if "clean" in method.uses_with(config) and not len(here.split("train").labels_N):
            raise ConfigError(
                f"{name} learns from the clean training split, which is empty here. Leave it out of compare.methods."
            )
