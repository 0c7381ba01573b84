"""Average the repairs of past environments for a target, each weighted by the confidence in its environment.

The repairs are made once for all targets (metarepair.stages.merged). An average belongs to one target, and is computed
when it is loaded.
Source: paper Eq. 8 for the weights; Wortsman et al. 2022, "Model soups", for the average.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from metarepair.adaptation.meta_test import Start
from metarepair.config.run import Config
from metarepair.data.workspace import Surroundings
from metarepair.features.confidence_tables import read_confidence
from metarepair.meta_training.theta_meta import read_start
from metarepair.runs.layout import Run
from tasks.errors import ConfigError
from tasks.storage.manifest import content_hash, require_manifest
from tasks.storage.stages import MERGED


def merge_weights(run: Run, config: Config, target: str) -> dict[str, float]:
    """The weight of each experience in a target's average; they sum to 1, and experiences with p = 0 are left out.

    Raises StageError if the target is not scored, and ConfigError if all experiences with a positive p are targets of
    the run, for which no repairs are made.
    """
    likely = {name: p for name, p in read_confidence(run, target).as_dict().items() if p > 0}
    kept = {name: p for name, p in likely.items() if name in config.shared_experiences}
    total = sum(kept.values())
    if not total:
        raise ConfigError(
            f"no repair of a past environment can be merged for {target}: its confidence (p of Eq. 8) is all in "
            f"{', '.join(likely)}, which this run has as targets, and merged weights serve all targets of a run. Add "
            "other environments to mining.experiences, let experiences.choice, alpha and beta give them a positive p, "
            "or repair these targets in another run."
        )
    return {name: p / total for name, p in kept.items()}


def merged_inputs(run: Run, config: Config, target: str) -> dict[str, str]:
    """Digests of what a target's average depends on: the repairs in it, and the confidence.

    Raises StageError if one of the repairs is not made.
    """
    names = merge_weights(run, config, target)
    digests = {name: require_manifest(run.merged(name), MERGED.remedy).digest for name in names}
    return {"merged": content_hash(digests), "confidence": read_confidence(run, target).digest}


def load_merged(run: Run, config: Config, target: str, here: Surroundings) -> Start:
    """The average of the repairs for a target. Raises StageError if one of them is not made."""
    module = here.deployed.module
    starts = (
        (weight, read_start(run.merged(name), module, remedy=MERGED.remedy))
        for name, weight in merge_weights(run, config, target).items()
    )
    return averaged(starts, module)


def averaged(starts: Iterable[tuple[float, Start]], module: nn.Module) -> Start:
    """The weighted average of parameters and floating-point buffers, computed in float64.

    starts: pairs of a weight and what it weighs; the weights sum to 1. Other buffers, and parameters that do not train,
    are those of `module`, the deployed DNN.
    """
    totals: dict[str, Tensor] = {}
    for weight, start in starts:
        for key, value in (start.parameters | start.buffers).items():
            if value.is_floating_point():
                term = weight * value.detach().double()
                totals[key] = totals[key] + term if key in totals else term
    return Start(
        parameters={
            key: totals[key].to(own) if own.requires_grad else own.detach().clone()
            for key, own in module.named_parameters()
        },
        buffers={
            key: totals[key].to(own) if own.is_floating_point() else own.clone()
            for key, own in module.named_buffers()
        },
    )
