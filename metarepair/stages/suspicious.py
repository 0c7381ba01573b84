"""Leave out the failures whose labels are most suspicious, before anything is learned from them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np

from metarepair.config.photographs import NAME
from metarepair.config.run import Config
from metarepair.data.workspace import Surroundings
from metarepair.diagnosis.seen import answers, features_of, seen_of
from metarepair.diagnosis.suspects import find_suspects
from metarepair.stages.features import load_extractor
from tasks.environments import UserImages

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
    """The names of the `first` failures whose labels are most suspicious."""
    source = here.environment("test", NAME)
    assert isinstance(source, UserImages)
    seen, extractor, clean = seen_of(source), load_extractor(config, here), here.clean()
    suspects = find_suspects(
        seen,
        answers(here.deployed, seen.images_NHWC, "photographs"),
        features_of(extractor, seen.images_NHWC, "features of photographs"),
        extractor,
        clean.take(np.setdiff1d(np.arange(len(clean)), clean.held_out_rows)),
        num_classes=here.deployed.num_classes,
        seed=config.seed,
    )
    return seen.names(suspects.failures_F[:first])
