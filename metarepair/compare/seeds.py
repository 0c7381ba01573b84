"""A run of its own for each seed, of a comparison with `compare.vary: everything`."""

from __future__ import annotations

from metarepair.config.run import Config
from metarepair.config.section import LARGEST
from metarepair.runs.layout import run_of
from tasks.errors import ConfigError


def varies_everything(config: Config) -> bool:
    """Whether the mining split, the preparation and the repair vary together with the seed."""
    return config.compare.vary == "everything"


def config_of_seed(config: Config, seed: int) -> Config:
    """The settings of the run of one seed: an ordinary comparison. Raises ConfigError if its seed is too large."""
    if config.seed + seed > LARGEST:
        raise ConfigError(
            f"seed={config.seed} plus {seed} (of compare.seeds) is more than {LARGEST}, the largest seed of a run. "
            "Lower one of the two."
        )
    return config.model_copy(
        update={
            "name": str(seed),
            "storage_path": str(run_of(config).seeds),
            "seed": config.seed + seed,
            "compare": config.compare.model_copy(update={"seeds": (seed,), "vary": "repair"}),
        }
    )
