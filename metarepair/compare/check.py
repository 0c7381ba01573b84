"""A configuration in; nothing out, or the first reason why a comparison cannot come to its end."""

from __future__ import annotations

from metarepair.compare.units import limit_of
from metarepair.config.run import Config
from metarepair.data.workspace import Surroundings
from metarepair.methods import get_method, settings_of
from tasks.errors import ConfigError, unknown_name


def check_settings(config: Config) -> None:
    """Methods and their budgets; their settings are checked with those of any run. Raises ConfigError."""
    for name in config.compare.methods:
        get_method(name)
    for name in config.compare.budgets:
        if name not in config.compare.methods:
            raise ConfigError(
                f"compare.budgets: {unknown_name('method of compare.methods', name, config.compare.methods)}"
            )
    for name in config.compare.methods:
        limit_of(config, name)


def check_methods(config: Config, here: Surroundings) -> None:
    """Whether every method can work with this DNN and has the data that it needs. Raises ConfigError."""
    for name in config.compare.methods:
        method = get_method(name)
        method.check(here.deployed.module, settings_of(config, name))
        if "clean" in method.uses_with(config) and not len(here.split("train").labels_N):
            raise ConfigError(
                f"{name} learns from the clean training split, which is empty here. Leave it out of compare.methods."
            )
