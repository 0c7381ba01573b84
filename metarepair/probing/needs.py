"""Which probe of the DNN a repair or a run needs: by its methods and settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from metarepair.adaptation.meta_test import inner_rule, repair_rule
from metarepair.config.repair import AnyConfig
from metarepair.config.run import Config
from metarepair.methods import Method
from metarepair.models.build import DeployedModel
from metarepair.probing.probe import Probed, probe
from tasks.records import Pixels

IMAGES = 8  # as many as a probe looks at


def probe_repair(
    method: Method, deployed: DeployedModel, images_BHWC: Pixels, config: AnyConfig
) -> Probed | None:
    """Probes what `method` needs of the DNN; None for a method that takes no gradients. Raises ConfigError."""
    if "weights" not in method.changes:
        return None
    rule = repair_rule(config, config.repair.rates[0])
    if not method.walks:  # it trains in a way of its own, on all parameters that may change
        rule = replace(rule, parts=("*",))
    return probe(deployed, images_BHWC, rule, order="first")


def probe_run(
    methods: Sequence[Method], deployed: DeployedModel, images_BHWC: Pixels, config: Config, *, trains: bool
) -> Probed | None:
    """Probes what a run needs of the DNN: meta-training's gradient where it `trains`, else what the methods need.

    None for methods that take no gradients. Raises ConfigError.
    """
    settings = config.train
    if trains:
        return probe(
            deployed,
            images_BHWC,
            inner_rule(config),
            order=settings.order,
            memory="graph" if settings.memory == "auto" else settings.memory,
            bf16=settings.precision == "bfloat16",
        )
    trained = next((method for method in methods if "weights" in method.changes), None)
    return None if trained is None else probe_repair(trained, deployed, images_BHWC, config)
