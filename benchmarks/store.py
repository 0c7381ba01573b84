"""Measure tasks per second from an experience store of a million failures: cold from disk, warm from the page cache.

    cold        the file's pages are dropped first (posix_fadvise), so every example is read from the disk
    warm        the same tasks again
    recomputed  tasks from a store without pixels, which are computed again (gaussian noise on the sample's images)
    copy        one array copied over another of the same size: the memory's speed, for comparison

A task is 10 × 10 support examples of D_collect (1,000 rows) and 100 query examples of D_fail, 32 px: 0.6 MB of pixels.
Command: python -m benchmarks.store [--quick] [--json FILE]
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.measure import Times, machine, parser, peak_resident_bytes, publish
from tasks.datasets import load_dataset
from tasks.environments import corrupted
from tasks.experiences.failure_file import CHUNK, read_failures, write_failures
from tasks.experiences.mining import mine
from tasks.records import Experience, Failures
from tasks.sampling.confidence import Confidence
from tasks.sampling.sampler import sample_task

NAME, CLASSES, SHAPE = "gaussian_noise", 10, (32, 32, 3)
MEANING = {
    "tasks_per_s_cold": "tasks per second, with every page read from the disk",
    "tasks_per_s_warm": "tasks per second from the page cache",
    "tasks_per_s_recomputed": "tasks per second with recomputed pixels",
    "gb_per_s_warm": "pixels of warm tasks, GB per second",
    "gb_per_s_copy": "an array copied (bytes read and written counted once), GB per second",
    "share_of_copy": "gb_per_s_warm over gb_per_s_copy",
    "open_s": "seconds to open the store and read its index columns",
    "memory_mib": "growth of the resident set during opening, cold and warm tasks; includes mapped pages",
}


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much is measured. --quick uses the same store with fewer rounds."""

    rows: int
    tasks: int
    rounds: int


def sizes(*, quick: bool, smoke: bool) -> Sizes:
    if smoke:
        return Sizes(rows=2 * CHUNK, tasks=3, rounds=1)
    return Sizes(rows=1_000_000, tasks=200, rounds=3 if quick else 7)


def write_store(path: Path, rows: int, seed: int) -> None:
    """Write failures with random pixels; their content does not matter here."""
    generator = np.random.default_rng(seed)
    with tempfile.TemporaryFile(dir=path.parent) as scratch:
        images = np.memmap(scratch, np.uint8, mode="w+", shape=(rows, *SHAPE))
        for start in range(0, rows, CHUNK):
            stop = min(start + CHUNK, rows)
            images[start:stop] = np.frombuffer(generator.bytes(images[start:stop].nbytes), np.uint8).reshape(
                -1, *SHAPE
            )
        labels = generator.integers(0, CLASSES, rows)
        failures = Failures(
            corruption=NAME,
            image_ids_N=np.arange(rows),
            severities_N=generator.integers(1, 6, rows),
            labels_N=labels,
            predicted_N=(labels + 1) % CLASSES,
            images_NHWC=images,
        )
        write_failures(path, failures)


def write_index(path: Path, rows: int) -> Failures:
    """Write a store of the sample without pixels, where every image counts as a failure; return the failures."""
    data = load_dataset("cifar10_sample", "train")
    found = mine(
        lambda images: np.full(len(images), -1),
        corrupted(data, NAME, severities=[1, 2, 3, 4, 5], seed=0),
        np.arange(min(rows, len(data.labels_N))),
        seed=0,
        batch_size=500,
        keep="recomputed",
    )
    write_failures(path, found.failures)
    return found.failures


def drop_pages(path: Path) -> None:
    """Ask the kernel to drop a file's cached pages; it drops those that no process maps."""
    with path.open("rb") as stream:
        os.fsync(stream.fileno())
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def draw(experience: Experience, tasks: int, episode: int) -> int:
    """Draw `tasks` tasks and read their pixels; return the number of bytes read."""
    one = Confidence(names=(NAME,), probabilities_K=np.ones(1), rule="uniform", alpha=0.0, beta=0.0)
    size = 0
    for slot in range(tasks):
        task = sample_task(
            {NAME: experience}, one, seed=0, episode=episode, slot=slot, shots=10, query_size=100
        )
        support = experience.collect.images_NHWC[task.support_rows]
        query = experience.fail.images_NHWC[task.query_rows]
        size += support.nbytes + query.nbytes
    return size


def timed(work: Callable[[], int]) -> tuple[float, int]:
    """Return the seconds, and the result of `work`."""
    started = time.perf_counter()
    found = work()
    return time.perf_counter() - started, found


def copy_speed(nbytes: int = 1 << 28) -> float:
    """Return the bytes per second of copying one array over another."""
    source, target = np.ones(nbytes, np.uint8), np.zeros(nbytes, np.uint8)
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        np.copyto(target, source)
        seconds.append(time.perf_counter() - started)
    return nbytes / float(np.median(seconds))


def measure(size: Sizes, folder: Path) -> tuple[dict[str, float], Times, int]:
    """Measure rounds of cold, warm and recomputed tasks, in turn."""
    collect, fail = folder / "collect.arrow", folder / "fail.arrow"
    write_store(collect, 1000, seed=1)
    write_store(fail, size.rows, seed=2)
    index = write_index(folder / "index.arrow", size.rows)
    lazy = Experience(corruption=NAME, collect=index, fail=index)
    rounds: dict[str, list[float]] = {name: [] for name in ("open", "cold", "warm", "recomputed")}
    drawn = peak = 0
    for number in range(size.rounds):
        for path in (collect, fail):
            drop_pages(path)

        def cold(number: int = number) -> int:
            started = time.perf_counter()
            store = Experience(corruption=NAME, collect=read_failures(collect), fail=read_failures(fail))
            rounds["open"].append(time.perf_counter() - started)
            seconds, found = timed(lambda: draw(store, size.tasks, number))
            rounds["cold"].append(seconds)
            rounds["warm"].append(timed(lambda: draw(store, size.tasks, number))[0])
            return found

        result: list[int] = []
        peak = max(peak, peak_resident_bytes(lambda work=cold, into=result: into.append(work())))
        drawn = result[0]
        rounds["recomputed"].append(timed(lambda number=number: draw(lazy, size.tasks, number))[0])
        print(
            f"  round {number + 1} of {size.rounds}: "
            + ", ".join(f"{k} {v[-1]:.3f} s" for k, v in rounds.items())
        )
    times, copied = Times(rounds), copy_speed()
    warm = drawn / times.median("warm")
    figures = {f"tasks_per_s_{k}": size.tasks / times.median(k) for k in ("cold", "warm", "recomputed")}
    figures |= {"gb_per_s_warm": warm / 1e9, "gb_per_s_copy": copied / 1e9, "share_of_copy": warm / copied}
    figures |= {"open_s": times.median("open"), "memory_mib": peak / 2**20}
    return figures, times, fail.stat().st_size


def main() -> None:
    """Run the benchmark from the command line."""
    options = parser(__doc__.splitlines()[0])
    options.add_argument(
        "--folder", type=Path, help="where to write the store (7 GB; default: the temporary folder)"
    )
    given = options.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        figures, times, size_bytes = measure(sizes(quick=given.quick, smoke=given.smoke), Path(folder))
    around = machine("metarepair", "numpy", "pyarrow") | {"store_gb": round(size_bytes / 1e9, 2)}
    publish(figures, meaning=MEANING, around=around, times=times, path=given.json, smoke=given.smoke)


if __name__ == "__main__":
    main()
