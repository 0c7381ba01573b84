"""How a run is spread over Ray: workers' resources, elasticity, failures, waiting."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from metarepair.config.section import Positive, Section

Amount = Annotated[float, Field(gt=0, le=128)]


class RayConfig(Section):
    """What Ray is asked for. No result depends on it, but for the order of summation in float32."""

    min_workers: Positive | None = Field(
        None,
        description="Meta-training goes on with so few workers where nodes were lost; workers when not given.",
    )
    cpus_per_worker: Amount = Field(1.0, description="CPUs that each training worker reserves.")
    gpus_per_worker: Amount = Field(
        1.0,
        description="GPUs that each worker reserves with device: cuda; a part of one lets workers share it.",
    )
    max_failures: Annotated[int, Field(ge=-1)] = Field(
        3, description="Deaths of the worker group that a training goes on after, -1: any number."
    )
    wait_s: Annotated[float, Field(ge=0)] = Field(
        0.0, description="Seconds to wait for an autoscaling cluster to have what was asked for."
    )
    timeout_s: Positive = Field(
        600, description="Seconds after which a collective operation whose partner is gone fails."
    )
