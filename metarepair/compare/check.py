"""Refuse a comparison that cannot finish, before any work starts."""

from __future__ import annotations

from metarepair.compare.units import limit_of
from metarepair.config.run import Config
from metarepair.data.workspace import Surroundings
from metarepair.methods import check_steps, get_method, settings_of
from tasks.errors import ConfigError, unknown_name


def check_settings(config: Config) -> None:
    """Raise ConfigError for an unknown method or a wrong budget. Methods' settings are checked as in any run."""
    for name in config.compare.methods:
        get_method(name)
    for name in config.compare.budgets:
        if name not in config.compare.methods:
            raise ConfigError(
                f"compare.budgets: {unknown_name('method of compare.methods', name, config.compare.methods)}"
            )
    for name in config.compare.methods:
        limit_of(config, name)
    check_steps(config, config.compare.methods)
    _check_experiences(config)


def _check_experiences(config: Config) -> None:
    """Raise ConfigError if MetaRepair would learn from a target of the comparison, which no other method does."""
    learns = [name for name in config.compare.methods if "experiences" in get_method(name).uses]
    if not learns or config.one_for_all or len(config.targets) < 2:
        return
    known = config.experiences.names if config.experiences.choice == "list" else config.mining.experiences
    both = [target for target in config.targets if target in known]
    if both:
        raise ConfigError(
            f"{both[0]} is a target and an experience, so {learns[0]} would learn from it for the other targets, and "
            "what serves all targets (joint training, merged repairs) leaves targets out. Remove it from "
            "mining.experiences, or train for all targets (train.shared: true)."
        )


def check_methods(config: Config, here: Surroundings) -> None:
    """Raise ConfigError if a method cannot work with this DNN, or lacks the data that it needs."""
    for name in config.compare.methods:
        method = get_method(name)
        method.check(here.deployed.module, settings_of(config, name))
        if "clean" in method.uses_with(config) and not len(here.split("train").labels_N):
            raise ConfigError(
                f"{name} learns from the clean training split, which is empty. Remove {name} from compare.methods."
            )
