"""Leave out the failures whose labels are most suspicious, before anything is learned from them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from metarepair.config.photographs import NAME
from metarepair.config.run import Config
from metarepair.data.workspace import Surroundings
from metarepair.diagnosis.suspects import find_suspects
from tasks.environments import UserImages
from tasks.errors import ConfigError
from tasks.splits import LEARN

logger = logging.getLogger(__name__)


def without_suspicious(
    settings: Mapping[str, Any], config: Config, here: Surroundings, *, first: int
) -> dict[str, Any]:
    """Return `settings` in which the environment leaves out the `first` failures of the ranking of `diagnose`.

    The photographs are in the run's storage already; those that judge are neither ranked nor left out.
    """
    names = suspicious_names(config, here, first=first)
    logger.info(f"left out for their suspicious labels: {', '.join(names)}")
    environments = settings["environments"]
    return {**settings, "environments": {**environments, NAME: {**environments[NAME], "left_out": names}}}


def suspicious_names(config: Config, here: Surroundings, *, first: int) -> list[str]:
    """The names of the `first` failures whose labels are most suspicious.

    Raises ConfigError if there are no more failures to learn from than that.
    """
    source = here.environment("test", NAME)
    assert isinstance(source, UserImages)
    suspects = find_suspects(source, here.clean(), here.deployed, seed=config.seed)
    failures_F = suspects.failures_F
    learned_F = suspects.seen.source.parts_N[suspects.seen.rows_N[failures_F]] == LEARN
    if not learned_F[first:].any():
        raise ConfigError(
            f"--drop-suspicious {first} leaves no failure to learn from: of the photographs, the model gets "
            f"{learned_F.sum()} wrong that are learned from, and {len(failures_F) - learned_F.sum()} that select. Give "
            "a smaller number."
        )
    return suspects.seen.names(failures_F[:first])
