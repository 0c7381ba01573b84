"""The settings of Ray: resources of a worker, elasticity, restarts, waiting times."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from metarepair.config.section import LARGEST, Positive, Section

Amount = Annotated[float, Field(gt=0, le=128)]


class RayConfig(Section):
    """Ray's resources and failure handling. They change no result, except by the order of float32 summation."""

    min_workers: Positive | None = Field(
        None,
        description="Smallest number of workers with which meta-training continues after nodes are lost; 1 to "
        "`workers`. If not set, `workers`.",
    )
    cpus_per_worker: Amount = Field(
        1.0, description="CPUs that each training worker reserves; above 0, at most 128."
    )
    gpus_per_worker: Amount = Field(
        1.0,
        description="GPUs that each worker reserves with `device: cuda`; above 0, at most 128. Below 1, workers share "
        "a GPU.",
    )
    max_failures: Annotated[int, Field(ge=-1, le=LARGEST)] = Field(
        3,
        description="Number of times that a training restarts after its worker group failed; 0 or more, -1: no limit.",
    )
    wait_s: Annotated[float, Field(ge=0)] = Field(
        0.0,
        description="Seconds to wait until an autoscaling cluster has the resources that the run needs; 0 or more.",
    )
    timeout_s: Positive = Field(
        600,
        description="Whole seconds after which a collective operation fails if a worker does not answer; at least 1.",
    )
