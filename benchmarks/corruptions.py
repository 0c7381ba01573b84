"""Measure images per second of each corruption: ours in batches against a reference that takes one image at a time.

    ours              tasks.corruptions.corrupt, batches of 500
    reference         benchmarks/corruption_reference.py: the same constants, one image at a time
    imagecorruptions  the peer's package, with its own constants, for information

Images of the shipped sample, 32 px, all five severities together, one core.
Command: python -m benchmarks.corruptions [--quick] [--json FILE] [--without imagecorruptions]
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks.corruption_reference import REFERENCE, table_facts
from benchmarks.measure import (
    Figure,
    Peer,
    Times,
    add_peers,
    interleave,
    machine,
    parser,
    peak_resident_bytes,
    publish,
    require_peers,
)
from tasks.corruptions import CORRUPTIONS, corrupt, severity_table
from tasks.datasets import load_dataset

# B images in a batch, H W C pixels
Images = NDArray[np.uint8]

TABLE = "cifar"
SEVERITIES = (1, 2, 3, 4, 5)
PEER = "imagecorruptions"
PEERS = (Peer(name=PEER, module=PEER),)
MEANING = {
    "geomean_ratio": "geometric mean of `ratio` (more is better; the goal is 10)",
    "min_ratio": "the smallest `ratio` (the goal is 0.9)",
    "peak_memory_mib": "the largest `memory_mib`",
    "images_per_s": "ours",
    "reference_images_per_s": "the reference",
    "ratio": "speed of ours over that of the reference, median over the rounds",
    "memory_mib": "growth of the resident set during one of our batches, in a separate process",
    "imagecorruptions_images_per_s": "the package imagecorruptions, with its own constants",
}


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much is measured: images in one of our batches and in a loop, at each severity."""

    batch: int
    loop: int
    rounds: int
    memory: Sequence[str]


def sizes(*, quick: bool, smoke: bool) -> Sizes:
    """Return the sizes. --quick uses the same sizes with fewer rounds."""
    if smoke:
        return Sizes(batch=4, loop=1, rounds=1, memory=())
    return Sizes(batch=500, loop=40, rounds=2 if quick else 7, memory=tuple(CORRUPTIONS))


@contextmanager
def one_core() -> Iterator[None]:
    """Keep this process, its libraries' threads and its children on one CPU; restore the settings afterwards."""
    threads = cv2.getNumThreads()
    cpus = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    cv2.setNumThreads(1)
    if cpus:
        os.sched_setaffinity(0, {min(cpus)})
    try:
        yield
    finally:
        cv2.setNumThreads(threads)
        if cpus:
            os.sched_setaffinity(0, cpus)


def photographs(count: int) -> Images:
    """Return the first images of the shipped sample, repeated if it has fewer."""
    sample = np.asarray(load_dataset("cifar10_sample", "train").images_NHWC)
    return sample[np.arange(count) % len(sample)]


def ours(name: str, images_BHWC: Images) -> None:
    """Run every severity of one corruption, on the images as a batch."""
    ids = np.arange(len(images_BHWC))
    for severity in SEVERITIES:
        corrupt(images_BHWC, image_ids_B=ids, corruption=name, severity=severity, seed=0, table=TABLE)


def reference(name: str, images_BHWC: Images) -> None:
    """Run the same with the reference, image by image."""
    rng, facts = np.random.default_rng(0), table_facts(TABLE)
    for constants in severity_table(TABLE)[name]:
        for image_HWC in images_BHWC:
            REFERENCE[name](image_HWC, constants, rng=rng, facts=facts)


def peer(name: str, images_BHWC: Images) -> None:
    """Run the same with imagecorruptions."""
    package: Any = import_module(PEER)
    for severity in SEVERITIES:
        for image_HWC in images_BHWC:
            package.corrupt(image_HWC, severity=severity, corruption_name=name)


def peer_failures(image_HWC: Images) -> dict[str, str]:
    """Return, by corruption, why the installed imagecorruptions fails at this size."""
    found = {}
    for name in CORRUPTIONS:
        try:
            peer(name, image_HWC[None])
        except Exception as error:  # any error is reported as the result
            found[name] = f"fails: {type(error).__name__}: {error}"
    return found


def peak_bytes(name: str, *, batch: int) -> int:
    """Return the peak memory growth during one of our batches; tables and photographs are already loaded."""
    images = photographs(batch)
    ours(name, images[:2])
    return peak_resident_bytes(lambda: ours(name, images))


def peak_in_child(name: str, *, batch: int) -> float:
    """Return `peak_bytes` of a separate process, in MiB."""
    command = [sys.executable, "-m", "benchmarks.corruptions", "--peak", name, "--batch", str(batch)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(done.stdout.split()[-1]) / 2**20


def competitors(size: Sizes, failures: Mapping[str, str] | None) -> dict[str, Callable[[int], object]]:
    """Return ours, the reference and, where it works, the peer, next to each other for every corruption."""
    many, few = photographs(size.batch), photographs(size.loop)
    found: dict[str, Callable[[int], object]] = {}
    for name in CORRUPTIONS:
        found[f"ours {name}"] = _round(ours, name, many)
        found[f"loop {name}"] = _round(reference, name, few)
        if failures is not None and name not in failures:
            found[f"peer {name}"] = _round(peer, name, few)
    return found


def _round(way: Callable[[str, Images], None], name: str, images_BHWC: Images) -> Callable[[int], object]:
    return lambda _: way(name, images_BHWC)


def figures_of(times: Times, size: Sizes) -> dict[str, Figure]:
    """Compute rates and ratios from the times."""

    def rates(way: str, count: int) -> dict[str, float]:
        seconds = {n: times.median(f"{way} {n}") for n in CORRUPTIONS if f"{way} {n}" in times.rounds_s}
        return {name: len(SEVERITIES) * count / found for name, found in seconds.items()}

    share = size.batch / size.loop
    ratio = {name: share * times.ratio(f"loop {name}", f"ours {name}") for name in CORRUPTIONS}
    return {
        "images_per_s": rates("ours", size.batch),
        "reference_images_per_s": rates("loop", size.loop),
        "ratio": ratio,
        "imagecorruptions_images_per_s": rates("peer", size.loop),
        "geomean_ratio": math.exp(sum(map(math.log, ratio.values())) / len(ratio)),
        "min_ratio": min(ratio.values()),
    }


def measured(size: Sizes, *, with_peer: bool) -> tuple[dict[str, Figure], Times]:
    """Return all figures, and the times they are computed from."""
    failures = peer_failures(photographs(1)[0]) if with_peer else None
    for name in CORRUPTIONS:  # warm up: load tables, kernels and photographs of frost
        ours(name, photographs(2))
        reference(name, photographs(1))
    times = interleave(competitors(size, failures), rounds=size.rounds)
    figures = figures_of(times, size)
    speeds = figures.pop("imagecorruptions_images_per_s")
    if failures is not None and isinstance(speeds, Mapping):
        figures["imagecorruptions_images_per_s"] = {**speeds, **failures}
    memory = {name: peak_in_child(name, batch=size.batch) for name in size.memory}
    if memory:
        figures |= {"memory_mib": memory, "peak_memory_mib": max(memory.values())}
    return figures, times


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark from the command line; with --peak, print the peak memory of one corruption in bytes."""
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--peak", choices=list(CORRUPTIONS), help="print one corruption's peak bytes")
    options.add_argument("--batch", type=int, default=500, help="images, for --peak")
    add_peers(options, PEERS)
    given = options.parse_args(arguments)
    if not given.peak:
        require_peers(PEERS, without=given.without)
    with one_core():
        if given.peak:
            print(peak_bytes(given.peak, batch=given.batch))
            return
        around = machine("metarepair", "numpy", "scipy", "opencv-python-headless", "pillow", PEER)
        around |= {"without": ", ".join(given.without) or "no peer"}
        size = sizes(quick=given.quick, smoke=given.smoke)
        figures, times = measured(size, with_peer=PEER not in given.without)
        publish(figures, meaning=MEANING, around=around, times=times, path=given.json, smoke=given.smoke)


if __name__ == "__main__":
    main()
