"""Check that a Ray worker has the corruption plugins of the process that started the run, in the same versions."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from typing import TypeVar

from metarepair.config.run import Config
from tasks.corruptions.plugins import check_plugin_versions, plugin_versions

Built = TypeVar("Built")
Versions = Mapping[str, str]


def plugins_of(config: Config) -> Versions:
    """The packages of all corruptions that are named in the settings; empty if all are published ones."""
    named = (*config.mining.experiences, *config.targets, *config.experiences.names)
    return plugin_versions(config.corruptions_of((*named, *(config.evaluate.others or ()))))


def check_worker(versions: Versions) -> None:
    """Raise ConfigError, which names this node, unless this process has the plugins in these versions."""
    check_plugin_versions(versions, where=f"a Ray worker on {platform.node() or 'an unnamed node'}")


def build_checked(versions: Versions, build: Callable[[], Built]) -> Built:
    """Check the plugins of this process, then call `build`."""
    check_worker(versions)
    return build()
