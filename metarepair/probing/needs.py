"""Probes a DNN for what a repair or a run needs, given its methods and settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from metarepair.adaptation.meta_test import inner_rule, repair_rule
from metarepair.config.repair import AnyConfig
from metarepair.config.run import Config
from metarepair.methods import Method
from metarepair.models.build import DeployedModel
from metarepair.probing.probe import ProbeResult, probe
from tasks.records import Pixels

IMAGES = 8  # the most that a probe uses


def probe_repair(
    method: Method, deployed: DeployedModel, images_BHWC: Pixels, config: AnyConfig
) -> ProbeResult | None:
    """Probe the DNN for what `method` needs; None for a method without gradients. Raises ConfigError if it fails."""
    if "weights" not in method.changes:
        return None
    rule = repair_rule(config, config.repair.rates[0])
    if not method.walks:  # the method has a training loop of its own, for all parameters that may change
        rule = replace(rule, parts=("*",))
    return probe(deployed, images_BHWC, rule, order="first")


def probe_run(
    methods: Sequence[Method], deployed: DeployedModel, images_BHWC: Pixels, config: Config, *, trains: bool
) -> ProbeResult | None:
    """Probe the DNN for what a run needs: meta-training's gradient if it `trains`, else what its methods need.

    Returns None if no method uses gradients. Raises ConfigError if the probe fails.
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
