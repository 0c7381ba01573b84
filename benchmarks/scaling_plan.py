"""Plan ImageNet-C as experiences: hours, bytes and traffic, from one core's costs per image and task.

Pure functions. Each line of a plan states its basis:
    measured   a rate measured here, times a count
    modelled   counted operations, over a rate
    assumed    a number of `Campaign` or of a processor that was not measured here
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from benchmarks.scaling_model import Processor
from benchmarks.scaling_nets import Operations
from benchmarks.scaling_rates import ImageRates

HOUR = 3600.0
PIXEL_BYTES = 224 * 224 * 3
FEATURES = 2048


@dataclass(frozen=True, kw_only=True)
class Campaign:
    """ImageNet-C in full. All but the first five fields are assumed; they depend on a run's settings or on a DNN.

    failing: share of corrupted images that the deployed DNN gets wrong. methods, seeds: repairs of each target.
    """

    images: int = 1_281_167
    test_images: int = 50_000
    corruptions: int = 19
    severities: int = 5
    classes: int = 1000
    failing: float = 0.6
    collect: int = 5000
    episodes: int = 60
    tasks: int = 4
    repair_episodes: int = 10
    others_images: int = 500
    methods: int = 4
    seeds: int = 1
    kept_checkpoints: int = 2

    @property
    def environments(self) -> int:
        return self.corruptions * self.severities

    @property
    def corrupted(self) -> int:
        """Number of images that are corrupted and classified, of both splits."""
        return self.environments * (self.images + self.test_images)

    @property
    def failures(self) -> float:
        return self.failing * self.corrupted

    @property
    def pairs(self) -> int:
        """Number of pairs of environments, experiences and targets together."""
        both = 2 * self.environments
        return both * (both - 1) // 2

    @property
    def meta_tasks(self) -> int:
        """Number of meta-training tasks of all targets; each target has its own θ_meta."""
        return self.environments * self.episodes * self.tasks

    @property
    def judged(self) -> int:
        """Number of images for judging repaired DNNs: clean, of the target, and some of the other environments."""
        others = (self.environments - 1) * self.others_images
        return self.environments * self.methods * self.seeds * (2 * self.test_images + others)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of a plan: core-hours, and GPU-hours if GPUs can do the work instead.

    at_most: how many cores or GPUs can work on it at once.
    """

    stage: str
    amount: float
    unit: str
    core_h: float
    gpu_h: float | None
    basis: str
    at_most: float = math.inf

    def wall_h(self, *, cores: int, gpus: int) -> float:
        """Hours on a cluster whose cores (or GPUs, if there are any and they can do the work) do nothing else."""
        if self.gpu_h is not None and gpus:
            return self.gpu_h / min(gpus, self.at_most)
        return self.core_h / min(cores, self.at_most)


@dataclass(frozen=True, kw_only=True)
class NetCosts:
    """A DNN at 224 px: operations of a task and of its adaptation alone, seconds of a forward pass on one core.

    core: one core, at the rate measured on a small task with images of that size.
    """

    net: str
    task: Operations
    adapt_flops: float
    forward_s: float
    core: Processor


def compute_rows(campaign: Campaign, rates: ImageRates, net: NetCosts, gpu: Processor) -> list[Row]:
    """Return the hours of every stage, on cores and on GPUs."""
    forward, task, core = net.task.forward_flops, net.task, net.core
    examples = 2 * campaign.environments * campaign.collect
    repairs = campaign.environments * campaign.repair_episodes * campaign.tasks * net.adapt_flops

    def hours(count: float, seconds: float) -> float:
        return count * seconds / HOUR

    return [
        Row(
            stage="decode once",
            amount=campaign.images + campaign.test_images,
            unit="images",
            core_h=hours(campaign.images + campaign.test_images, rates.decode_s),
            gpu_h=None,
            basis="measured",
        ),
        Row(
            stage="corrupt",
            amount=campaign.corrupted,
            unit="images",
            core_h=hours(campaign.corrupted, rates.mean_corrupt_s),
            gpu_h=None,
            basis="measured",
        ),
        Row(
            stage="classify",
            amount=campaign.corrupted,
            unit="images",
            core_h=hours(campaign.corrupted, net.forward_s),
            gpu_h=hours(campaign.corrupted, gpu.seconds(forward)),
            basis="measured; GPU assumed",
        ),
        *(
            Row(
                stage=f"join, pixels {kind}",
                amount=campaign.failures,
                unit="failures",
                core_h=hours(campaign.failures, rates.join_s[kind]),
                gpu_h=None,
                basis="measured × assumed share",
                at_most=1,
            )
            for kind in ("stored", "recomputed")
        ),
        Row(
            stage="check, pixels stored",
            amount=campaign.failures,
            unit="failures",
            core_h=hours(campaign.failures, rates.hash_s * rates.failure_bytes["stored"]),
            gpu_h=None,
            basis="measured × assumed share",
            at_most=1,
        ),
        Row(
            stage="features",
            amount=examples,
            unit="images",
            core_h=hours(examples, rates.feature_s),
            gpu_h=hours(examples, gpu.seconds(rates.feature_flops)),
            basis="measured; GPU assumed",
        ),
        Row(
            stage="distances",
            amount=campaign.pairs,
            unit="pairs",
            core_h=hours(campaign.pairs, rates.pair_s),
            gpu_h=None,
            basis="measured",
        ),
        Row(
            stage="meta-train",
            amount=campaign.meta_tasks,
            unit="tasks",
            core_h=hours(campaign.meta_tasks, core.seconds(task.flops)),
            gpu_h=hours(campaign.meta_tasks, gpu.seconds(task.flops, task.operators)),
            basis="modelled; GPU assumed",
            at_most=campaign.environments * campaign.tasks,
        ),
        Row(
            stage="repair and judge",
            amount=campaign.judged,
            unit="images",
            core_h=hours(campaign.judged, net.forward_s) + core.seconds(repairs) / HOUR,
            gpu_h=(hours(campaign.judged, gpu.seconds(forward)) + gpu.seconds(repairs) / HOUR),
            basis="modelled; GPU assumed",
        ),
    ]


@dataclass(frozen=True, kw_only=True)
class Bytes:
    """One line of stored or sent bytes."""

    what: str
    size_bytes: float
    basis: str


def storage_rows(campaign: Campaign, rates: ImageRates, net: NetCosts) -> list[Bytes]:
    """Return the bytes in the storage path, and in each node's cache."""
    rows = FEATURES + 2  # of a file of moments: one for each feature, the mean, the count
    states = 3 * net.task.gradient_bytes  # θ and Adam's two moments
    stored, recomputed = (rates.failure_bytes[kind] * campaign.failures for kind in ("stored", "recomputed"))
    return [
        Bytes(
            what="decoded images, in each node's cache",
            size_bytes=(campaign.images + campaign.test_images) * PIXEL_BYTES,
            basis="counted",
        ),
        Bytes(what="experiences, pixels stored", size_bytes=stored, basis="measured × assumed share"),
        Bytes(what="experiences, pixels recomputed", size_bytes=recomputed, basis="measured × assumed share"),
        Bytes(
            what="features",
            size_bytes=2 * campaign.environments * campaign.collect * (4 * FEATURES + 8),
            basis="counted",
        ),
        Bytes(what="moments", size_bytes=2 * campaign.environments * rows * FEATURES * 8, basis="counted"),
        Bytes(
            what=f"θ_meta and {campaign.kept_checkpoints} checkpoints of every target",
            size_bytes=campaign.environments * (net.task.gradient_bytes + campaign.kept_checkpoints * states),
            basis="counted",
        ),
    ]


def network_rows(campaign: Campaign, rates: ImageRates, net: NetCosts, *, nodes: int) -> list[Bytes]:
    """Return the bytes sent over the network in the whole campaign, on `nodes` nodes."""
    ranks = min(nodes, campaign.tasks)  # an episode cannot keep more of them busy
    ring = 2 * (ranks - 1) * net.task.gradient_bytes  # sent by all ranks in one all-reduce
    decoded = (campaign.images + campaign.test_images) * PIXEL_BYTES
    # A part is written, read when it is joined, and written again as part of D_collect or D_fail.
    stored, recomputed = (3 * rates.failure_bytes[k] * campaign.failures for k in ("stored", "recomputed"))
    return [
        Bytes(what=f"clean images to {nodes} nodes", size_bytes=nodes * decoded, basis="counted"),
        Bytes(what="mining, pixels stored: parts, then joined", size_bytes=stored, basis="modelled"),
        Bytes(
            what="mining, pixels recomputed: parts, then joined",
            size_bytes=recomputed,
            basis="modelled",
        ),
        Bytes(
            what="all-reduces of all targets' meta-training",
            size_bytes=campaign.environments * campaign.episodes * ring,
            basis="modelled",
        ),
    ]
