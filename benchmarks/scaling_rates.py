"""Measure one core's time for each step of mining and scoring, per photograph of 224 px.

The photographs are the sample's, enlarged. Corruptions take as long for them as for any image of that size, except
that JPEG encodes smooth images somewhat faster. Networks have random weights.
"""

from __future__ import annotations

import math
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.corruptions import one_core, photographs
from benchmarks.fid import features_of
from benchmarks.fid import sizes as fid_sizes
from benchmarks.scaling_nets import NetTask, build_net, seconds_of
from benchmarks.store import draw, write_store
from metarepair.engine.types import Batch
from metarepair.features.inception import build_fid_inception, fold_fid_inception
from metarepair.models.build import DeployedModel
from tasks.corruptions import CORRUPTIONS, corrupt
from tasks.datasets.images import decode_image
from tasks.distances.frechet import frechet_distance, moments
from tasks.experiences.failure_file import read_failures, write_failures
from tasks.experiences.pixels import RecomputedPixels
from tasks.records import Experience, Failures, Pixels
from tasks.splits.digests import pixel_digests
from tasks.storage.manifest import file_hash

PHOTOGRAPH = (500, 375)  # pixels of a typical ImageNet photograph
SEVERITIES = (1, 2, 3, 4, 5)


@dataclass(frozen=True, kw_only=True)
class ImageRates:
    """Seconds of one core for one image or one pair of environments; bytes of one failure on disk."""

    decode_s: float
    corrupt_s: dict[str, float]
    classify_s: dict[str, float]
    feature_s: float
    feature_flops: float
    pair_s: float
    join_s: dict[str, float]
    hash_s: float
    failure_bytes: dict[str, float]

    @property
    def mean_corrupt_s(self) -> float:
        """Mean seconds over all corruptions; each is a mean over the severities."""
        return statistics.mean(self.corrupt_s.values())


def enlarged(count: int, size: tuple[int, int]) -> Pixels:
    """Return photographs enlarged to `size`, (width, height)."""
    found = [cv2.resize(image, size, interpolation=cv2.INTER_CUBIC) for image in photographs(count)]
    return np.stack(found)


def median_s(work: Callable[[], object], rounds: int) -> float:
    """Return the median seconds of a call, after a warm-up call."""
    return statistics.median(seconds_of(work, rounds))


def decode_seconds(rounds: int) -> float:
    """Time decoding a JPEG of a typical photograph's size to a square of 224 px."""
    image = enlarged(1, PHOTOGRAPH)[0]
    content = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()
    return median_s(lambda: decode_image(content, 224), rounds)


def corrupt_seconds(images: int, rounds: int) -> dict[str, float]:
    """Time each corruption, per image, averaged over all severities."""
    photos = enlarged(images, (224, 224))

    def all_severities(name: str) -> None:
        for severity in SEVERITIES:
            corrupt(
                photos,
                image_ids_B=range(images),
                corruption=name,
                severity=severity,
                seed=0,
                table="imagenet",
            )

    return {
        name: median_s(lambda name=name: all_severities(name), rounds) / images / len(SEVERITIES)
        for name in CORRUPTIONS
    }


def classify_seconds(net: str, images: int, rounds: int) -> float:
    """Time a forward pass as in mining, per image."""
    spec = NetTask(net=net, pixels=224, classes=1000, support=1, query=1, steps=1)
    deployed = DeployedModel(
        name=net, module=build_net(spec), num_classes=1000, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2)
    )
    photos = enlarged(images, (224, 224))
    return median_s(lambda: deployed.logits(photos), rounds) / images


def feature_seconds(images: int, rounds: int) -> float:
    """Time the FID Inception, per image."""
    network = fold_fid_inception(build_fid_inception())
    photos_BCHW = torch.from_numpy(enlarged(images, (224, 224))).permute(0, 3, 1, 2)

    @torch.inference_mode()
    def extract() -> None:
        for image_BCHW in photos_BCHW.split(4):  # batches as in metarepair.features.extractors on a CPU
            network(image_BCHW)

    return median_s(extract, rounds) / images


def feature_flops() -> float:
    """Count the FID Inception's operations for one image."""
    with torch.inference_mode(False), FlopCounterMode(display=False) as counter:
        build_fid_inception()(torch.from_numpy(enlarged(1, (224, 224))).permute(0, 3, 1, 2))
    return float(counter.get_total_flops())


def pair_seconds(rounds: int, *, smoke: bool) -> float:
    """Time a distance between two environments whose factors have as many rows as features."""
    size = fid_sizes(quick=True, smoke=smoke)
    sides = [features_of(environment, size) for environment in (0, 1)]
    x, y = (moments(np.concatenate([side] * 3)[: size.dim + 1]) for side in sides)
    return median_s(lambda: frechet_distance(x, y), rounds)


def failures_of(count: int) -> Failures:
    """Return failures with images of 224 px."""
    rows = np.arange(count)
    few = enlarged(min(count, 64), (224, 224))
    return Failures(
        corruption="fog",
        image_ids_N=rows,
        severities_N=rows % 5 + 1,
        labels_N=rows % 1000,
        predicted_N=(rows + 1) % 1000,
        images_NHWC=few[rows % len(few)],
    )


def without_pixels(failures: Failures) -> Failures:
    """Return the same failures with digests instead of pixels."""
    digests = pixel_digests(failures.images_NHWC[:64])
    lazy = RecomputedPixels(
        corruption=failures.corruption,
        image_ids_N=failures.image_ids_N,
        severities_N=failures.severities_N,
        digests_N=np.resize(digests, len(failures)),
        image_shape=(224, 224, 3),
        seed=0,
    )
    return Failures(**{**vars(failures), "images_NHWC": lazy})


@dataclass(frozen=True, kw_only=True)
class FileRates:
    """Seconds to write a failure and its bytes, with pixels stored and recomputed; seconds to check a byte."""

    join_s: dict[str, float]
    failure_bytes: dict[str, float]
    hash_s: float


def file_rates(folder: Path, count: int, rounds: int) -> FileRates:
    """Measure the rates on a file of `count` failures in the page cache."""
    stored = failures_of(count)
    seconds, sizes, hashed = {}, {}, math.nan
    for kind, failures in (("recomputed", without_pixels(stored)), ("stored", stored)):
        path = folder / f"{kind}.arrow"
        order = np.random.default_rng(0).permutation(count)
        once = median_s(lambda f=failures, p=path, o=order: write_failures(p, f, rows=o), rounds)
        size = path.stat().st_size
        seconds[kind], sizes[kind] = once / count, size / count
        hashed = median_s(lambda p=path: file_hash(p), rounds) / size
        path.unlink()
    return FileRates(join_s=seconds, failure_bytes=sizes, hash_s=hashed)


def measure_rates(nets: tuple[str, ...], *, images: int, rounds: int, smoke: bool) -> ImageRates:
    """Measure all rates, one after the other, on one core."""
    with one_core(), tempfile.TemporaryDirectory() as folder:
        files = file_rates(Path(folder), 16 if smoke else 2000, rounds)
        return ImageRates(
            decode_s=decode_seconds(3 * rounds),
            corrupt_s=corrupt_seconds(images, rounds),
            classify_s={net: classify_seconds(net, images, rounds) for net in nets},
            feature_s=feature_seconds(images, rounds),
            feature_flops=feature_flops(),
            pair_s=pair_seconds(rounds, smoke=smoke),
            **vars(files),
        )


def store_tasks_per_s(rows: int, tasks: int, rounds: int) -> float:
    """Measure tasks per second from a store of `rows` images of 32 px in the page cache.

    benchmarks.store also measures cold tasks.
    """
    with tempfile.TemporaryDirectory() as folder:
        collect, fail = Path(folder) / "collect.arrow", Path(folder) / "fail.arrow"
        write_store(collect, min(rows, 1000), seed=1)
        write_store(fail, rows, seed=2)
        store = Experience(corruption="fog", collect=read_failures(collect), fail=read_failures(fail))
        return tasks / median_s(lambda: draw(store, tasks, 0), rounds)


def batch_seconds(spec: NetTask, rounds: int) -> float:
    """Time making the tensors of a task's images, once they are read."""
    photos = photographs(spec.support + spec.query)
    labels = np.zeros(len(photos), np.int64)
    deployed = DeployedModel(
        name=spec.net,
        module=build_net(spec),
        num_classes=spec.classes,
        mean=(0.5, 0.5, 0.5),
        std=(0.2, 0.2, 0.2),
    )

    def make() -> Batch:
        return Batch(images_BCHW=deployed.normalise(photos), labels_B=torch.from_numpy(labels))

    return median_s(make, rounds)
